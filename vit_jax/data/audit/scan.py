"""One pass over every record of a dataset, which collects what an audit needs."""
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
import dataclasses
import hashlib
import io
import os
import tempfile
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from vit_jax.data.audit import perceptual
from vit_jax.data.images import decode
from vit_jax.data.sources.base import Record, Source

T = TypeVar('T')
R = TypeVar('R')
Label = tuple[int, ...]

# What is kept per record. Digests are the first 16 bytes of SHA-256; `kind` and `label` are indices into those of
# `Scan`.
RECORD = np.dtype([('encoded', 'S16'), ('pixels', 'S16'), ('hash', np.uint64), ('plain', bool), ('corrupt', bool),
                   ('rows', np.int32), ('columns', np.int32), ('kind', np.int32), ('label', np.int32)])
_CHUNK = 64  # Records per task.


@dataclasses.dataclass
class Scan:
  """The records of a dataset's splits, one split after the other.

  Attributes:
    sources: the splits.
    records: (N,) RECORD; of a corrupt record only `encoded` and `label` are valid.
    thumbnails: (N, 32, 32) uint8, on disk.
    starts: (number of splits + 1,) first index of each split in `records`.
    kinds: format and mode of the images as stored, such as 'JPEG RGB'.
    labels: the labels that occur, each a tuple of classes.
    errors: {record: what is wrong with it}.
  """
  sources: list[Source]
  records: np.ndarray
  thumbnails: np.ndarray
  starts: np.ndarray
  kinds: list[str]
  labels: list[Label]
  errors: dict[int, str]

  def split(self, record: int) -> int:
    """Return the index of the split that a record is in."""
    return int(np.searchsorted(self.starts, record, side='right')) - 1

  def name(self, record: int) -> str:
    """Return a record's stable name, see `Source.record_name`."""
    split = self.split(record)
    return self.sources[split].record_name(int(record - self.starts[split]))

  def image(self, record: int) -> np.ndarray:
    """Return a record's image, decoded again: (H, W, 1 or 3) uint8."""
    split = self.split(record)
    source = self.sources[split]
    return decode.decode(source[int(record - self.starts[split])]['image'], source.channels, source.upright)

  def class_names(self, record: int) -> str:
    """Return the class names of a record, separated by spaces."""
    names = self.sources[0].class_names
    classes = self.labels[self.records['label'][record]]
    return ' '.join(names[label] if 0 <= label < len(names) else str(label) for label in classes) or 'none'


def scan(sources: list[Source], threads: int | None = None) -> Scan:
  """Read and decode all records.

  It takes 60 bytes of memory per record and the images being decoded; thumbnails, 1 KiB each, go to a temporary file.

  Args:
    sources: the splits of one dataset.
    threads: None is one per core.
  """
  starts = np.cumsum([0, *map(len, sources)])
  records = np.zeros(starts[-1], RECORD)
  with tempfile.TemporaryFile() as file:  # Deleted when its mapping is.
    thumbnails = np.memmap(file, np.uint8, 'w+', shape=(max(1, len(records)), *(2 * [perceptual.THUMBNAIL])))
  kinds: _Indices[str] = _Indices()
  labels: _Indices[Label] = _Indices()
  errors = {}
  chunks = [_Chunk(source, start, range(len(source))[first:first + _CHUNK])
            for source, start in zip(sources, starts[:-1].tolist(), strict=True)
            for first in range(0, len(source), _CHUNK)]
  with futures.ThreadPoolExecutor(threads or os.cpu_count()) as pool, tqdm(
      total=len(records), desc='Reading', unit='image', disable=None, leave=False) as bar:
    for chunk, findings in zip(chunks, _map_ahead(pool, _read_chunk, chunks), strict=True):
      for record, found in enumerate(findings, chunk.start + chunk.indices.start):
        records[record] = (*found.fields, kinds.index(found.kind), labels.index(found.label))
        if found.thumbnail is not None:
          thumbnails[record] = found.thumbnail
        if found.error is not None:
          errors[record] = found.error
      bar.update(len(chunk.indices))
  return Scan(sources, records, thumbnails, starts, kinds.values, labels.values, errors)


class _Chunk(NamedTuple):
  """Consecutive records of a source, whose first record is at `start` in the scan."""
  source: Source
  start: int
  indices: range


class _Finding(NamedTuple):
  """What is known of a record: the fields of RECORD but the last two, what these index, and its thumbnail or error."""
  fields: tuple[bytes, bytes, int, bool, bool, int, int]
  kind: str
  label: Label
  thumbnail: np.ndarray | None = None
  error: str | None = None


class _Indices(Generic[T]):
  """Indices of values in the order of their first occurrence."""

  def __init__(self) -> None:
    self.values: list[T] = []
    self._indices: dict[T, int] = {}

  def index(self, value: T) -> int:
    """Return the index of a value, a new one if it is new."""
    if value not in self._indices:
      self._indices[value] = len(self.values)
      self.values.append(value)
    return self._indices[value]


def _map_ahead(pool: futures.Executor, function: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
  """Yield results in order with a bounded number of tasks started; `pool.map` would hold all unfetched results."""
  started, ahead = [], 4 * (os.cpu_count() or 1)
  for task in tasks:
    started.append(pool.submit(function, task))
    if len(started) == ahead:
      yield started.pop(0).result()
  yield from (future.result() for future in started)


def _read_chunk(chunk: _Chunk) -> list[_Finding]:
  source, indices = chunk.source, chunk.indices
  try:
    records: Sequence[Record | OSError] = source.read(indices)
  except OSError:  # One of them cannot be read, such as a file without permission; find out which.
    records = [_read(source, index) for index in indices]
  return [_corrupt(b'', 'unreadable', (), record) if isinstance(record, OSError) else _examine(source, record)
          for record in records]


def _read(source: Source, index: int) -> Record | OSError:
  try:
    return source[index]
  except OSError as error:
    return error


def _corrupt(digest: bytes, kind: str, label: Label, error: Exception) -> _Finding:
  return _Finding((digest, b'', 0, True, True, 0, 0), kind, label, error=str(error))


def _examine(source: Source, record: Record) -> _Finding:
  encoded, label = record['image'], record['label']
  label = (label,) if isinstance(label, int) else tuple(sorted(set(label)))
  digest = hashlib.sha256(encoded).digest()[:16]
  try:
    pixels = decode.decode(encoded, source.channels, source.upright)
  except ValueError as error:
    return _corrupt(digest, 'corrupt', label, error)
  small = perceptual.thumbnail(pixels)
  rows, columns = pixels.shape[:2]
  fields = (digest, hashlib.sha256(b'%d %d ' % (rows, columns) + pixels.tobytes()).digest()[:16],
            perceptual.perceptual_hash(small), perceptual.is_plain(small), False, rows, columns)
  return _Finding(fields, _kind(encoded), label, thumbnail=small)


def _kind(encoded: bytes) -> str:
  with Image.open(io.BytesIO(encoded), formats=decode.FORMATS) as image:  # Reads only the header.
    return f'{image.format} {image.mode}'
