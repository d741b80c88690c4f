"""Threads or worker processes that make examples.

Threads decode and resize without Python's lock, so a few of them keep a few cores busy; the work that needs the lock limits
what one process can do. With workers, each thread passes its examples to a process of its own, which imports no jax, and
copies the pixels from memory that both share.
"""
from collections.abc import Callable, Sequence
from concurrent import futures
import functools
import threading

import numpy as np

from vit_jax.data.loading.examples import ExampleMaker
from vit_jax.data.loading.worker import Worker


class Pool:
  """Threads that make examples, or that have worker processes make them; `shared_pool` returns the process's own.

  Args:
    threads: number of threads; 0 makes examples in the thread that waits for them.
    workers: number of worker processes; if more than 0, they replace the threads.

  Attributes:
    size: examples that can be in the making at once.
  """

  def __init__(self, threads: int, workers: int):
    self.size = workers or threads
    self._uses_workers = workers > 0
    self._of_thread = threading.local()
    self._executor = futures.ThreadPoolExecutor(self.size, 'vit_jax-data') if self.size else None

  def submit(self, make: ExampleMaker, ids: np.ndarray, keys: np.ndarray, rows: np.ndarray, images: np.ndarray,
             labels: np.ndarray) -> Callable[[], object]:
    """Start to make examples; arguments as of `ExampleMaker.__call__`.

    Returns:
      A function that waits until the examples are made, and raises the error if they cannot be.
    """
    if self._executor is None:
      return functools.partial(make, ids, keys, rows, images, labels)
    function = functools.partial(self._make_in_worker, make) if self._uses_workers else make
    return self._executor.submit(function, ids, keys, rows, images, labels).result

  def _make_in_worker(self, make: ExampleMaker, ids: Sequence[int], keys: Sequence[int], rows: np.ndarray,
                      images: np.ndarray, labels: np.ndarray) -> None:
    """Make examples in this thread's worker, which is started at the first call."""
    if not hasattr(self._of_thread, 'worker'):
      self._of_thread.worker = Worker()
    self._of_thread.worker(make, ids, keys, rows, images, labels)


@functools.cache
def shared_pool(threads: int, workers: int) -> Pool:
  """Return the pool of this size that all data of this process share."""
  return Pool(threads, workers)
