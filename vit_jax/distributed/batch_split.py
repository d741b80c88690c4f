"""Split the global batch into per-device shards, and those into micro-batches."""
from typing import TypeVar

import jax
import jax.numpy as jnp

from vit_jax.base.errors import UserError

T = TypeVar('T')


def count_micro_batches(batch_size: int, num_shards: int, micro_batch: int | None) -> int:
  """Return the number of micro-batches in each shard of the global batch.

  Args:
    batch_size: images in the global batch.
    num_shards: number of equal shards, each on its own devices.
    micro_batch: images per micro-batch; None, or more than a shard has, takes a shard as a whole.

  Raises:
    UserError: the batch cannot be split into equal shards, or a shard into micro-batches.
  """
  if batch_size < 1 or batch_size % num_shards:
    nearest = max(1, round(batch_size / num_shards)) * num_shards
    raise UserError(f'data.batch_size: must be divisible by {num_shards} shards (one per device; on a mesh, one per '
                    f'parallel.tensor devices); got {batch_size}. Try {nearest}')
  shard = batch_size // num_shards
  if micro_batch is None or micro_batch >= shard:
    return 1
  if micro_batch < 1:
    raise UserError(f'train.micro_batch: must be at least 1, or None for a whole shard; got {micro_batch}')
  if shard % micro_batch:
    nearest = min((n for n in range(1, shard + 1) if shard % n == 0), key=lambda n: abs(n - micro_batch))
    raise UserError(f'train.micro_batch: must divide the {shard} images of each of the {num_shards} shards of '
                    f'data.batch_size={batch_size}; got {micro_batch}. Try {nearest}')
  return shard // micro_batch


def split_micro_batches(tree: T, count: int, num_shards: int) -> T:
  """Split arrays (B, …) into (count, B / count, …): micro-batch k takes the k-th part of every shard.

  Consecutive slices of the whole batch would each be on a few devices only, and their examples would have to move.

  Args:
    tree: pytree of arrays whose examples are on `num_shards` devices, in equal contiguous shards.
    count: number of micro-batches, a divisor of B / num_shards.
    num_shards: number of shards.
  """
  def split(x: jax.Array) -> jax.Array:
    parts = jnp.moveaxis(x.reshape(num_shards, count, -1, *x.shape[1:]), 1, 0)
    return parts.reshape(count, -1, *x.shape[1:])

  return jax.tree.map(split, tree)


def join_micro_batches(parts: jax.Array, num_shards: int) -> jax.Array:
  """Return (B, …) from the (count, B / count, …) of `split_micro_batches`."""
  count, size = parts.shape[:2]
  by_shard = jnp.moveaxis(parts.reshape(count, num_shards, -1, *parts.shape[2:]), 0, 1)
  return by_shard.reshape(count * size, *parts.shape[2:])
