"""The contract of a source: random access to the encoded images and labels of a split.

A kind of source (TFDS, a folder, arrays) implements `Records` and wraps it in a `Source`, which everything else uses.
"""
from collections.abc import Iterable, Mapping, Sequence
from concurrent import futures
import copy
import hashlib
import os
from typing import Any, Protocol, TypedDict, runtime_checkable

from absl import logging
import numpy as np

from vit_jax.base.errors import UserError
from vit_jax.base.machine import retry
from vit_jax.base.text import listing
from vit_jax.data.sources.info import DatasetInfo


class Record(TypedDict):
  """An encoded image and its label.

  Keys:
    image: content of an image file.
    label: class, or with `Source.multi_label` the classes. As stored: it is checked to be in 0..num_classes - 1 when it
      is used.
  """
  image: bytes
  label: int | list[int]


@runtime_checkable
class Records(Protocol):
  """The stored records of a split. Threads may read them at the same time; a list of dicts will do.

  A record that cannot be read is a FileError that names its file; its cause says whether that may pass.

  `records[i]`, 0 <= i < len(records), is a mapping with `image`, the content of an image file, and `label`, a class, or
  `labels`, any number of them; other keys are ignored. If reading many records in one call is faster than one by one,
  there is also `__getitems__(indices) -> sequence of mappings`.
  """

  def __len__(self) -> int: ...

  def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


@runtime_checkable
class ReadsMany(Protocol):
  """Records of which many are read in one call."""

  def __getitems__(self, indices: Sequence[int], /) -> Sequence[Mapping[str, Any]]: ...


@runtime_checkable
class Texts(Protocol):
  """A text per record: a list, or an object that makes them when asked."""

  def __getitem__(self, index: int, /) -> str: ...


def make_fingerprint(values: Iterable[object]) -> str:
  """Return 16 hexadecimal digits that change if the text of any of the values changes.

  >>> make_fingerprint(['train', 3]) == make_fingerprint(['train', '3']), make_fingerprint(['train', 3])
  (True, 'a5afb67dac3b44e6')
  """
  text = '\0'.join(map(str, values)).encode(errors='surrogateescape')
  return hashlib.sha256(text).hexdigest()[:16]


