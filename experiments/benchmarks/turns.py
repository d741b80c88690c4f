"""Contenders that are timed in turn, each in a process of its own."""
import multiprocessing
import os
import pathlib
import time


class Server:
  """A process that makes images when told to.

  Args:
    build: makes an endless iterator of numbers of images made, from `options`; a function of a module.
    options: its keyword arguments.
  """

  def __init__(self, build, options):
    context = multiprocessing.get_context('spawn')
    self._connection, theirs = context.Pipe()
    self._process = context.Process(target=_serve, args=(theirs, build, options), daemon=False)
    self._process.start()
    theirs.close()

  def __call__(self, images):
    """Makes so many images; returns (images per CPU second, images per second)."""
    self._connection.send(images)
    return self._connection.recv()

  def close(self):
    """Ends the process."""
    self._connection.close()
    self._process.join()


def _serve(connection, build, options):
  stream = iter(build(**options))
  next(stream)
  while True:
    try:
      images = connection.recv()
    except EOFError:
      return
    # First what was made ahead while others had their turn.
    _draw(stream, images // 2)
    cpu, wall = _cpu_seconds(), time.perf_counter()
    made = _draw(stream, images)
    connection.send((made / (_cpu_seconds() - cpu), made / (time.perf_counter() - wall)))


def _draw(stream, images):
  made = 0
  while made < images:
    made += next(stream)
  return made


def _cpu_seconds():
  """Of this process and its children that run, where the system tells of them (Linux)."""
  seconds = time.process_time()
  for task in pathlib.Path('/proc/self/task').glob('*/children'):
    for child in task.read_text().split():
      fields = pathlib.Path(f'/proc/{child}/stat').read_text().rpartition(')')[2].split()
      seconds += (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')
  return seconds
