"""What a training step will cost on a machine, asked of that machine's compiler: `plan.py` is the command."""
