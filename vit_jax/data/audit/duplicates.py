"""Which images of a scan are the same or nearly the same, and which of them training should leave out."""
from collections.abc import Iterable, Iterator, Sequence
import dataclasses

import numpy as np
from tqdm import tqdm

from vit_jax.data.audit import near, perceptual
from vit_jax.data.audit.scan import Scan

_CHUNK = 1 << 12  # Pairs of thumbnails compared at once.


@dataclasses.dataclass
class Duplicates:
  """The duplicates of a scan.

  Attributes:
    groups: records that show the same image, linked by exact or near pairs; each group is sorted.
    exact: number of groups with two records of the same pixels.
    same_file: number of groups with two records of the same bytes.
    near: (first, second, similarity) of pairs that are nearly the same, the least similar first.
  """
  groups: list[list[int]]
  exact: int
  same_file: int
  near: list[tuple[int, int, float]]


def find(scan: Scan, similarity: float) -> Duplicates:
  """Group the records of a scan by what they show.

  Exact duplicates have the same size and the same decoded pixels, whatever the encoding. Near duplicates have
  perceptual hashes within `near.RADIUS` bits and thumbnails of at least `similarity`. Plain images, of almost one
  color, are never near duplicates.
  """
  sound = np.flatnonzero(~scan.records['corrupt'])
  _, first, inverse = np.unique(scan.records['pixels'][sound], return_index=True, return_inverse=True)
  parents = np.arange(len(scan.records))
  parents[sound] = sound[first][inverse]  # The first record of the same pixels represents all of them.
  distinct = np.sort(sound[first])
  distinct = distinct[~scan.records['plain'][distinct]]
  pairs = sorted(_near_pairs(scan, distinct, similarity), key=lambda pair: (pair[2], pair[:2]))
  for a, b, _ in pairs:
    low, high = sorted((_root(parents, a), _root(parents, b)))
    parents[high] = low
  groups = _groups(parents, sound)
  count = lambda field: sum(len(set(scan.records[field][group].tolist())) < len(group) for group in groups)
  return Duplicates(groups, exact=count('pixels'), same_file=count('encoded'), near=pairs)


def choose_excluded(scan: Scan, groups: Iterable[list[int]], train: set[int]) -> dict[int, str]:
  """Return {record: reason} of the training records to leave out; records of other splits are never left out.

  All training records of a group are left out if its labels conflict, because we cannot know which is right, and if the
  group has a record in another split, because the model would be tested on what it was trained on. Of any other group,
  all but the first are left out. Corrupt records are left out too.

  Args:
    scan: the dataset.
    groups: see `Duplicates`.
    train: indices of the training splits.
  """
  reasons = {record: 'corrupt' for record in scan.errors if scan.split(record) in train}
  for group in groups:
    inside = [record for record in group if scan.split(record) in train]
    outside = [record for record in group if scan.split(record) not in train]
    if not inside:
      continue
    if len({int(label) for label in scan.records['label'][group]}) > 1:
      reason, excluded = 'conflicting label', inside
    elif outside:
      reason, excluded = 'also in another split', inside
    else:
      reason, excluded = 'duplicate', inside[1:]
    for record in excluded:
      other = _counterpart(scan, record, [*outside, *inside])
      relation = 'same pixels as' if same_pixels(scan, record, other) else 'nearly the same as'
      reasons[record] = (f'{reason}: {relation} {scan.name(other)} '
                         f'({scan.class_names(record)}, {scan.class_names(other)})')
  return reasons


def same_pixels(scan: Scan, a: int, b: int) -> bool:
  """Return whether two records are exact duplicates."""
  return scan.records['pixels'][a] == scan.records['pixels'][b]


def _counterpart(scan: Scan, record: int, group: Sequence[int]) -> int:
  """Return the record of a group to name in a reason: one with another label, if there is one."""
  others = [one for one in group if one != record]
  return next((one for one in others if scan.records['label'][one] != scan.records['label'][record]), others[0])


def _near_pairs(scan: Scan, distinct: np.ndarray, similarity: float) -> Iterator[tuple[int, int, float]]:
  hashes = scan.records['hash'][distinct]
  # disable=None: no progress bar if stderr is not a terminal.
  for pairs in tqdm(near.pairs_within_radius(hashes), desc='Comparing', unit='chunk', disable=None, leave=False):
    for start in range(0, len(pairs), _CHUNK):
      a, b = distinct[pairs[start:start + _CHUNK]].T
      values = perceptual.similarity(scan.thumbnails[a], scan.thumbnails[b])
      for index in np.flatnonzero(values >= similarity):
        yield int(a[index]), int(b[index]), float(values[index])


def _root(parents: np.ndarray, record: int) -> int:
  while parents[record] != record:
    parents[record] = parents[parents[record]]
    record = parents[record]
  return int(record)


def _groups(parents: np.ndarray, sound: np.ndarray) -> list[list[int]]:
  roots = np.array([_root(parents, record) for record in sound], np.int64)
  order = np.argsort(roots, kind='stable')
  cuts = np.flatnonzero(np.diff(roots[order])) + 1
  return [group.tolist() for group in np.split(sound[order], cuts) if len(group) > 1]
