"""How a batch is cut: shares and micro-batches."""
import pytest

from vit_jax.distributed import batch_split as shares_lib


@pytest.mark.parametrize('batch_size, shares, micro_batch, count', [
    (4096, 64, None, 1), (4096, 64, 16, 4), (4096, 64, 64, 1),
    (4096, 512, 16, 1),  # the same recipe on more chips: a share of 8 is held at once
    (4096, 8, 16, 32), (6, 2, 1, 3),
])
def test_micro_batches(batch_size, shares, micro_batch, count):
  assert shares_lib.count_micro_batches(batch_size, shares, micro_batch) == count


@pytest.mark.parametrize('batch_size, shares, micro_batch, message', [
    (63, 2, None, 'data.batch_size=63 does not divide into 2 shares, .* the nearest that does: 64'),
    (0, 2, None, 'nearest that does: 2'),
    (96, 2, 15, 'train.micro_batch=15 does not divide the 48 images .* the nearest that does: 16'),
    (96, 2, 0, 'train.micro_batch must be at least 1, or None .* got 0'),
    (96, 2, -3, 'must be at least 1'),
])
def test_a_batch_that_does_not_divide(batch_size, shares, micro_batch, message):
  with pytest.raises(ValueError, match=message):
    shares_lib.count_micro_batches(batch_size, shares, micro_batch)
