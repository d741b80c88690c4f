"""Strict readers of untrusted weight files."""
