"""Faults of a run's input, really injected: worker processes that are killed or stopped, image files that are damaged.

For soak tests and tests of the loader; Linux only.
"""
from collections.abc import Iterator
import contextlib
import os
import pathlib
import random
import signal

FILE_FAULTS = ('hide', 'empty', 'truncate', 'flip')


def workers_of(process: int) -> list[int]:
  """Return the process ids of the data workers of a process, ascending; [] if it has ended."""
  found = []
  for children in pathlib.Path(f'/proc/{process}/task').glob('*/children'):
    with contextlib.suppress(OSError):  # threads and processes end while we look
      found += map(int, children.read_text().split())
  return sorted(child for child in found if _is_worker(child))


def signal_worker(process: int, number: signal.Signals, rng: random.Random) -> int | None:
  """Send a signal to one of the data workers of a process, and return its process id; None if there is none.

  Args:
    process: of the run.
    number: SIGKILL ends the worker, SIGSTOP stops it for good, SIGSEGV ends it as a crash of the decoder does.
    rng: chooses the worker.
  """
  workers = workers_of(process)
  if not workers:
    return None
  worker = rng.choice(workers)
  try:
    os.kill(worker, number)
  except ProcessLookupError:
    return None
  return worker


def damage(path: pathlib.Path, fault: str, rng: random.Random) -> None:
  """Damage a file until `restore`; readers find it whole or damaged, never in between.

  Args:
    path: of the file.
    fault: 'hide' takes it away, 'empty' leaves no bytes, 'truncate' leaves a part, 'flip' changes one bit.
    rng: chooses which part or bit.
  """
  original = _original(path)
  os.link(path, original)
  content = bytearray(path.read_bytes())
  if fault == 'hide':
    path.unlink()
    return
  if fault == 'flip':
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
  else:
    del content[0 if fault == 'empty' else rng.randrange(1, len(content)):]
  aside = path.with_name(f'.damaged-{path.name}')
  aside.write_bytes(content)
  aside.replace(path)


def restore(path: pathlib.Path) -> None:
  """Bring back a file that `damage` has damaged, with its times; harmless if it was not."""
  with contextlib.suppress(FileNotFoundError):
    _original(path).replace(path)


@contextlib.contextmanager
def damaged(path: pathlib.Path, fault: str, rng: random.Random) -> Iterator[None]:
  """Damage a file for the time of the block; arguments as of `damage`."""
  damage(path, fault, rng)
  try:
    yield
  finally:
    restore(path)


def _original(path: pathlib.Path) -> pathlib.Path:
  return path.with_name(f'.original-{path.name}')  # hidden: not taken for an image


def _is_worker(process: int) -> bool:
  try:
    return b'vit_jax.data.loading.worker' in pathlib.Path(f'/proc/{process}/cmdline').read_bytes()
  except OSError:
    return False
