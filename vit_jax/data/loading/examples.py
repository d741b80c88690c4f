"""From numbers of records to finished examples: read, decode, transform, check the label."""
import itertools
import operator
from typing import Any, Sequence

import numpy as np

from vit_jax.data.images import decode
from vit_jax.data.transforms import spec
from vit_jax.data.sources.base import Source


class Examples:
  """Makes examples of a source; threads may call it at once, and it can be sent to another process.

  Args:
    source: the split.
    image_size: (rows, columns) of every image.
    transform: what is done to the images, a string for `spec.parse`.
    cache: decode the whole split into memory first.

  Raises:
    ValueError: a bad transform, or with `cache` a bad record.
  """

  def __init__(self, source: Source, image_size: tuple[int, int], transform: str, cache: bool):
    self._source, self._transform = source, transform
    self._apply = spec.parse(transform, image_size)
    self.image_shape = (*image_size, source.channels)
    self.label_shape = (source.num_classes,) if source.many_labels else ()
    self._cached = self._read_all() if cache else None

  def __getstate__(self):
    return {key: value for key, value in self.__dict__.items() if key != '_apply'}  # functions cannot be sent

  def __setstate__(self, state):
    self.__dict__.update(state)
    self._apply = spec.parse(self._transform, self.image_shape[:2])

  def __call__(self, ids: Sequence[int], keys: Sequence[int], rows: Sequence[int], images: np.ndarray,
               labels: np.ndarray) -> None:
    """Writes examples into rows of a batch. Copies of one example that follow each other are decoded once.

    Args:
      ids: n records' indices in the split.
      keys: n × 64 random bits, which decide the augmentation.
      rows: n rows of the batch.
      images: (batch, *image_shape) uint8 to write to.
      labels: (batch, *label_shape) int32 to write to.

    Raises:
      ValueError: a record, which is named, cannot be decoded, labelled or transformed.
    """
    groups = [(int(index), list(group)) for index, group in
              itertools.groupby(zip(ids, keys, rows), key=operator.itemgetter(0))]
    for (index, group), record in zip(groups, self._read([index for index, _ in groups])):
      labels[[row for _, _, row in group]] = record['label']
      try:
        image = record['image'] if len(group) == 1 else np.asarray(record['image'])
        for _, key, row in group:
          images[row] = self._apply(image, np.random.Generator(np.random.Philox(key=int(key))))
      except ValueError as error:
        raise self._named(index, error) from error

  def _read(self, ids):
    if self._cached is not None:
      return [self._cached[index] for index in ids]
    return map(self._opened, ids, self._source.read(ids))

  def _read_all(self) -> list[dict[str, Any]]:
    indices = range(len(self._source))
    chunks = [indices[start:start + _CHUNK] for start in indices[::_CHUNK]]
    return [self._decoded(index, record)
            for chunk in chunks for index, record in zip(chunk, self._source.read(chunk))]

  def _decoded(self, index, record):
    record = self._opened(index, record)
    try:
      return dict(record, image=np.asarray(record['image']))
    except ValueError as error:
      raise self._named(index, error) from error

  def _opened(self, index, record):
    """The record with a checked label and an image whose pixels may still be undecoded."""
    try:
      image = decode.open_image(record['image'], self._source.channels, self._source.upright)
      return {'image': image, 'label': _checked_label(record['label'], self._source.num_classes)}
    except ValueError as error:
      raise self._named(index, error) from error

  def _named(self, index, error):
    hint = ''
    if isinstance(error, decode.DecodeError):
      hint = '. Images that cannot be decoded are left out with --config.data.corrupt=skip'
    return ValueError(f'{self._source.describe(index)}: {error}{hint}')


def _checked_label(label: int | list[int], num_classes: int) -> int | np.ndarray:
  """Returns a label, many labels as a vector of 0 and 1, if all are classes."""
  for one in [label] if isinstance(label, int) else label:
    if not 0 <= one < num_classes:
      hint = ' (TFDS stores -1 where a split has no labels: use another split)' if one == -1 else ''
      raise ValueError(f'expected a label in 0..{num_classes - 1}, got {one}{hint}')
  if isinstance(label, int):
    return label
  ones = np.zeros(num_classes, np.int32)
  ones[label] = 1
  return ones


# Records read in one call for the cache: 20 times as fast as one by one, and few enough that the
# encoded ones take no memory to speak of.
_CHUNK = 1024
