"""From a source to batches of uint8 images: shuffle, transform, share among hosts, batch.

Which examples a global batch holds, in which order and how each is augmented depends on the seed
and the position in the stream only, never on the number of processes: process p of n gets the p-th
of n equal, contiguous parts of every global batch. A position is the number of global batches
drawn, the same on all processes, so a run resumes at once, and on any number of hosts.
"""

from typing import Any, Iterable, Sequence

import grain
import numpy as np

from vit_jax.data import augment
from vit_jax.data import decode
from vit_jax.data import spec
from vit_jax.data.facts import Facts
from vit_jax.data.source import Source

Batch = dict[str, np.ndarray]


def train_batches(source: Source, *, batch_size: int, image_size: tuple[int, int],
                  transform: str = 'resize', seed: int = 0, cache: bool = False, threads: int = 2,
                  process_index: int = 0, process_count: int = 1) -> grain.IterDataset:
  """Makes an endless stream of shuffled, augmented batches.

  Each epoch is another permutation of the split; epochs follow each other without a gap, so a
  batch may span two.

  Args:
    source: the split to train on.
    batch_size: examples in a global batch, over all processes.
    image_size: (rows, columns) of every image.
    transform: what is done to the images, a string for `spec.parse`.
    seed: 0..2**32 - 1; order and augmentation follow from it.
    cache: decode the whole split into memory first. It pays where the decoded split fits.
    threads: how many threads make batches ahead; 0 makes them when asked.
    process_index: which process this is, 0..process_count - 1.
    process_count: how many share each batch.

  Returns:
    An iterable. `iter()` gives an iterator with `get_state()`, a small dict for JSON, and
    `set_state(state)`. Batches hold this process's b = batch_size / process_count examples:
      image: (b, *image_size, C) uint8, C = source.channels;
      label: (b,) int32, 0..num_classes - 1, or where the source has many labels an image
        (b, num_classes) int32 of 0 and 1;
      id: (b,) int32, the record's index in the split;
      rng: (b,) uint32, random bits of the example's own, for randomness on the device.
    Drawing a batch raises ValueError, naming the record, where one cannot be decoded, labelled
    or transformed.

  Raises:
    ValueError: a bad transform or number, or with `cache` a bad record.
  """
  share = _share_size(batch_size, process_index, process_count)
  finish = _Finish(source, spec.parse(transform, image_size))
  stream = grain.MapDataset.source(_Records(source, cache)).seed(seed).shuffle().repeat()
  # Random numbers go by position in the global stream: hence before the stream is shared out.
  stream = stream.random_map(finish)
  stream = _Share(stream, batch_size, process_index, share)
  return _read_ahead(stream.batch(share, batch_fn=_stack), threads)


def eval_batches(source: Source, *, batch_size: int, image_size: tuple[int, int],
                 transform: str = 'resize', cache: bool = False, threads: int = 2,
                 process_index: int = 0, process_count: int = 1) -> grain.IterDataset:
  """Makes one pass over the split in order; every example comes exactly once over all processes.

  All processes yield the same number of batches, ceil(len(source) / batch_size), of the same
  shapes. The last is filled up with zeros, which `mask` marks. Each `iter()` is a fresh pass, and
  gives the same values even where the transform is random.

  Args:
    source, batch_size, image_size, transform, cache, threads, process_index, process_count: as for
      `train_batches`.

  Returns:
    An iterable of batches as from `train_batches`, and with
      mask: (b,) bool, True where the example is real.

  Raises:
    ValueError: as for `train_batches`.
  """
  share = _share_size(batch_size, process_index, process_count)
  finish = _Finish(source, spec.parse(transform, image_size))
  padding = _padding(image_size, source)

  def finish_or_pad(record, rng):
    return padding if record is _NO_RECORD else {**finish(record, rng), 'mask': True}

  stream = grain.MapDataset.source(_PaddedRecords(_Records(source, cache), batch_size))
  stream = stream.seed(0).random_map(finish_or_pad)
  stream = _Share(stream, batch_size, process_index, share)
  return _read_ahead(stream.batch(share, batch_fn=_stack), threads)


def batch_shapes(facts: Facts, *, batch_size: int, image_size: tuple[int, int]) -> dict[str, tuple[tuple, Any]]:
  """Returns {name: (shape, dtype)} of a global batch of `train_batches`, without drawing one."""
  rest = {'image': (*image_size, facts.channels), 'label': (facts.num_classes,) if facts.many_labels else ()}
  return {name: ((batch_size, *rest.get(name, ())), dtype) for name, dtype in _DTYPES.items() if name != 'mask'}


