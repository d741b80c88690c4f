"""The loader: batches made ahead of their use, with a position that a resumed run returns to.

`train_batches` and `eval_batches` build one. An order decides which examples a batch holds, an example maker makes
them, and a pool of threads or worker processes does that ahead of use, in chunks of a few examples.
"""
import collections
from concurrent import futures
import dataclasses
import math

import numpy as np

from vit_jax.base.machine import host_memory
from vit_jax.data.loading.batch import Batch
from vit_jax.data.loading.examples import ExampleMaker
from vit_jax.data.loading.order import EvalOrder, Order, TrainOrder, splitmix64
from vit_jax.data.loading.pool import Pool, shared_pool
from vit_jax.data.sources.base import Source

# Examples per task: enough to pay for the overhead of a task, few enough that all threads work on one batch.
_CHUNK = 16


@dataclasses.dataclass(frozen=True)
class Loader:
  """Batches of a split; each `iter()` is a pass from the start.

  Attributes:
    order: which examples each batch holds.
    make: makes them.
    pool: where it makes them.
  """
  order: Order
  make: ExampleMaker
  pool: Pool

  def __len__(self) -> int:
    if self.order.num_batches is None:
      raise TypeError('the batches are endless')
    return self.order.num_batches

  def __iter__(self) -> 'BatchIterator':
    """Start a pass; raise UserError if the batches made ahead do not fit into memory."""
    host_memory.check_fits(self.bytes_ahead, f'data.batch_size: {self.batches_ahead + 1} batches of '
                           f'{self.order.local_batch_size:,} images')
    return BatchIterator(self)

  @property
  def batches_ahead(self) -> int:
    """Batches that are started before they are needed."""
    return batches_ahead(self.pool.size, self.order.local_batch_size)

  @property
  def bytes_ahead(self) -> int:
    """Memory for the images of the batches made ahead and the one in use, in bytes."""
    return (1 + self.batches_ahead) * self.order.local_batch_size * math.prod(self.make.image_shape)


class BatchIterator:
  """Iterator over batches with a restorable position; the methods for it are named as in Grain."""

  def __init__(self, loader: Loader):
    self._order, self._make = loader.order, loader.make
    self._executor, self._task = loader.pool.executor, loader.pool.task(loader.make)
    self._ahead = loader.batches_ahead
    self._end = math.inf if loader.order.num_batches is None else loader.order.num_batches
    self._next = 0
    self._started: collections.deque[tuple[Batch, list[futures.Future]]] = collections.deque()  # from self._next on

  def __iter__(self) -> 'BatchIterator':
    return self

  def __next__(self) -> Batch:
    while len(self._started) <= self._ahead and self._next + len(self._started) < self._end:
      self._started.append(self._start(self._next + len(self._started)))
    if not self._started:
      raise StopIteration
    batch, chunks = self._started[0]
    for chunk in chunks:
      chunk.result()
    self._started.popleft()  # only now: after an error the position is still that of the failed batch
    self._next += 1
    return batch

  def _start(self, number: int) -> tuple[Batch, list[futures.Future]]:
    """Start to make a batch; it is complete once all futures, one per chunk, are done."""
    ids, keys = self._order(number)
    count, size = len(ids), self._order.local_batch_size
    rng = (splitmix64(keys) & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    batch = Batch(image=np.empty((size, *self._make.image_shape), np.uint8),
                  label=np.empty((size, *self._make.label_shape), np.int32),
                  id=np.pad(ids.astype(np.int32), (0, size - count)), rng=np.pad(rng, (0, size - count)))
    batch['image'][count:] = batch['label'][count:] = 0
    if self._order.num_batches is not None:
      batch['mask'] = np.arange(size) < count
    rows = np.argsort(ids, kind='stable')  # copies of an example go into the same chunk, where it is decoded once
    chunks = [rows[start:start + _CHUNK] for start in range(0, count, _CHUNK)]
    return batch, [self._executor.submit(self._task, ids[chunk], keys[chunk], chunk, batch['image'], batch['label'])
                   for chunk in chunks]

  def get_state(self) -> dict[str, int]:
    """Return the position, for JSON: the number of global batches fetched, the same on all processes."""
    return {'next_index': self._next}

  def set_state(self, state: dict[str, int]) -> None:
    """Move to a position, of any process, at once."""
    self._next = state['next_index']
    self._started.clear()


def batches_ahead(pool_size: int, local_batch_size: int) -> int:
  """Return the number of batches to start ahead, so that all threads are busy and one more batch is ready."""
  return 1 + math.ceil(pool_size * _CHUNK / local_batch_size) if pool_size else 0


def train_batches(source: Source, *, batch_size: int, image_size: tuple[int, int], transform: str = 'resize',
                  seed: int = 0, cache: bool = False, repeats: int = 1, threads: int = 2, workers: int = 0,
                  process_index: int = 0, process_count: int = 1) -> Loader:
  """Return an endless stream of shuffled, augmented batches.

  Args:
    source: the split to train on.
    batch_size, seed, repeats, process_index, process_count: see `TrainOrder`.
    image_size, transform, cache: see `ExampleMaker`; caching pays if the decoded split fits into memory.
    threads, workers: see `Pool`.

  Returns:
    A loader of `Batch`es. Fetching one raises UserError, naming the record, if an example cannot be made.

  Raises:
    UserError: a bad transform or number, or with `cache` a bad record.
  """
  order = TrainOrder(len(source), batch_size=batch_size, seed=seed, repeats=repeats, process_index=process_index,
                     process_count=process_count)
  return Loader(order, ExampleMaker(source, image_size, transform, cache), shared_pool(threads, workers))


def eval_batches(source: Source, *, batch_size: int, image_size: tuple[int, int], transform: str = 'resize',
                 cache: bool = False, threads: int = 2, workers: int = 0, process_index: int = 0,
                 process_count: int = 1) -> Loader:
  """Return one pass over a split in stored order; every example comes exactly once over all processes.

  All processes get the same number of batches, ceil(len(source) / batch_size), of the same shapes. The last batch is
  filled up with zeros, which `mask` marks. Each `iter()` is a fresh pass with the same values, even if the transform is
  random.

  Args, Returns, Raises: see `train_batches`.
  """
  order = EvalOrder(len(source), batch_size=batch_size, process_index=process_index, process_count=process_count)
  return Loader(order, ExampleMaker(source, image_size, transform, cache), shared_pool(threads, workers))
