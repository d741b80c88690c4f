"""Equal shares of a batch: one a device, and micro-batches of it."""
import jax
import jax.numpy as jnp


def check_divides(batch_size, shards, accumulate):
  """Raises ValueError unless each of `shards` devices gets `accumulate` equal micro-batches of the global batch."""
  if accumulate < 1:
    raise ValueError(f'train.accumulate must be at least 1, got {accumulate}')
  parts = shards * accumulate
  if batch_size < 1 or batch_size % parts:
    nearest = max(1, round(batch_size / parts)) * parts
    raise ValueError(f'data.batch_size={batch_size} is not divisible by {shards} devices × train.accumulate='
                     f'{accumulate}; the nearest that is: {nearest}')


def micro_batches(tree, count, shards):
  """Cuts arrays (B, …) into (count, B / count, …): micro-batch k is the k-th part of every device's share.

  Whole micro-batches one after the other would lie on a few devices each, and their examples would have to move.

  Args:
    tree: of arrays whose examples lie on `shards` devices, in equal contiguous parts.
    count: of micro-batches, which divides B / shards.
    shards: number of devices.
  """
  def cut(x):
    parts = jnp.moveaxis(x.reshape(shards, count, -1, *x.shape[1:]), 1, 0)
    return parts.reshape(count, -1, *x.shape[1:])

  return jax.tree.map(cut, tree)
