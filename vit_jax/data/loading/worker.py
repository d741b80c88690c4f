"""A process that makes examples: this is its program; `worker_process` starts it and watches over it.

The process is a fresh interpreter, not a fork: it imports no jax and holds no accelerator. It ends when its standard
input is closed, so it also ends when its parent is killed.
"""
from __future__ import annotations

import mmap
import os
import pickle
import signal
import sys
from typing import BinaryIO

import numpy as np

from vit_jax.base.errors import FileError, MissingFileError, RetryError, UserError
from vit_jax.base.text import make_logging_printable

# The memory that parent and worker share starts with a page for the signs of life, two unsigned numbers of 64 bits:
# how often the worker has come to an example, and the place of that example in the request. The pixels follow.
SIGNS_BYTES = mmap.PAGESIZE
IDLE, READING = 2**64 - 1, 2**64 - 2  # places: at no request; reading the records of one

# Raised in the parent as what they are.
_ERRORS = (MissingFileError, FileError, RetryError, UserError, ValueError, OSError)


def signs_of_life(shared: mmap.mmap) -> np.ndarray:
  """Return (2,) uint64 of the shared memory: [how often the worker has come to an example, its place]."""
  return np.frombuffer(shared, np.uint64, 2)


def serve(shared: int, requests: BinaryIO, replies: BinaryIO) -> None:
  """Answer requests until there are no more.

  Args:
    shared: file descriptor of the memory for signs of life and pixels.
    requests: a stream of pickled (number, ExampleMaker or None if it was sent before, ids, keys).
    replies: a stream for the replies, each 8 bytes of length, little-endian, and a pickle of (None, labels) or (type of
      error, message).
  """
  memory, makers = mmap.mmap(shared, 0), {}
  signs = signs_of_life(memory)

  def at(place: int) -> None:
    signs[1] = place
    signs[0] += np.uint64(1)

  while True:
    at(IDLE)
    try:
      number, make, ids, keys = pickle.load(requests)
    except EOFError:
      return
    make = makers.setdefault(number, make)
    shape = (len(ids), *make.image_shape)
    images = np.frombuffer(memory, np.uint8, int(np.prod(shape)), SIGNS_BYTES).reshape(shape)
    labels = np.empty((len(ids), *make.label_shape), np.int32)
    try:
      at(READING)
      make(ids, keys, range(len(ids)), images, labels, at)
      reply = None, labels
    except _ERRORS as error:
      reply = next(kind for kind in _ERRORS if isinstance(error, kind)), str(error)
    except Exception as error:  # it may not be picklable, and a dead worker could not report it
      reply = RuntimeError, f'{type(error).__name__} in a data worker: {error}'
    content = pickle.dumps(reply)
    replies.write(len(content).to_bytes(8, 'little') + content)
    replies.flush()


if __name__ == '__main__':
  make_logging_printable()
  # Ctrl-C, a closed terminal and a scheduler reach all processes of the run; the parent decides when to end.
  for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(ignored, signal.SIG_IGN)
  answers = os.fdopen(os.dup(1), 'wb')
  os.dup2(2, 1)  # keep what a library prints out of the answers
  try:
    serve(int(sys.argv[1]), sys.stdin.buffer, answers)
  except BrokenPipeError:
    pass
