"""A process that makes examples: `Worker` here, and what it runs there.

The process is a fresh interpreter, never a fork: it imports no jax and holds no accelerator. It ends when its standard
input does, and so with its parent, however that ends.
"""
import contextlib
import mmap
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import weakref

import numpy as np


class Worker:
  """Starts the process. One thread at a time may call it."""

  def __init__(self):
    self._shared, self._known = _shared_file(), set()
    self._pixels = mmap.mmap(self._shared, 0)
    # What our modules import, the process finds too, also where a notebook has added folders.
    paths = os.pathsep.join(filter(None, (os.getcwd(), *sys.path)))
    self._process = subprocess.Popen(
        [sys.executable, '-m', 'vit_jax.data.loading.worker', str(self._shared)], pass_fds=[self._shared],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(os.environ, PYTHONPATH=paths))
    weakref.finalize(self, _end, self._process, self._shared)

  def __call__(self, job, ids, keys, rows, images, labels) -> None:
    """Makes examples as `job.examples` would.

    Raises:
      ValueError: as from `Examples`.
      OSError: as from reading, or the process has died.
      RuntimeError: anything else that went wrong there, by its type's name and text.
    """
    step = max(1, _SIZE // images[0].nbytes)
    for start in range(0, len(ids), step):
      part = slice(start, start + step)
      labels[rows[part]] = self._ask(job, ids[part], keys[part])
      pixels = np.frombuffer(self._pixels, np.uint8, len(ids[part]) * images[0].size)
      images[rows[part]] = pixels.reshape(-1, *images.shape[1:])

  def _ask(self, job, ids, keys):
    try:
      examples = None if job.number in self._known else job.examples
      pickle.dump((job.number, examples, ids, keys), self._process.stdin)
      self._process.stdin.flush()
      self._known.add(job.number)
      error, result = pickle.load(self._process.stdout)
    except (BrokenPipeError, EOFError) as ended:
      code = self._process.wait()
      advice = ('killed, as a machine without free memory does. Take fewer: --config.data.workers' if code == -9
                else 'see what it wrote to standard error')
      raise OSError(f'A data worker ended with exit code {code}: {advice}') from ended
    if error is not None:
      raise error(result)
    return result


def main(shared: int, requests, replies) -> None:
  """Answers requests until there are no more.

  Args:
    shared: descriptor of the memory that pixels are left in.
    requests: a binary file of pickled (number, Examples or None where they are known, ids, keys).
    replies: one for pickled (None, labels) or (type of error, message).
  """
  pixels, known = mmap.mmap(shared, 0), {}
  while True:
    try:
      number, examples, ids, keys = pickle.load(requests)
    except EOFError:
      return
    examples = known.setdefault(number, examples)
    shape = (len(ids), *examples.image_shape)
    images = np.frombuffer(pixels, np.uint8, int(np.prod(shape))).reshape(shape)
    labels = np.empty((len(ids), *examples.label_shape), np.int32)
    try:
      examples(ids, keys, range(len(ids)), images, labels)
      reply = None, labels
    except (ValueError, OSError) as error:
      reply = (ValueError if isinstance(error, ValueError) else OSError), str(error)
    except Exception as error:  # as it is it may not pickle, and a dead worker would not say it
      reply = RuntimeError, f'{type(error).__name__} in a data worker: {error}'
    pickle.dump(reply, replies)
    replies.flush()


def _shared_file():
  """Descriptor of a file without a name; memory is taken as it is written to."""
  if hasattr(os, 'memfd_create'):
    shared = os.memfd_create('vit_jax-data')
  else:
    with tempfile.TemporaryFile() as file:
      shared = os.dup(file.fileno())
  os.ftruncate(shared, _SIZE)
  return shared


def _end(process, shared):
  os.close(shared)
  with contextlib.suppress(BrokenPipeError):  # it has died before
    process.stdin.close()
  process.stdout.close()
  process.wait()


# Bytes for the pixels of one piece, at most.
_SIZE = 1 << 28

if __name__ == '__main__':
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides when to end.
  answers = os.fdopen(os.dup(1), 'wb')
  os.dup2(2, 1)  # what a library prints must not get among the answers
  try:
    main(int(sys.argv[1]), sys.stdin.buffer, answers)
  except BrokenPipeError:
    pass
