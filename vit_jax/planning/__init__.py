"""The cost of a training step on a machine, estimated by that machine's compiler; the command is `vit_jax.plan`."""
