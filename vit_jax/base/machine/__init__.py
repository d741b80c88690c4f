"""The machine that a process runs on: its memory, and faults of it that may pass."""
