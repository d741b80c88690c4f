"""From a source to batches of uint8 images: shuffle, share among hosts, make ahead, resume.

Which examples a global batch holds, in which order and how each is augmented depends on the seed, the epoch and the
example only, never on the number of processes, threads or workers: process p of n gets the p-th of n equal, contiguous
parts of every global batch. A position is the number of global batches drawn, the same on all processes, so a run
resumes at once, and on any number of hosts.
"""
import collections

import numpy as np

from vit_jax.data.loading import feeding
from vit_jax.data.loading.examples import Examples
from vit_jax.data.sources.info import Facts
from vit_jax.data.loading.order import mix, Order
from vit_jax.data.sources.base import Source

Batch = dict[str, np.ndarray]


def train_batches(source: Source, *, batch_size: int, image_size: tuple[int, int], transform: str = 'resize',
                  seed: int = 0, cache: bool = False, repeats: int = 1, threads: int = 2, workers: int = 0,
                  process_index: int = 0, process_count: int = 1) -> 'Batches':
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
    repeats: how often each example drawn is in its global batch, each time with another
      augmentation (Hoffer et al. 2020, "Augment your batch"; DeiT takes 3). Copies lie batch_size /
      repeats apart, so that no two are neighbours, whom mixup would pair.
    threads: threads that make batches ahead; 0 makes them when asked for.
    workers: processes that make them instead; 0 leaves it to the threads.
    process_index: which process this is, 0..process_count - 1.
    process_count: how many share each batch.

  Returns:
    Batches, without end. They hold this process's b = batch_size / process_count examples:
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
  if repeats < 1 or batch_size % repeats:
    raise ValueError(f'Expected batch_size to be a multiple of repeats, a positive number; got batch_size '
                     f'{batch_size} and repeats {repeats}.')
  job = feeding.Job(Examples(source, image_size, transform, cache))
  order, drawn = Order(len(source), seed), batch_size // repeats

  def plan(batch):
    copies, places = np.divmod(np.arange(process_index * share, (process_index + 1) * share), drawn)
    ids, epochs = order(batch * drawn + places)
    return ids, order.keys(ids, epochs, copies), {}

  return Batches(plan, job, feeding.get_pool(threads, workers), share, None)


def eval_batches(source: Source, *, batch_size: int, image_size: tuple[int, int], transform: str = 'resize',
                 cache: bool = False, threads: int = 2, workers: int = 0, process_index: int = 0,
                 process_count: int = 1) -> 'Batches':
  """Makes one pass over the split in order; every example comes exactly once over all processes.

  All processes yield the same number of batches, ceil(len(source) / batch_size), of the same
  shapes. The last is filled up with zeros, which `mask` marks. Each `iter()` is a fresh pass, and
  gives the same values even where the transform is random.

  Args:
    source, batch_size, image_size, transform, cache, threads, workers, process_index, process_count:
      as for `train_batches`.

  Returns:
    Batches as from `train_batches`, and with
      mask: (b,) bool, True where the example is real.

  Raises:
    ValueError: as for `train_batches`.
  """
  share = _share_size(batch_size, process_index, process_count)
  job = feeding.Job(Examples(source, image_size, transform, cache))
  order = Order(len(source), seed=0, shuffled=False)

  def plan(batch):
    start = batch * batch_size + process_index * share
    mask = np.arange(start, start + share) < len(source)
    ids, epochs = order(np.arange(start, min(start + share, len(source))))
    return ids, order.keys(ids, epochs, np.zeros_like(ids)), {'mask': mask}

  return Batches(plan, job, feeding.get_pool(threads, workers), share, -(-len(source) // batch_size))


def batch_shapes(facts: Facts, *, batch_size: int, image_size: tuple[int, int]) -> dict[str, tuple[tuple, type]]:
  """Returns {name: (shape, dtype)} of a global batch of `train_batches`, without making one."""
  label = (facts.num_classes,) if facts.many_labels else ()
  each = {'image': ((*image_size, facts.channels), np.uint8), 'label': (label, np.int32), 'id': ((), np.int32),
          'rng': ((), np.uint32)}
  return {name: ((batch_size, *shape), dtype) for name, (shape, dtype) in each.items()}


class Batches:
  """Batches that can be gone through any number of times, each time from the start.

  Args:
    plan: number of a batch → (ids, keys, arrays that the batch gets as they are).
    job: what makes its examples.
    pool: which makes them ahead.
    share: examples in a batch of this process; where a plan has fewer, zeros are added.
    count: how many batches there are; None is without end.
  """

  def __init__(self, plan, job: feeding.Job, pool: feeding.Pool, share: int, count: int | None):
    self._plan, self._job, self._pool, self._share, self._count = plan, job, pool, share, count

  def __len__(self) -> int:
    if self._count is None:
      raise TypeError('These batches have no end.')
    return self._count

  def __iter__(self) -> 'Iterator':
    return Iterator(self)

  def start(self, number: int):
    """Begins to make batch `number`; returns a function that waits for it, or None past the end."""
    if self._count is not None and number >= self._count:
      return None
    ids, keys, extra = self._plan(number)
    wait = self._pool.start(self._job, ids, keys)

    def finish():
      images, labels = wait()
      batch = dict(image=images, label=labels, id=ids.astype(np.int32),
                   rng=(mix(keys) & np.uint64(0xFFFFFFFF)).astype(np.uint32))
      if len(ids) < self._share:
        batch = {key: _filled_up(value, self._share) for key, value in batch.items()}
      return batch | extra

    return finish

  @property
  def bytes_ahead(self) -> int:
    """Memory for the images that are made ahead, with the batch in use."""
    examples = self._job.examples
    return (1 + self._pool.batches_ahead(self._share)) * self._share * int(np.prod(examples.image_shape))

  @property
  def ahead(self) -> int:
    """Batches that are begun before they are asked for."""
    return self._pool.batches_ahead(self._share)


class Iterator:
  """A pass through batches, which can be told where to be."""

  def __init__(self, batches: Batches):
    self._batches, self._next, self._begun = batches, 0, collections.deque()

  def __iter__(self) -> 'Iterator':
    return self

  def __next__(self) -> Batch:
    while len(self._begun) <= self._batches.ahead:
      self._begun.append(self._batches.start(self._next + len(self._begun)))
    if self._begun[0] is None:
      raise StopIteration
    batch = self._begun[0]()
    self._begun.popleft()
    self._next += 1
    return batch

  def get_state(self) -> dict[str, int]:
    """The position, for JSON: how many global batches were drawn."""
    return {'next_index': self._next}

  def set_state(self, state: dict[str, int]) -> None:
    """Goes to a position, of any process, at once."""
    self._next = state['next_index']
    self._begun.clear()


def _filled_up(values: np.ndarray, length: int) -> np.ndarray:
  filled = np.zeros((length, *values.shape[1:]), values.dtype)
  filled[:len(values)] = values
  return filled


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
