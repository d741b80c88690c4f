"""What protects a run from its surroundings: signals, hangs, lost terminals."""
