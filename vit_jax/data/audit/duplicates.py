"""Which images of a scan are the same, or nearly, and which of them a training run should leave out."""

import dataclasses
from typing import Iterable

import numpy as np
from tqdm import tqdm

from vit_jax.data.audit import near
from vit_jax.data.audit import perceptual
from vit_jax.data.audit.scan import Scan

_CHUNK = 1 << 12  # Pairs of thumbnails compared at once.


@dataclasses.dataclass
class Duplicates:
  """What is alike.

  Attributes:
    groups: of records, each sorted, that show the same image: linked by pairs of either sort.
    exact: how many groups hold two records with the same pixels.
    same_file: how many hold two records with the same bytes.
    near: (first, second, similarity) of pairs that are nearly the same, the least alike first.
  """
  groups: list[list[int]]
  exact: int
  same_file: int
  near: list[tuple[int, int, float]]


def find(scan: Scan, similarity: float) -> Duplicates:
  """Groups the records of a scan by what they show.

  Exact duplicates have the same size and the same decoded pixels, whatever the encoding. Near ones have perceptual
  hashes within `near.RADIUS` bits and thumbnails of at least `similarity`. Plain images, almost of one
  colour, are only ever exact duplicates.
  """
  sound = np.flatnonzero(~scan.records['corrupt'])
  _, first, inverse = np.unique(scan.records['pixels'][sound], return_index=True, return_inverse=True)
  parents = np.arange(len(scan.records))
  parents[sound] = sound[first][inverse]  # The first of the same pixels stands for them.
  distinct = np.sort(sound[first])
  distinct = distinct[~scan.records['plain'][distinct]]
  pairs = sorted(_near(scan, distinct, similarity), key=lambda pair: (pair[2], pair[:2]))
  for a, b, _ in pairs:
    low, high = sorted((_root(parents, a), _root(parents, b)))
    parents[high] = low
  groups = _groups(parents, sound)
  count = lambda field: sum(len(set(scan.records[field][group].tolist())) < len(group) for group in groups)
  return Duplicates(groups, exact=count('pixels'), same_file=count('encoded'), near=pairs)


def dropped(scan: Scan, groups: Iterable[list[int]], train: set[int]) -> dict[int, str]:
  """Which records of the training splits to leave out, and why. Those of other splits are never touched.

  Of a group whose records disagree on the class, all: nobody knows which is right. Of one with a record in another
  split, all: else the model is tested on what it was trained on. Of any other, all but the first. And what is corrupt.

  Args:
    scan: of the data set.
    groups: see `Duplicates`.
    train: the numbers of the training splits.
  """
  reasons = {record: 'corrupt' for record in scan.errors if scan.split(record) in train}
  for group in groups:
    inside = [record for record in group if scan.split(record) in train]
    outside = [record for record in group if scan.split(record) not in train]
    if not inside:
      continue
    if len({int(label) for label in scan.records['label'][group]}) > 1:
      reason, out = 'conflicting label', inside
    elif outside:
      reason, out = 'also in another split', inside
    else:
      reason, out = 'duplicate', inside[1:]
    for record in out:
      other = _reference(scan, record, [*outside, *inside])
      sort = 'same pixels as' if same_pixels(scan, record, other) else 'nearly the same as'
      reasons[record] = f'{reason}: {sort} {scan.name(other)} ({scan.class_names(record)}, {scan.class_names(other)})'
  return reasons


def same_pixels(scan: Scan, a: int, b: int) -> bool:
  """Whether two records are exact duplicates."""
  return scan.records['pixels'][a] == scan.records['pixels'][b]


def _reference(scan, record, group):
  """The record of a group that a reason names: one of another class, where there is one."""
  others = [one for one in group if one != record]
  return next((one for one in others if scan.records['label'][one] != scan.records['label'][record]), others[0])


def _near(scan, distinct, similarity):
  hashes = scan.records['hash'][distinct]
  # disable=None: no progress line where stderr is no terminal.
  for pairs in tqdm(near.pairs_within_radius(hashes), desc='Comparing', unit='piece', disable=None, leave=False):
    for start in range(0, len(pairs), _CHUNK):
      a, b = distinct[pairs[start:start + _CHUNK]].T
      values = perceptual.similarity(scan.thumbnails[a], scan.thumbnails[b])
      for index in np.flatnonzero(values >= similarity):
        yield int(a[index]), int(b[index]), float(values[index])


def _root(parents, record):
  while parents[record] != record:
    parents[record] = parents[parents[record]]
    record = parents[record]
  return int(record)


def _groups(parents, sound):
  roots = np.array([_root(parents, record) for record in sound], np.int64)
  order = np.argsort(roots, kind='stable')
  cuts = np.flatnonzero(np.diff(roots[order])) + 1
  return [group.tolist() for group in np.split(sound[order], cuts) if len(group) > 1]
