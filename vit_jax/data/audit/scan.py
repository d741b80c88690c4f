"""Reads every record of a split once and notes what an audit wants to know of it."""

from concurrent import futures
import dataclasses
import hashlib
import io
import os
import tempfile

import numpy as np
from PIL import Image
from tqdm import tqdm

from vit_jax.data.images import decode
from vit_jax.data.audit import perceptual
from vit_jax.data.sources.base import Source

# What is noted of a record: digests are the first 16 bytes of SHA-256. `kind` and `label` are numbers in `Scan`.
RECORD = np.dtype([('encoded', 'S16'), ('pixels', 'S16'), ('hash', np.uint64), ('plain', bool), ('corrupt', bool),
                   ('rows', np.int32), ('columns', np.int32), ('kind', np.int32), ('label', np.int32)])


@dataclasses.dataclass
class Scan:
  """Splits of a data set, one after the other.

  Attributes:
    sources: the splits.
    records: (N,) RECORD; of a corrupt one only `encoded` and `label` count.
    thumbnails: (N, 32, 32) uint8, on disk.
    starts: (number of splits + 1,) where each split starts in `records`.
    kinds: format and mode of the images as stored, such as 'JPEG RGB'.
    labels: the labels that occur: each a tuple of classes.
    errors: {record: what is wrong with it}.
  """
  sources: list[Source]
  records: np.ndarray
  thumbnails: np.ndarray
  starts: np.ndarray
  kinds: list[str]
  labels: list[tuple[int, ...]]
  errors: dict[int, str]

  def split(self, record: int) -> int:
    """Which split a record is in."""
    return int(np.searchsorted(self.starts, record, side='right')) - 1

  def name(self, record: int) -> str:
    """A record's stable name, see `Source.record_name`."""
    split = self.split(record)
    return self.sources[split].record_name(int(record - self.starts[split]))

  def image(self, record: int) -> np.ndarray:
    """A record's image, decoded again: (H, W, 1 or 3) uint8."""
    split = self.split(record)
    source = self.sources[split]
    return decode.decode(source[int(record - self.starts[split])]['image'], source.channels, source.upright)

  def class_names(self, record: int) -> str:
    """The classes of a record, as text."""
    names = self.sources[0].class_names
    classes = self.labels[self.records['label'][record]]
    return ' '.join(names[label] if 0 <= label < len(names) else str(label) for label in classes) or 'none'


def scan(sources: list[Source], threads: int | None = None) -> Scan:
  """Reads and decodes all records.

  Memory is 60 bytes a record and the images in work; thumbnails, 1 KiB each, go to a temporary file.

  Args:
    sources: the splits, of one data set.
    threads: None is one a core.
  """
  starts = np.cumsum([0, *map(len, sources)])
  records = np.zeros(starts[-1], RECORD)
  with tempfile.TemporaryFile() as file:  # Gone with the map of it.
    thumbnails = np.memmap(file, np.uint8, 'w+', shape=(max(1, len(records)), *(2 * [perceptual.THUMBNAIL])))
  kinds, labels, errors = _Numbered(), _Numbered(), {}
  chunks = [(source, start, range(len(source))[first:first + _CHUNK])
            for source, start in zip(sources, starts) for first in range(0, len(source), _CHUNK)]
  with futures.ThreadPoolExecutor(threads or os.cpu_count()) as pool, tqdm(
      total=len(records), desc='Reading', unit='image', disable=None, leave=False) as bar:
    for (_, start, indices), facts in zip(chunks, _in_order(pool, _read_chunk, chunks)):
      for record, (fields, kind, label, small, error) in enumerate(facts, start + indices.start):
        records[record] = (*fields, kinds.number(kind), labels.number(label))
        if error is None:
          thumbnails[record] = small
        else:
          errors[record] = error
      bar.update(len(indices))
  return Scan(sources, records, thumbnails, starts, kinds.values, labels.values, errors)


class _Numbered:
  """Gives values numbers in the order they come."""

  def __init__(self):
    self.values, self._numbers = [], {}

  def number(self, value):
    """The number of a value."""
    if value not in self._numbers:
      self._numbers[value] = len(self.values)
      self.values.append(value)
    return self._numbers[value]


def _in_order(pool, function, tasks):
  """Results in order, with a bounded number of tasks begun: a map would hold all that wait to be fetched."""
  begun, ahead = [], 4 * (os.cpu_count() or 1)
  for task in tasks:
    begun.append(pool.submit(function, task))
    if len(begun) == ahead:
      yield begun.pop(0).result()
  yield from (future.result() for future in begun)


def _read_chunk(task):
  source, _, indices = task
  try:
    records = source.read(indices)
  except OSError:  # One of them cannot be read, such as a file without permission: which?
    records = [_read(source, index) for index in indices]
  return [_unreadable(record) if isinstance(record, OSError) else _facts(source, record) for record in records]


def _read(source, index):
  try:
    return source[index]
  except OSError as error:
    return error


def _unreadable(error):
  return (b'', b'', 0, True, True, 0, 0), 'unreadable', (), None, str(error)


def _facts(source, record):
  """(fields of RECORD but the last two, kind, label, thumbnail, error) of a record."""
  encoded, label = record['image'], record['label']
  label = tuple(sorted(set(label))) if source.many_labels else (label,)
  digest = hashlib.sha256(encoded).digest()[:16]
  try:
    pixels = decode.decode(encoded, source.channels, source.upright)
  except ValueError as error:
    return (digest, b'', 0, True, True, 0, 0), 'corrupt', label, None, str(error)
  small = perceptual.thumbnail(pixels)
  rows, columns = pixels.shape[:2]
  fields = (digest, hashlib.sha256(b'%d %d ' % (rows, columns) + pixels.tobytes()).digest()[:16],
            perceptual.perceptual_hash(small), perceptual.is_plain(small), False, rows, columns)
  return fields, _kind(encoded), label, small, None


def _kind(encoded):
  with Image.open(io.BytesIO(encoded), formats=decode.FORMATS) as image:  # Reads the header only.
    return f'{image.format} {image.mode}'


_CHUNK = 64  # Records a task.
