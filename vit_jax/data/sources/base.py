"""What every data set is to the rest: encoded images with labels, by number."""

import copy
import hashlib
from typing import Any, Iterable, Mapping, Sequence

import numpy as np

from vit_jax.data.sources.info import Facts


def fingerprint(facts: Iterable[Any]) -> str:
  """16 hexadecimal digits that change with any of the facts, taken as text."""
  text = '\0'.join(map(str, facts)).encode(errors='surrogateescape')
  return hashlib.sha256(text).hexdigest()[:16]


class Source:
  """A labelled split with random access; threads may read it at once.

  `source[i]` is `{'image': bytes, 'label': label}`, the image still encoded, 0 <= i < len(source);
  a label is an int, or with `many_labels` a list of ints.
  Labels are as stored: whether they lie in 0..num_classes - 1 is checked where they are used.

  Attributes:
    name: the data set, as asked for.
    split: the split, as asked for, such as `train[:90%]`.
    class_names: a name for each label, in order.
    num_classes: how many there are.
    many_labels: whether an image has any number of classes instead of one.
    channels: what images are decoded to: 1, greyscale, or 3, colour.
    upright: whether an orientation noted in an image's EXIF is applied, see `decode`.
    fingerprints: of each stored split that records come from, such as `train` for `train[:90%]`: 16 digits that
      change where the names of its records no longer mean the same images. Empty where that cannot be told.
  """

  def __init__(self, records: Sequence[dict[str, Any]], *, name: str, split: str,
               class_names: Sequence[str], channels: int, many_labels: bool = False, upright: bool = False,
               paths: Sequence[str] | None = None, names: Sequence[str] | None = None,
               fingerprints: Mapping[str, str] | None = None):
    self._records = records
    self._names = names  # See `record_name`.
    self.fingerprints = dict(fingerprints or {})
    self._paths = paths  # Of each record's file, for messages; None where records have none.
    self._indices = range(len(records))
    self.name = name
    self.split = split
    self.class_names = tuple(class_names)
    self.num_classes = len(self.class_names)
    self.many_labels = many_labels
    self.channels = channels
    self.upright = upright

  def __len__(self) -> int:
    return len(self._indices)

  @property
  def facts(self) -> Facts:
    """What a model and a step need to know of the split."""
    return Facts(len(self), self.num_classes, self.channels, self.many_labels)

  @property
  def numbering(self) -> str:
    """16 digits that change where the numbers 0..len - 1 no longer mean the same records: stored anew, or others left out."""
    kept = hashlib.sha256(np.asarray(self._indices, np.int64).tobytes()).hexdigest()
    return fingerprint([self.split, sorted(self.fingerprints.items()), kept])

  def __getitem__(self, index: int) -> dict[str, Any]:
    return self._strip(self._records[self._indices[index]])

  def read(self, indices: Sequence[int]) -> list[dict[str, Any]]:
    """Returns the records at `indices` in one call, much faster than one by one from disk."""
    indices = [self._indices[index] for index in indices]
    read = getattr(self._records, '__getitems__', None)  # Plain lists have none.
    records = read(indices) if read else [self._records[index] for index in indices]
    return [self._strip(record) for record in records]

  def _strip(self, record: dict[str, Any]) -> dict[str, Any]:
    """Leaves out the features that nobody uses, such as file names."""
    label = [int(label) for label in record['labels']] if self.many_labels else int(record['label'])
    return {'image': record['image'], 'label': label}

  def describe(self, index: int) -> str:
    """Names a record so that a person finds it: its number in the stored split, and its file."""
    stored = self._indices[index]
    file = f', file {self._paths[stored]}' if self._paths is not None else ''
    return f'Record {stored} of data set {self.name!r}, split {self.split!r}{file}'

  def record_name(self, index: int) -> str:
    """A record's name, the same in every slice: `train/123`, counted in the stored split, or `train/ants/1.jpg`."""
    stored = self._indices[index]
    return f'{self.split}/{stored}' if self._names is None else self._names[stored]

  def keep(self, indices: Sequence[int]) -> 'Source':
    """Returns the part at `indices`, in that order; `describe` still gives the stored numbers."""
    kept = copy.copy(self)
    kept._indices = [self._indices[index] for index in indices]
    return kept

  def decoded_to(self, channels: int) -> 'Source':
    """Returns the same records, to be decoded to 1 (greyscale) or 3 channels."""
    changed = copy.copy(self)
    changed.channels = channels
    return changed