class _Records:
  """The decoded, checked records of a source: {'image': (H, W, C) uint8, 'label', 'id'}."""

  def __init__(self, source: Source, cache: bool):
    self._source = source
    self._cached = self._read_all() if cache else None

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> dict[str, Any]:
    if self._cached is not None:
      return self._cached[index]
    return self._decoded(index, self._source[index])

  def _read_all(self) -> list[dict[str, Any]]:
    indices = range(len(self._source))
    chunks = [indices[start:start + _CHUNK] for start in indices[::_CHUNK]]
    return [self._decoded(index, record)
            for chunk in chunks for index, record in zip(chunk, self._source.read(chunk))]

  def _decoded(self, index: int, record: dict[str, Any]) -> dict[str, Any]:
    try:
      image = decode.decode(record['image'], self._source.channels, self._source.upright)
    except ValueError as error:
      hint = ValueError(f'{error}. Images that cannot be decoded are left out with --config.data.corrupt=skip')
      raise _record_error(self._source, index, hint) from error
    try:
      label = _checked_label(record['label'], self._source.num_classes)
    except ValueError as error:
      raise _record_error(self._source, index, error) from error
    return {'image': image, 'label': label, 'id': index}


class _PaddedRecords:
  """Records followed by as many _NO_RECORD as fill the last batch."""

  def __init__(self, records: _Records, batch_size: int):
    self._records = records
    self._length = -(-len(records) // batch_size) * batch_size

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index: int) -> dict[str, Any]:
    return self._records[index] if index < len(self._records) else _NO_RECORD


class _Finish:
  """Transforms a record's image and draws its random bits."""

  def __init__(self, source: Source, transform: augment.Transform):
    self._source = source
    self._transform = transform

  def __call__(self, record: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    # The bits come first, so that they do not depend on what the transform draws.
    bits = rng.bit_generator.random_raw() & 0xFFFFFFFF
    try:
      image = self._transform(record['image'], rng)
    except ValueError as error:
      raise _record_error(self._source, record['id'], error) from error
    return {'image': image, 'label': record['label'], 'id': record['id'], 'rng': bits}


class _Share(grain.MapDataset):
  """One process's contiguous part of each global batch of a stream."""

  def __init__(self, stream: grain.MapDataset, batch_size: int, process_index: int, share: int):
    super().__init__(stream)
    self._batch_size = batch_size
    self._share = share
    self._start = process_index * share

  def __len__(self) -> int:
    return len(self._parent) // self._batch_size * self._share

  def __getitem__(self, index):
    if isinstance(index, slice):
      return self.slice(index)
    batch, row = divmod(index, self._share)
    return self._parent[batch * self._batch_size + self._start + row]


def _read_ahead(batches: grain.MapDataset, threads: int) -> Iterable[Batch]:
  # An element here is a whole batch: two for each thread keep it busy without filling memory.
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
  return batches.to_iter_dataset(options)


def _stack(examples: Sequence[dict[str, Any]]) -> Batch:
  return {key: np.stack([example[key] for example in examples]) if key == 'image'
          else np.array([example[key] for example in examples], dtype)
          for key, dtype in _DTYPES.items() if key in examples[0]}


def _padding(image_size: tuple[int, int], source: Source) -> dict[str, Any]:
  image = np.zeros((*image_size, source.channels), np.uint8)
  label = np.zeros(source.num_classes, np.int32) if source.many_labels else 0
  return {'image': image, 'label': label, 'id': 0, 'rng': 0, 'mask': False}


def _share_size(batch_size: int, process_index: int, process_count: int) -> int:
  if process_count < 1 or not 0 <= process_index < process_count:
    raise ValueError(f'Expected 0 <= process_index < process_count, got process_index '
                     f'{process_index} and process_count {process_count}.')
  if batch_size < 1 or batch_size % process_count:
    nearest = max(1, round(batch_size / process_count)) * process_count
    raise ValueError(
        f'Expected batch_size, which is over all processes, to be a positive multiple of the '
        f'number of processes, {process_count}; got {batch_size}. The nearest is {nearest}.')
  return batch_size // process_count


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


def _record_error(source: Source, index: int, error: ValueError) -> ValueError:
  return ValueError(f'{source.describe(index)}: {error}')


_NO_RECORD = {}

# Records read in one call for the cache: 20 times as fast as one by one, and few enough that the
# encoded ones take no memory to speak of.
_CHUNK = 1024

_DTYPES = {
    'image': np.uint8, 'label': np.int32, 'id': np.int32, 'rng': np.uint32, 'mask': np.bool_,
}
