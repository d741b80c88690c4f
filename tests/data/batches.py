"""Helpers of the loading tests: batches of small sources, and comparisons."""
from collections.abc import Iterable, Sequence
import itertools

import numpy as np

from vit_jax.data.loading import loader
from vit_jax.data.loading.batch import Batch
from vit_jax.data.loading.loader import Loader
from vit_jax.data.sources.base import Source

RANDOM = 'pad_crop(1)|flip'


def train(source: Source, **options) -> Loader:
  """Return training batches of small random crops."""
  options = {'batch_size': 8, 'image_size': (6, 5), 'transform': RANDOM, 'threads': 2} | options
  return loader.train_batches(source, **options)


def evaluate(source: Source, **options) -> Loader:
  """Return evaluation batches."""
  options = {'batch_size': 8, 'image_size': (6, 5)} | options
  return loader.eval_batches(source, **options)


def take(batches: Iterable[Batch], count: int) -> list[Batch]:
  """Return the first batches of a pass."""
  return list(itertools.islice(iter(batches), count))


def join(shards: Sequence[Sequence[Batch]]) -> list[dict[str, np.ndarray]]:
  """Return global batches from the batches of each process."""
  return [{key: np.concatenate([shard[key] for shard in step]) for key in step[0]} for step in zip(*shards, strict=True)]


def assert_same(first: Sequence[Batch], second: Sequence[Batch]) -> None:
  """Assert that batches are equal, bit for bit."""
  for one, other in zip(first, second, strict=True):
    assert set(one) == set(other)
    for key in one:
      np.testing.assert_array_equal(one[key], other[key], err_msg=key)
