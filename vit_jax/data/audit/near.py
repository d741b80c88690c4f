"""Pairs of 64-bit hashes that differ in few bits, found without comparing all with all."""
from collections.abc import Iterator

import numpy as np

RADIUS = 7  # The most bits in which two hashes of a pair may differ.

_BANDS = 4  # Of 16 bits.
_MAX_CANDIDATES = 1 << 22  # Candidates per chunk: about 100 MB.


def pairs_within_radius(hashes: np.ndarray) -> Iterator[np.ndarray]:
  """Yield all pairs of hashes at a Hamming distance of at most RADIUS, each pair once.

  Two hashes that differ in at most 7 bits differ in at most one of the 16 bits of at least one of four bands (two in
  each would be 8). So only hashes with a band that is equal or differs in one bit are compared ("Multi-Index Hashing",
  Norouzi, Punjani and Fleet, arXiv 1307.2982). Of a million random hashes that is about a thousandth of all pairs.

  Args:
    hashes: (N,) uint64.

  Yields:
    (M, 2) int64 indices, the smaller first, in chunks of bounded memory.
  """
  for band in range(_BANDS):
    keys = _band(hashes, band)
    order = np.argsort(keys, kind='stable')
    starts = np.searchsorted(keys[order], np.arange((1 << 16) + 1))
    for flip in [0, *(1 << bit for bit in range(16))]:
      for left, right in _candidates(keys ^ np.uint16(flip), order, starts):
        close = (left < right) & (np.bitwise_count(hashes[left] ^ hashes[right]) <= RADIUS)
        left, right = left[close], right[close]
        seen = np.zeros(len(left), bool)  # by an earlier band
        for earlier in range(band):
          seen |= _bands_match(hashes, left, right, earlier)
        yield np.stack([left[~seen], right[~seen]], 1)


def _candidates(keys: np.ndarray, order: np.ndarray, starts: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yield (left, right) in chunks: every index with all the indices that have its key, by `order` and `starts`."""
  counts = np.diff(starts)[keys]
  ends = np.cumsum(counts)
  begin = 0
  while begin < len(keys):
    before = ends[begin - 1] if begin else 0
    end = max(begin + 1, int(np.searchsorted(ends, before + _MAX_CANDIDATES, side='right')))
    chunk = counts[begin:end]
    left = np.repeat(np.arange(begin, end), chunk)
    within = np.arange(len(left)) - np.repeat(np.cumsum(chunk) - chunk, chunk)
    yield left, order[np.repeat(starts[keys[begin:end]], chunk) + within]
    begin = end


def _bands_match(hashes: np.ndarray, left: np.ndarray, right: np.ndarray, band: int) -> np.ndarray:
  return np.bitwise_count(_band(hashes, band)[left] ^ _band(hashes, band)[right]) <= 1


def _band(hashes: np.ndarray, band: int) -> np.ndarray:
  return (hashes >> np.uint64(16 * band)).astype(np.uint16)
