"""A process that makes examples: `Worker` starts it, `serve` is what it runs.

The process is a fresh interpreter, not a fork: it imports no jax and holds no accelerator. It ends when its standard
input is closed, so it also ends when its parent is killed.
"""
from __future__ import annotations

from collections.abc import Sequence
import contextlib
import mmap
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING, BinaryIO
import weakref

import numpy as np

from vit_jax.base.errors import FileError, MissingFileError, UserError

if TYPE_CHECKING:
  from vit_jax.data.loading.examples import ExampleMaker

_SHARED_BYTES = 1 << 28  # memory for the pixels of one request
_ERRORS = (MissingFileError, FileError, UserError, ValueError, OSError)  # raised in the parent as what they are


class Worker:
  """Starts the process and makes examples in it. One thread at a time may call it."""

  def __init__(self):
    self._shared, self._sent = _shared_file(), set()
    self._pixels = mmap.mmap(self._shared, 0)
    # The process must find all modules that this one finds, also if a notebook has added to sys.path.
    paths = os.pathsep.join(filter(None, (os.getcwd(), *sys.path)))
    self._process = subprocess.Popen(
        [sys.executable, '-m', 'vit_jax.data.loading.worker', str(self._shared)], pass_fds=[self._shared],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(os.environ, PYTHONPATH=paths))
    weakref.finalize(self, _end, self._process, self._shared)

  def __call__(self, make: ExampleMaker, ids: Sequence[int], keys: Sequence[int], rows: np.ndarray, images: np.ndarray,
               labels: np.ndarray) -> None:
    """Make examples as `make` would; arguments as of `ExampleMaker.__call__`.

    Raises:
      UserError, OSError: as from `make`; or the process has died.
      RuntimeError: any other error in the process, with its type and text.
    """
    step = max(1, _SHARED_BYTES // images[0].nbytes)
    for start in range(0, len(ids), step):
      part = slice(start, start + step)
      labels[rows[part]] = self._request(make, ids[part], keys[part])
      pixels = np.frombuffer(self._pixels, np.uint8, len(ids[part]) * images[0].size)
      images[rows[part]] = pixels.reshape(-1, *images.shape[1:])

  def _request(self, make: ExampleMaker, ids: Sequence[int], keys: Sequence[int]) -> np.ndarray:
    """Have examples made; return their labels. Their pixels are in the shared memory then."""
    assert self._process.stdin and self._process.stdout
    try:
      pickle.dump((make.number, None if make.number in self._sent else make, ids, keys), self._process.stdin)
      self._process.stdin.flush()
      self._sent.add(make.number)
      error, result = pickle.load(self._process.stdout)
    except (BrokenPipeError, EOFError) as ended:
      code = self._process.wait()
      advice = ('it was killed, as happens if memory runs out; try fewer: --config.data.workers' if code == -9
                else 'see its messages on standard error')
      raise UserError(f'data.workers: a worker process ended with exit code {code}: {advice}') from ended
    if error is not None:
      raise error(result)
    return result


def serve(shared: int, requests: BinaryIO, replies: BinaryIO) -> None:
  """Answer requests until there are no more.

  Args:
    shared: file descriptor of the memory for pixels.
    requests: a stream of pickled (number, ExampleMaker or None if it was sent before, ids, keys).
    replies: a stream for pickled (None, labels) or (type of error, message).
  """
  pixels, makers = mmap.mmap(shared, 0), {}
  while True:
    try:
      number, make, ids, keys = pickle.load(requests)
    except EOFError:
      return
    make = makers.setdefault(number, make)
    shape = (len(ids), *make.image_shape)
    images = np.frombuffer(pixels, np.uint8, int(np.prod(shape))).reshape(shape)
    labels = np.empty((len(ids), *make.label_shape), np.int32)
    try:
      make(ids, keys, range(len(ids)), images, labels)
      reply = None, labels
    except _ERRORS as error:
      reply = next(kind for kind in _ERRORS if isinstance(error, kind)), str(error)
    except Exception as error:  # it may not be picklable, and a dead worker could not report it
      reply = RuntimeError, f'{type(error).__name__} in a data worker: {error}'
    pickle.dump(reply, replies)
    replies.flush()


def _shared_file() -> int:
  """Return the descriptor of an unnamed file in memory; its pages are allocated when they are written."""
  if hasattr(os, 'memfd_create'):
    shared = os.memfd_create('vit_jax-data')
  else:
    with tempfile.TemporaryFile() as file:
      shared = os.dup(file.fileno())
  os.ftruncate(shared, _SHARED_BYTES)
  return shared


def _end(process: subprocess.Popen[bytes], shared: int) -> None:
  """End the process and close what connects to it."""
  assert process.stdin and process.stdout
  os.close(shared)
  with contextlib.suppress(BrokenPipeError):  # the process has died before
    process.stdin.close()
  process.stdout.close()
  process.wait()


if __name__ == '__main__':
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent decides when to end
  answers = os.fdopen(os.dup(1), 'wb')
  os.dup2(2, 1)  # keep what a library prints out of the answers
  try:
    serve(int(sys.argv[1]), sys.stdin.buffer, answers)
  except BrokenPipeError:
    pass
