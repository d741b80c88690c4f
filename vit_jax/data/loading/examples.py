"""From indices of records to finished examples: read, decode, transform, check the label."""
from collections.abc import Callable, Sequence
import itertools
import operator
from typing import Any

import numpy as np

from vit_jax.base.errors import UserError
from vit_jax.base.text import listing
from vit_jax.data.images import decode
from vit_jax.data.sources.base import Record, Source
from vit_jax.data.transforms import spec

# Records per read when the cache is filled: 20 times as fast as one by one, and the encoded records take little memory.
_CHUNK = 1024


class ExampleMaker:
  """Makes examples of a source; threads may share it, and it can be pickled for another process.

  Args:
    source: the split.
    image_size: (rows, columns) of every image.
    transform: image transforms, a string for `spec.parse`.
    cache: whether to decode the whole split into memory first.

  Attributes:
    number: identifies the maker within this process and its workers.
    image_shape: (rows, columns, channels) of every image.
    label_shape: () for one class per image, (num_classes,) for multi-label sources.

  Raises:
    UserError: a bad transform, or with `cache` a bad record.
  """
  _numbers = itertools.count()

  def __init__(self, source: Source, image_size: tuple[int, int], transform: str, cache: bool = False):
    self.number = next(self._numbers)
    self._source, self._spec = source, transform
    self._transform = spec.parse(transform, image_size)
    self.image_shape = (*image_size, source.channels)
    self.label_shape = (source.num_classes,) if source.multi_label else ()
    self._cache = self._decode_all() if cache else None

  def __getstate__(self) -> dict[str, Any]:
    return {key: value for key, value in self.__dict__.items() if key != '_transform'}  # functions cannot be pickled

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._transform = spec.parse(self._spec, self.image_shape[:2])

  def __call__(self, ids: Sequence[int], keys: Sequence[int], rows: Sequence[int], images: np.ndarray,
               labels: np.ndarray, at: Callable[[int], None] | None = None) -> None:
    """Write examples into rows of a batch; consecutive copies of an example are decoded once.

    Args:
      ids: n indices of records in the split.
      keys: n × 64 random bits, which determine the augmentation.
      rows: n rows of the batch.
      images: (batch, *image_shape) uint8 to write to.
      labels: (batch, *label_shape) int32 to write to.
      at: if given, called with the row of each record before it is read, or decoded if all are read at once.

    Raises:
      UserError: a record, named in the message, cannot be decoded or transformed, or its label is no class.
    """
    groups = [(int(index), list(group)) for index, group in
              itertools.groupby(zip(ids, keys, rows, strict=True), key=operator.itemgetter(0))]
    # Someone who watches wants to know which read does not return; one by one takes as long unless many are one read.
    at_once = self._cache is None and (at is None or self._source.reads_many)
    records = self._source.read([index for index, _ in groups]) if at_once else None
    for place, (index, group) in enumerate(groups):
      if at is not None:
        at(group[0][2])
      # Outside of `try`: errors of reading name the record already.
      record = records[place] if records else None if self._cache else self._source[index]
      try:
        image, label = self._open(record) if record else self._decoded(index)
        labels[[row for _, _, row in group]] = label
        image = image if len(group) == 1 else np.asarray(image)
        for _, key, row in group:
          images[row] = self._transform(image, np.random.Generator(np.random.Philox(key=int(key))))
      except ValueError as error:
        raise self._name_record(index, error) from error

  def describe(self, ids: Sequence[int]) -> str:
    """Return a description of records by which a person can find them, of three at most."""
    return listing([self._source.describe(index) for index in dict.fromkeys(ids)], 3, separator='; ')

  def _decode_all(self) -> list[tuple[np.ndarray, int | np.ndarray]]:
    """Return the pixels and label of every record."""
    decoded = []
    for start in range(0, len(self._source), _CHUNK):
      indices = range(len(self._source))[start:start + _CHUNK]
      for index, record in zip(indices, self._source.read(indices), strict=True):
        try:
          image, label = self._open(record)
          decoded.append((np.asarray(image), label))
        except ValueError as error:
          raise self._name_record(index, error) from error
    return decoded

  def _decoded(self, index: int) -> tuple[np.ndarray, int | np.ndarray]:
    assert self._cache is not None
    return self._cache[index]

  def _open(self, record: Record) -> tuple[decode.Picture | np.ndarray, int | np.ndarray]:
    """Return the image, whose pixels may not be decoded yet, and the label, several classes as a vector of 0 and 1."""
    image = decode.open_image(record['image'], self._source.channels, self._source.upright)
    label, num_classes = record['label'], self._source.num_classes
    for index in [label] if isinstance(label, int) else label:
      if not 0 <= index < num_classes:
        hint = ' (TFDS stores -1 if a split has no labels: use another split)' if index == -1 else ''
        raise UserError(f'expected a label in 0..{num_classes - 1}, got {index}{hint}')
    if isinstance(label, int):
      return image, label
    ones = np.zeros(num_classes, np.int32)
    ones[label] = 1
    return image, ones

  def _name_record(self, index: int, error: ValueError) -> UserError:
    """Return the error with the record's name."""
    hint = ''
    if isinstance(error, decode.DecodeError):
      hint = ('. Bring back the image, then start the same command again; a new run leaves out images that cannot be '
              'decoded with --config.data.corrupt=skip, and others with --config.data.exclude')
    return UserError(f'{self._source.describe(index)}: {error}{hint}')
