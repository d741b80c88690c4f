"""Equal shares of a batch: one a device, and micro-batches of it."""
import jax
import jax.numpy as jnp


def count_micro_batches(batch_size, shares, micro_batch):
  """How many micro-batches of `micro_batch` images a share of the global batch makes; None takes a share as a whole.

  Raises:
    ValueError: the batch does not divide into equal shares, or a share into micro-batches.
  """
  if batch_size < 1 or batch_size % shares:
    nearest = max(1, round(batch_size / shares)) * shares
    raise ValueError(f'data.batch_size={batch_size} does not divide into {shares} shares, one for each device or, '
                     f'on a mesh, for each parallel.tensor devices; the nearest that does: {nearest}')
  share = batch_size // shares
  if micro_batch is None or micro_batch >= share:
    return 1
  if micro_batch < 1:
    raise ValueError(f'train.micro_batch must be at least 1, or None for a share as a whole; got {micro_batch}')
  if share % micro_batch:
    nearest = min((n for n in range(1, share + 1) if share % n == 0), key=lambda n: abs(n - micro_batch))
    raise ValueError(f'train.micro_batch={micro_batch} does not divide the {share} images of each of the {shares} shares '
                     f'of data.batch_size={batch_size}; the nearest that does: {nearest}')
  return share // micro_batch


def cut(tree, count, shards):
  """Cuts arrays (B, …) into (count, B / count, …): micro-batch k is the k-th part of every device's share.

  Whole micro-batches one after the other would lie on a few devices each, and their examples would have to move.

  Args:
    tree: of arrays whose examples lie on `shards` devices, in equal contiguous parts.
    count: of micro-batches, which divides B / shards.
    shards: number of devices.
  """
  def one(x):
    parts = jnp.moveaxis(x.reshape(shards, count, -1, *x.shape[1:]), 1, 0)
    return parts.reshape(count, -1, *x.shape[1:])

  return jax.tree.map(one, tree)
