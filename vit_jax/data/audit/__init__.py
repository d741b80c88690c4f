"""Audit of a dataset: counts, corrupt files, duplicates."""
