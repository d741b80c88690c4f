"""Weights of other people's models, in and out; each format is one file that says where every leaf lies."""
