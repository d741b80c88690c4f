"""Which example stands where in the endless stream, and the random numbers that are its own.

Arithmetic on 64 bits, no generator that could change with a version of NumPy: a run that is resumed years later goes on in
the same order.
"""
import numpy as np


class Order:
  """Each epoch is a permutation of 0..count - 1 of its own; epochs follow each other without a gap.

  Args:
    count: examples in an epoch, 1 or more.
    seed: 0..2**32 - 1.
    shuffled: False keeps the order as it is.
  """

  def __init__(self, count: int, seed: int, shuffled: bool = True):
    self._count, self._seed, self._shuffled = count, seed, shuffled

  def __call__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the examples at positions in the stream, (n,) int64 counted from 0, and the epochs they are in."""
    epochs, places = np.divmod(positions, self._count)
    if not self._shuffled:
      return places, epochs
    examples = np.empty_like(places)
    for epoch in np.unique(epochs):  # one, or two where a batch spans them
      here = epochs == epoch
      examples[here] = _permuted(places[here], self._count, mix(np.uint64(epoch) ^ self._key(0)))
    return examples, epochs

  def keys(self, examples: np.ndarray, epochs: np.ndarray, copies: np.ndarray) -> np.ndarray:
    """64 random bits, (n,) uint64, for each example, epoch and copy, wherever in the stream it stands."""
    keys = mix(examples.astype(np.uint64) ^ mix(epochs.astype(np.uint64) ^ self._key(1)))
    return mix(copies.astype(np.uint64) ^ keys)

  def _key(self, purpose):
    return mix(np.array([self._seed << 8 | purpose], np.uint64))[0]


def _permuted(places, count, key):
  """Where a permutation of 0..count - 1 takes `places`: the swap-or-not shuffle (Hoang, Morris, Rogaway, Crypto 2012).

  Each place is computed by itself, so the middle of an epoch of any length costs no time and no memory to get to.
  """
  places, count = places.astype(np.uint64), np.uint64(count)
  for round_key in mix(np.arange(_ROUNDS, dtype=np.uint64) ^ key):
    partners = (round_key % count + count - places) % count
    swapped = mix(np.maximum(places, partners) ^ round_key) >> np.uint64(63)  # both of a pair ask the same
    places = np.where(swapped, partners, places)
  return places.astype(np.int64)


def mix(x: np.ndarray) -> np.ndarray:
  """A bijection of 64-bit integers that looks random: one step of SplitMix64 (Steele, Lea, Flood 2014, figure 16)."""
  with np.errstate(over='ignore'):  # scalars warn where arrays wrap
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


# Twice the logarithm of three hundred million: each round swaps half of all pairs. 1 µs an example.
_ROUNDS = 64
