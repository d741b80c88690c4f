"""Threads or worker processes that make examples.

Threads decode and resize without Python's lock, so a few of them keep a few cores busy; the work that needs the lock
limits what one process can do. With workers, each thread passes its examples to its own process, which imports no jax,
and copies the pixels from memory that both share.
"""
from collections.abc import Callable
from concurrent import futures
import functools
import threading
from typing import Any

from vit_jax.data.loading.examples import ExampleMaker
from vit_jax.data.loading.worker import Worker


class Pool:
  """Threads that make examples, or that have worker processes make them; `shared_pool` returns the process's own.

  Args:
    threads: number of threads; 0 makes examples in the thread that asks for a batch.
    workers: number of worker processes; if more than 0, they replace the threads.

  Attributes:
    size: number of threads or workers that run tasks; 0 if the calling thread does.
    executor: runs tasks, see `task`.
  """

  def __init__(self, threads: int, workers: int):
    self.size = workers or threads
    self.executor = futures.ThreadPoolExecutor(self.size, 'vit_jax-data') if self.size else _CallingThread()
    self._uses_workers = workers > 0
    self._of_thread = threading.local()

  def task(self, make: ExampleMaker) -> Callable[..., None]:
    """Return the function to submit to the executor: `make`, or one with its arguments that does it in a worker."""
    return functools.partial(self._make_in_worker, make) if self._uses_workers else make

  def _make_in_worker(self, make: ExampleMaker, *arguments: Any) -> None:
    """Make examples in this thread's worker, which is started by the first call."""
    if not hasattr(self._of_thread, 'worker'):
      self._of_thread.worker = Worker()
    self._of_thread.worker(make, *arguments)


class _CallingThread(futures.Executor):
  """Executor without threads: `submit` runs the task."""

  def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> futures.Future:
    future = futures.Future()
    try:
      future.set_result(function(*args, **kwargs))
    except Exception as error:
      future.set_exception(error)
    return future


@functools.cache
def shared_pool(threads: int, workers: int) -> Pool:
  """Return the pool of this size that all data of this process share."""
  return Pool(threads, workers)
