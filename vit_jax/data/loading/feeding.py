"""Makes batches ahead of their use, by threads or by worker processes.

A batch is cut into pieces of a few examples. Threads decode and resize outside Python's lock, so a few of them fill a few
cores; what is left inside it bounds a process. With workers each thread hands its pieces to a process of its own, which
imports no jax, and copies the pixels out of memory that both share.
"""
from concurrent import futures
import functools
import itertools
import threading

import numpy as np

from vit_jax.data.loading.examples import Examples
from vit_jax.data.loading.worker import Worker


class Job:
  """Examples to be made by a pool, and their number, by which worker processes know them."""

  _numbers = itertools.count()

  def __init__(self, examples: Examples):
    self.examples, self.number = examples, next(self._numbers)


class Pool:
  """Fills batches; `get_pool` shares it among all data of a process.

  Args:
    threads: threads that make examples; 0 makes them when asked for, in the asking thread.
    workers: processes that make examples instead, where more than 0.
  """

  def __init__(self, threads: int, workers: int):
    self.size = workers or threads
    self._workers = bool(workers)
    self._own = threading.local()
    self._executor = futures.ThreadPoolExecutor(self.size, 'vit_jax-data') if self.size else None

  def start(self, job: Job, ids: np.ndarray, keys: np.ndarray):
    """Begins to make examples.

    Args:
      job: what makes them.
      ids, keys: (n,) of each, see `Examples`.

    Returns:
      A function that waits and returns (images, labels); it raises what went wrong.
    """
    images = np.empty((len(ids), *job.examples.image_shape), np.uint8)
    labels = np.empty((len(ids), *job.examples.label_shape), np.int32)
    order = np.argsort(ids, kind='stable')  # copies of one example get into one piece, where they are decoded once
    pieces = [order[begin:begin + PIECE] for begin in range(0, len(ids), PIECE)]
    fill = lambda rows: self._fill(job, ids[rows], keys[rows], rows, images, labels)
    if self._executor is None:
      tasks = [functools.partial(fill, piece) for piece in pieces]
    else:
      tasks = [self._executor.submit(fill, piece).result for piece in pieces]

    def wait():
      for task in tasks:
        task()
      return images, labels

    return wait

  def batches_ahead(self, examples: int) -> int:
    """How many batches of so many examples are begun before they are asked for: one ready, all threads busy."""
    return 1 + -(-self.size * PIECE // examples) if self.size else 0

  def _fill(self, job, ids, keys, rows, images, labels):
    if not self._workers:
      return job.examples(ids, keys, rows, images, labels)
    if not hasattr(self._own, 'worker'):
      self._own.worker = Worker()
    self._own.worker(job, ids, keys, rows, images, labels)


@functools.cache
def get_pool(threads: int, workers: int) -> Pool:
  """The process's pool of this size."""
  return Pool(threads, workers)


# Examples made in one go: enough to pay for handing them over, few enough that all threads work on one batch.
PIECE = 16
