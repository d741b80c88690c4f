"""Which examples each batch holds, in which order, and the random bits of each example.

Examples, order and random bits depend on the seed, the epoch and the example only, never on the number of processes,
threads or workers: process p of n holds the p-th of n equal, contiguous shards of every global batch. A batch is found
from its number alone, so a resumed run replays nothing.

All of it is 64-bit arithmetic instead of a generator of NumPy, which may change with NumPy's version: a run resumed
years later continues in the same order.
"""
from typing import Protocol, runtime_checkable

import numpy as np

from vit_jax.base.errors import UserError

# What a key of `seed_key` is for.
SHUFFLE, AUGMENT = 0, 1

# Rounds of the shuffle: twice the logarithm of 300 million, as each round swaps half of all pairs. 1 µs per example.
_ROUNDS = 64


@runtime_checkable
class Order(Protocol):
  """The order of batches, from the view of one process."""

  @property
  def local_batch_size(self) -> int:
    """Examples per batch that this process holds."""
    ...

  @property
  def num_batches(self) -> int | None:
    """Batches in a pass; None if endless."""
    ...

  def __call__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return this process's examples of batch `number`.

    Returns:
      (ids, keys): indices in the split, (n,) int64, and random bits of each example, (n,) uint64. n is
      local_batch_size, or less (down to 0) in the last batch of a pass.
    """
    ...


class TrainOrder:
  """Endless, shuffled order: each epoch is another permutation, and a batch may span two epochs.

  Args:
    count: examples per epoch, at least 1.
    batch_size: examples per global batch, over all processes.
    seed: 0..2**32 - 1.
    repeats: copies of each example in its global batch, each augmented differently (Hoffer et al. 2020, "Augment your
      batch"; DeiT uses 3). Copies are batch_size / repeats apart, because mixup pairs neighbors.
    process_index: 0..process_count - 1.
    process_count: processes that split each batch.

  Raises:
    UserError: batch_size is not a multiple of process_count or of repeats.
  """
  num_batches = None

  def __init__(self, count: int, *, batch_size: int, seed: int = 0, repeats: int = 1, process_index: int = 0,
               process_count: int = 1):
    self.local_batch_size = _local_batch_size(batch_size, process_index, process_count)
    if repeats < 1 or batch_size % repeats:
      raise UserError(f'data.batch_size: must be a multiple of data.repeats, a positive number; got batch_size '
                      f'{batch_size} and repeats {repeats}')
    start = process_index * self.local_batch_size
    self._copies, self._places = np.divmod(np.arange(start, start + self.local_batch_size), batch_size // repeats)
    self._count, self._distinct = count, batch_size // repeats
    self._shuffle_key, self._augment_key = seed_key(seed, SHUFFLE), seed_key(seed, AUGMENT)

  def __call__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (ids, keys) of batch `number`; see `Order`."""
    ids, epochs = shuffled(number * self._distinct + self._places, self._count, self._shuffle_key)
    return ids, example_keys(ids, epochs, self._copies, self._augment_key)


class EvalOrder:
  """One pass in stored order; every example comes exactly once over all processes.

  All processes see the same number of batches, ceil(count / batch_size); the last may hold fewer examples, or none.
  Random bits are the same in each pass.

  Args:
    count, batch_size, process_index, process_count: see `TrainOrder`.
  """

  def __init__(self, count: int, *, batch_size: int, process_index: int = 0, process_count: int = 1):
    self.local_batch_size = _local_batch_size(batch_size, process_index, process_count)
    self.num_batches = -(-count // batch_size)
    self._count, self._batch_size, self._start = count, batch_size, process_index * self.local_batch_size
    self._augment_key = seed_key(0, AUGMENT)

  def __call__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (ids, keys) of batch `number`; see `Order`."""
    start = number * self._batch_size + self._start
    ids = np.arange(start, min(start + self.local_batch_size, self._count))
    return ids, example_keys(ids, np.zeros_like(ids), np.zeros_like(ids), self._augment_key)


def shuffled(positions: np.ndarray, count: int, key: np.uint64) -> tuple[np.ndarray, np.ndarray]:
  """Return the examples at positions of the endless stream in which each epoch is another permutation.

  The permutation is the swap-or-not shuffle (Hoang, Morris, Rogaway, Crypto 2012). It computes each position
  independently, so reaching the middle of an epoch of any length takes no time and no memory.

  Args:
    positions: (n,) int64, counted from 0 over all epochs.
    count: examples per epoch.
    key: `seed_key(seed, SHUFFLE)`.

  Returns:
    (examples, epochs), (n,) int64 each: indices 0..count - 1, and the epoch of each position.
  """
  epochs, places = np.divmod(positions, count)
  examples, modulus = np.empty_like(places), np.uint64(count)
  present = np.unique(epochs)  # one, or two if a batch spans them
  for epoch, epoch_key in zip(present, splitmix64(present.astype(np.uint64) ^ key), strict=True):
    in_epoch = epochs == epoch
    x = places[in_epoch].astype(np.uint64)
    for round_key in splitmix64(np.arange(_ROUNDS, dtype=np.uint64) ^ epoch_key):
      partners = (round_key % modulus + modulus - x) % modulus
      swapped = splitmix64(np.maximum(x, partners) ^ round_key) >> np.uint64(63)  # equal for both of a pair
      x = np.where(swapped, partners, x)
    examples[in_epoch] = x.astype(np.int64)
  return examples, epochs


def example_keys(examples: np.ndarray, epochs: np.ndarray, copies: np.ndarray, key: np.uint64) -> np.ndarray:
  """Return 64 random bits, (n,) uint64, for each example, epoch and copy, wherever it is in the stream.

  Args:
    examples, epochs, copies: (n,) int64 each, 0 or larger.
    key: `seed_key(seed, AUGMENT)`.
  """
  keys = splitmix64(examples.astype(np.uint64) ^ splitmix64(epochs.astype(np.uint64) ^ key))
  return splitmix64(copies.astype(np.uint64) ^ keys)


def seed_key(seed: int, purpose: int) -> np.uint64:
  """Return the random bits of a seed, 0..2**32 - 1, for SHUFFLE or AUGMENT."""
  return splitmix64(np.array([seed << 8 | purpose], np.uint64))[0]


def splitmix64(x: np.ndarray) -> np.ndarray:
  """Hash uint64 numbers, (n,), one to one: one step of SplitMix64 (Steele, Lea, Flood 2014, figure 16)."""
  x = x + np.uint64(0x9E3779B97F4A7C15)
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def _local_batch_size(batch_size: int, process_index: int, process_count: int) -> int:
  """Return the number of examples per process."""
  if process_count < 1 or not 0 <= process_index < process_count:
    raise ValueError(f'expected 0 <= process_index < process_count, got process_index {process_index} and '
                     f'process_count {process_count}')
  if batch_size < 1 or batch_size % process_count:
    nearest = max(1, round(batch_size / process_count)) * process_count
    raise UserError(f'data.batch_size: must be positive and divisible by the number of processes, {process_count}; '
                    f'got {batch_size}. Try {nearest}.')
  return batch_size // process_count
