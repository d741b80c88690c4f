"""Contenders that are timed in turn, each in its own process."""
from collections.abc import Callable, Iterable, Iterator, Mapping
import multiprocessing
from multiprocessing.connection import Connection
import os
import pathlib
import time
from typing import Any

Build = Callable[..., Iterable[int]]


class Server:
  """A process that makes images on command.

  Args:
    build: a module's function that returns an endless iterator, whose items are numbers of images made.
    options: its keyword arguments.
  """

  def __init__(self, build: Build, options: Mapping[str, Any]):
    context = multiprocessing.get_context('spawn')
    self._connection, theirs = context.Pipe()
    self._process = context.Process(target=_serve, args=(theirs, build, options), daemon=False)
    self._process.start()
    theirs.close()

  def __call__(self, images: int) -> tuple[float, float]:
    """Make a number of images; return (images per CPU second, images per second)."""
    self._connection.send(images)
    return self._connection.recv()

  def close(self) -> None:
    """End the process."""
    self._connection.close()
    self._process.join()


def _serve(connection: Connection, build: Build, options: Mapping[str, Any]) -> None:
  stream = iter(build(**options))
  next(stream)
  while True:
    try:
      images = connection.recv()
    except EOFError:
      return
    # First consume what was made ahead while others had their turn.
    _consume(stream, images // 2)
    cpu, wall = _cpu_seconds(), time.perf_counter()
    made = _consume(stream, images)
    connection.send((made / (_cpu_seconds() - cpu), made / (time.perf_counter() - wall)))


def _consume(stream: Iterator[int], images: int) -> int:
  made = 0
  while made < images:
    made += next(stream)
  return made


def _cpu_seconds() -> float:
  """Return the CPU seconds of this process and its running children, if the system reports them (Linux)."""
  seconds = time.process_time()
  for task in pathlib.Path('/proc/self/task').glob('*/children'):
    for child in task.read_text().split():
      fields = pathlib.Path(f'/proc/{child}/stat').read_text().rpartition(')')[2].split()
      seconds += (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')
  return seconds
