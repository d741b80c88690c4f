"""The parts of the loop: state, step, objectives, optimizers, devices, checkpoints, metrics."""
