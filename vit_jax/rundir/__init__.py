"""Run directories: where files are, checkpoints, and what a checkpoint records beside the state."""
