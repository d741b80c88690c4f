"""Benchmark programs and the tables they measured."""
