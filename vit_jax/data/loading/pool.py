"""Threads or worker processes that make examples.

Threads decode and resize without Python's lock, so a few of them keep a few cores busy; the work that needs the lock
limits what one process can do. With workers, each thread passes its examples to its own process, which imports no jax,
and copies the pixels from memory that both share.

The threads are daemons: a read that never returns does not keep the interpreter from ending.
"""
from collections.abc import Callable
from concurrent import futures
import functools
import queue
import threading
from typing import Any
import weakref

from vit_jax.data.loading.examples import ExampleMaker
from vit_jax.data.loading.worker_process import Worker


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
    self.executor = _DaemonThreads(self.size) if self.size else _CallingThread()
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


class _DaemonThreads(futures.Executor):
  """Executor with threads that end with it, or with the interpreter, whatever they are at."""

  def __init__(self, number: int):
    self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
    for i in range(number):
      threading.Thread(target=_work, args=(self._tasks,), name=f'vit_jax-data_{i}', daemon=True).start()
    weakref.finalize(self, _stop, self._tasks, number).atexit = False

  def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> futures.Future:
    future = futures.Future()
    self._tasks.put(functools.partial(_run, future, function, args, kwargs))
    return future


def _work(tasks: queue.SimpleQueue[Callable[[], None] | None]) -> None:
  """Run tasks until there is None."""
  while task := tasks.get():
    task()
    del task  # with all that it refers to, while the thread waits


def _stop(tasks: queue.SimpleQueue[Callable[[], None] | None], number: int) -> None:
  for _ in range(number):
    tasks.put(None)


def _run(future: futures.Future, function: Callable[..., Any], args: Any, kwargs: Any) -> None:
  """Put the result of a call, or its error, into a future."""
  try:
    future.set_result(function(*args, **kwargs))
  except BaseException as error:
    future.set_exception(error)


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
