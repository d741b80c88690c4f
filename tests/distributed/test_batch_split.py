"""Splitting a batch into shards and micro-batches."""
import numpy as np
import pytest

from vit_jax.base.errors import UserError
from vit_jax.distributed import batch_split


@pytest.mark.parametrize('batch_size, num_shards, micro_batch, count', [
    (4096, 64, None, 1), (4096, 64, 16, 4), (4096, 64, 64, 1),
    (4096, 512, 16, 1),  # the same recipe on more chips: a shard of 8 is a single micro-batch
    (4096, 8, 16, 32), (6, 2, 1, 3),
])
def test_number_of_micro_batches(batch_size, num_shards, micro_batch, count):
  assert batch_split.count_micro_batches(batch_size, num_shards, micro_batch) == count


@pytest.mark.parametrize('batch_size, num_shards, micro_batch, message', [
    (63, 2, None, 'data.batch_size: must be divisible by 2 shards .* got 63. Try 64'),
    (0, 2, None, 'data.batch_size: .* got 0. Try 2'),
    (96, 2, 15, 'train.micro_batch: must divide the 48 images of each of the 2 shards .* got 15. Try 16'),
    (96, 2, 0, 'train.micro_batch: must be at least 1, or None .* got 0'),
    (96, 2, -3, 'train.micro_batch: must be at least 1, .* got -3'),
])
def test_indivisible_batch_is_an_error_with_the_nearest_valid_size(batch_size, num_shards, micro_batch, message):
  with pytest.raises(UserError, match=message):
    batch_split.count_micro_batches(batch_size, num_shards, micro_batch)


def test_micro_batches_take_equal_parts_of_every_shard():
  """Four shards of six rows, three micro-batches: rows stay in their shard, neighbors stay neighbors."""
  split = batch_split.split_micro_batches(dict(x=np.arange(24)), 3, 4)['x']
  assert split.shape == (3, 8)
  for k in range(3):
    assert split[k].tolist() == [6 * shard + 2 * k + i for shard in range(4) for i in range(2)]
  np.testing.assert_array_equal(batch_split.split_micro_batches(np.arange(24), 3, 1), np.arange(24).reshape(3, 8))
