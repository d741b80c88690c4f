"""Which example stands where in the endless stream, and the random numbers that are its own.

Arithmetic on 64 bits, no generator that could change with a version of NumPy: a run that is resumed years later goes on in
the same order.
"""
import functools

import numpy as np


class Order:
  """Each epoch is a permutation of 0..count - 1 of its own; epochs follow each other without a gap.

  Args:
    count: examples in an epoch, 1 or more.
    seed: 0..2**32 - 1.
    shuffled: False keeps the order as it is.
  """

  def __init__(self, count: int, seed: int, shuffled: bool = True):
    self._count, self._seed = count, seed
    # Two, as a batch may span two epochs; 8 bytes an example each.
    self._permutation = functools.lru_cache(maxsize=2)(self._sort) if shuffled else None

  def __call__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the examples at positions in the stream, (n,) int64 counted from 0, and the epochs they are in."""
    epochs, places = np.divmod(positions, self._count)
    if self._permutation is None:
      return places, epochs
    examples = np.empty_like(places)
    for epoch in np.unique(epochs):
      here = epochs == epoch
      examples[here] = self._permutation(int(epoch))[places[here]]
    return examples, epochs

  def keys(self, examples: np.ndarray, epochs: np.ndarray, copies: np.ndarray) -> np.ndarray:
    """64 random bits, (n,) uint64, for each example, epoch and copy, wherever in the stream it stands."""
    keys = mix(examples.astype(np.uint64) ^ mix(epochs.astype(np.uint64) ^ self._key(1)))
    return mix(copies.astype(np.uint64) ^ keys)

  def _sort(self, epoch):
    # Sorting by a bijection's values has no ties, so the order is the same whatever the sort.
    key = mix(np.uint64(epoch) ^ self._key(0))
    return np.argsort(mix(np.arange(self._count, dtype=np.uint64) ^ key))

  def _key(self, purpose):
    return mix(np.array([self._seed << 8 | purpose], np.uint64))[0]


def mix(x: np.ndarray) -> np.ndarray:
  """A bijection of 64-bit integers that looks random: one step of SplitMix64 (Steele, Lea, Flood 2014, figure 16)."""
  with np.errstate(over='ignore'):  # scalars warn where arrays wrap
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
