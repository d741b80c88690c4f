"""Tests of the evaluators on frozen features."""
