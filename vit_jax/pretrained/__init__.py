"""Weights in and out: load, save, adapt to a new task, start a fine-tune; each format is one file."""
