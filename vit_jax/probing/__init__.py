"""Frozen features of a loaded model: what they are worth, and a classifier on them."""
