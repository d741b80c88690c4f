"""One training run: its config, its parts, its loop, and what it writes."""
