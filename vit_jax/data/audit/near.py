"""Pairs of 64-bit hashes that differ in few bits, without comparing all with all."""

from typing import Iterator

import numpy as np

RADIUS = 7  # The most bits that two hashes of a pair may differ in.

_BANDS = 4  # Of 16 bits.
_EXPANDED = 1 << 22  # Candidates looked at in one go: about 100 MB.


def pairs_within_radius(hashes: np.ndarray) -> Iterator[np.ndarray]:
  """All pairs of hashes at a Hamming distance of at most RADIUS, each once.

  Two hashes that differ in at most 7 bits differ in at most one of the 16 in at least one of four bands (else it were
  8): so only those are compared whose band is equal or differs in one bit ("Multi-Index Hashing", Norouzi, Punjani and
  Fleet, arXiv 1307.2982). Of a million random hashes that is about a thousandth of all pairs.

  Args:
    hashes: (N,) uint64.

  Yields:
    (M, 2) int64 indices, the smaller first, in pieces, so that memory stays bounded.
  """
  for band in range(_BANDS):
    keys = _band(hashes, band)
    order = np.argsort(keys, kind='stable')
    starts = np.searchsorted(keys[order], np.arange((1 << 16) + 1))
    for flip in [0, *(1 << bit for bit in range(16))]:
      for left, right in _expand(keys ^ np.uint16(flip), order, starts):
        close = (left < right) & (np.bitwise_count(hashes[left] ^ hashes[right]) <= RADIUS)
        left, right = left[close], right[close]
        # A pair that an earlier band has found as well is not told again.
        new = ~np.logical_or.reduce([_alike(hashes, left, right, earlier) for earlier in range(band)] or
                                    [np.zeros(len(left), bool)])
        yield np.stack([left[new], right[new]], 1)


def _expand(keys, order, starts):
  """(left, right) in pieces: every index with all those, by `order` and `starts`, of its key."""
  counts = np.diff(starts)[keys]
  ends = np.cumsum(counts)
  begin = 0
  while begin < len(keys):
    before = ends[begin - 1] if begin else 0
    end = max(begin + 1, int(np.searchsorted(ends, before + _EXPANDED, side='right')))
    piece = counts[begin:end]
    left = np.repeat(np.arange(begin, end), piece)
    within = np.arange(len(left)) - np.repeat(np.cumsum(piece) - piece, piece)
    yield left, order[np.repeat(starts[keys[begin:end]], piece) + within]
    begin = end


def _alike(hashes, left, right, band):
  return np.bitwise_count(_band(hashes, band)[left] ^ _band(hashes, band)[right]) <= 1


def _band(hashes, band):
  return (hashes >> np.uint64(16 * band)).astype(np.uint16)