class Source:
  """A labeled split with random access; threads may read it at the same time.

  Args:
    records: what is stored.
    name, split, class_names, channels, multi_label, upright: see Attributes.
    paths: file of each record, for messages; None if records have no files of their own.
    names: name of each record, see `record_name`; None counts them.
    split_fingerprints: see Attributes; None is empty.

  Attributes:
    name: the dataset, as the user named it.
    split: the split, as the user named it, such as `train[:90%]`.
    class_names: name of each class, in order.
    num_classes: number of classes.
    multi_label: whether an image can have any number of classes instead of exactly one.
    channels: channels that images are decoded to: 1 (grayscale) or 3 (color).
    upright: whether images are turned by their EXIF orientation, see `decode`.
    split_fingerprints: for each stored split that records come from, such as `train` for `train[:90%]`, 16 digits that
      change if a name of one of its records would mean another image. Empty if that is unknown.
  """

  def __init__(self, records: Records, *, name: str, split: str, class_names: Sequence[str], channels: int,
               multi_label: bool = False, upright: bool = False, paths: Sequence[str] | None = None,
               names: Texts | None = None, split_fingerprints: Mapping[str, str] | None = None):
    self._records, self._paths, self._names = records, paths, names
    self._indices: Sequence[int] = range(len(records))
    self.name = name
    self.split = split
    self.class_names = tuple(class_names)
    self.num_classes = len(self.class_names)
    self.multi_label = multi_label
    self.channels = channels
    self.upright = upright
    self.split_fingerprints = dict(split_fingerprints or {})

  def __len__(self) -> int:
    return len(self._indices)

  @property
  def info(self) -> DatasetInfo:
    """The numbers of the split that a model and a step need."""
    return DatasetInfo(len(self), self.num_classes, self.channels, self.multi_label)

  @property
  def fingerprint(self) -> str:
    """16 digits that change if an index would map to a different record: other files, or other records left out."""
    kept = hashlib.sha256(np.asarray(self._indices, np.int64).tobytes()).hexdigest()
    return make_fingerprint([self.split, sorted(self.split_fingerprints.items()), kept])

  @property
  def reads_many(self) -> bool:
    """Whether reading many records in one call is faster than one by one."""
    return isinstance(self._records, ReadsMany)

  def __getitem__(self, index: int) -> Record:
    """Return a record; one that cannot be read is tried again if the reason may pass, see `retry`.

    Raises:
      RetryError: it could not be read for about a minute.
      FileError: it cannot be read for another reason.
    """
    stored = self._indices[index]
    try:
      record = self._records[stored]
    except Exception as error:
      record = retry.call(lambda: self._records[stored], f'reading {self.describe(index)}', failed=error)
    return self._to_record(record)

  def read(self, indices: Iterable[int]) -> list[Record]:
    """Return the records at `indices` in one call, which is much faster than one by one from disk; errors as above."""
    indices, records = list(indices), self._records
    if not isinstance(records, ReadsMany):
      return [self[index] for index in indices]
    try:
      found = records.__getitems__([self._indices[index] for index in indices])
    except Exception as error:  # of which record it does not say
      if retry.may_pass(error):
        logging.warning('%s %s: reading %d records: %s; reading them one by one', self.name, self.split, len(indices),
                        retry.explain(error))
      return [self[index] for index in indices]
    return [self._to_record(record) for record in found]

  def _to_record(self, record: Mapping[str, Any]) -> Record:
    """Drop the features that are not used, such as file names."""
    label = [int(label) for label in record['labels']] if self.multi_label else int(record['label'])
    return {'image': record['image'], 'label': label}

  def describe(self, index: int) -> str:
    """Return a description by which a person can find a record: its index in the stored split, and its file."""
    stored = self._indices[index]
    file = f', file {self._paths[stored]}' if self._paths is not None else ''
    return f'record {stored} of dataset {self.name!r}, split {self.split!r}{file}'

  def record_name(self, index: int) -> str:
    """Return a record's name, which is the same in every slice: `train/123`, its index in the stored split, or
    `train/ants/1.jpg`."""
    stored = self._indices[index]
    return f'{self.split}/{stored}' if self._names is None else self._names[stored]

  def file_stamps(self) -> list[tuple[int, int]]:
    """Return (bytes, time of the last change in ns) of each record's file; empty if records have no local files.

    A file that is missing has (-1, -1).

    Raises:
      RetryError: a file could not be looked at for about a minute.
    """
    if self._paths is None or '://' in self._paths[0]:
      return []
    paths = [self._paths[index] for index in self._indices]
    chunks = [paths[start:start + _STAMPS] for start in range(0, len(paths), _STAMPS)]
    with futures.ThreadPoolExecutor(_THREADS) as pool:  # a file server answers many at the same time
      return [stamp for found in pool.map(lambda chunk: [_stamp(path) for path in chunk], chunks) for stamp in found]

  def keep(self, indices: Iterable[int]) -> 'Source':
    """Return a source of the records at `indices`, in that order; `describe` still gives the stored indices.

    >>> records = [{'image': b'', 'label': label} for label in (0, 1, 0)]
    >>> source = Source(records, name='mine', split='all', class_names=['cat', 'dog'], channels=3)
    >>> kept = source.keep([2, 1])
    >>> [record['label'] for record in kept.read([0, 1])], kept.record_name(0)
    ([0, 1], 'all/2')
    """
    kept = copy.copy(self)
    kept._indices = [self._indices[index] for index in indices]
    return kept

  def decoded_to(self, channels: int) -> 'Source':
    """Return a source of the same records whose images are decoded to 1 (grayscale) or 3 channels."""
    changed = copy.copy(self)
    changed.channels = channels
    return changed

  def with_labels(self, labels: Mapping[str, Sequence[int]]) -> 'Source':
    """Return a source of the same records with other labels, any number of them per record.

    Args:
      labels: {file name, without folders: classes}. A record's file name is its feature `file_name` or, without one,
        the end of its `record_name`. Reading a record whose file name is not there raises UserError.

    >>> records = [{'image': b'', 'label': 0, 'file_name': name} for name in ('a.png', 'b.png')]
    >>> source = Source(records, name='mine', split='all', class_names=['cat', 'dog'], channels=3)
    >>> [record['label'] for record in source.with_labels({'a.png': [0, 1], 'b.png': []}).read([0, 1])]
    [[0, 1], []]
    """
    changed = copy.copy(self)
    changed._records = _Relabeled(self._records, self._names, labels, f'{self.name} {self.split}')
    changed.multi_label = True
    return changed


_THREADS, _STAMPS = 16, 512  # files per task


def _stamp(path: str) -> tuple[int, int]:
  try:
    stat = retry.call(lambda: os.stat(path), f'looking at {path}')
  except (FileNotFoundError, NotADirectoryError):
    return -1, -1
  return stat.st_size, stat.st_mtime_ns


class _Relabeled:
  """Records with labels that are looked up by file name."""

  def __init__(self, records: Any, names: Texts | None, labels: Mapping[str, Sequence[int]], where: str):
    self._records, self._names, self._labels, self._where = records, names, labels, where

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> Mapping[str, Any]:
    return self._relabel(self._records[index], index)

  def __getitems__(self, indices: Sequence[int]) -> list[Mapping[str, Any]]:
    read_many = getattr(self._records, '__getitems__', None)
    records = read_many(indices) if read_many else [self._records[index] for index in indices]
    return [self._relabel(record, index) for record, index in zip(records, indices, strict=True)]

  def _relabel(self, record: Mapping[str, Any], index: int) -> Mapping[str, Any]:
    name = record.get('file_name', str(index) if self._names is None else self._names[index])
    name = (name.decode() if isinstance(name, bytes) else name).rpartition('/')[2]
    if name not in self._labels:
      raise UserError(f'labels: none for the file {name!r} of {self._where}; there are some for '
                      f'{listing(self._labels, 2)}')
    return dict(record, labels=self._labels[name])
