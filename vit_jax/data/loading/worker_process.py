"""The parent's side of worker processes: a `Worker` makes examples in a process, and replaces it if it is lost.

A process is lost if it has ended, if it has been stopped for `_STOPPED_SECONDS`, or if it has come to no other example
for `_SILENT_SECONDS`, as in a read that never returns. It is killed, and another one makes the same examples again:
they depend on nothing but their ids and keys.
"""
from collections.abc import Callable, Sequence
from concurrent import futures
import contextlib
import itertools
import mmap
import os
import pathlib
import pickle
import select
import signal
import subprocess
import sys
import tempfile
from typing import NoReturn
import weakref

from absl import logging
import numpy as np

from vit_jax.base.errors import RetryError, UserError
from vit_jax.base.machine import retry
from vit_jax.data.loading import worker
from vit_jax.data.loading.examples import ExampleMaker

_SHARED_BYTES = 1 << 28  # memory for the pixels of one request
# Processes that may be lost at the same examples; more of killed ones, as these examples are rarely the reason.
_TRIES, _TRIES_IF_KILLED = 3, 5
# Counted while this process itself runs: after all processes of a run were stopped and go on, none of them is late.
_STOPPED_SECONDS, _SILENT_SECONDS = 5, 120
_POLL_SECONDS = 1


class Worker:
  """Makes examples in a process, which the first call starts. One thread at a time may call it."""

  def __init__(self):
    self._process: _Process | None = None
    self._end: Callable[[], object] = lambda: None

  def __call__(self, make: ExampleMaker, ids: Sequence[int], keys: Sequence[int], rows: np.ndarray, images: np.ndarray,
               labels: np.ndarray) -> None:
    """Make examples as `make` would; arguments as of `ExampleMaker.__call__`.

    Raises:
      UserError, OSError: as from `make`; or several processes have ended at these examples.
      RetryError: as from `make`; or several processes were killed or hung at these examples.
      RuntimeError: any other error in the process, with its type and text.
    """
    step = max(1, _SHARED_BYTES // images[0].nbytes)
    for start in range(0, len(ids), step):
      part = slice(start, start + step)
      labels[rows[part]], pixels = self._request(make, ids[part], keys[part])
      images[rows[part]] = pixels[:len(ids[part]) * images[0].size].reshape(-1, *images.shape[1:])

  def _request(self, make: ExampleMaker, ids: Sequence[int], keys: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Have examples made; return their labels, and the memory with their pixels."""
    for number in itertools.count(1):
      if self._process is None:
        self._process = retry.call(_Process, 'data.workers: starting a worker process')
        self._end = weakref.finalize(self, self._process.end)
      try:
        return self._process.request(make, ids, keys), self._process.pixels
      except _LostError as lost:
        if self._process.ended:  # by us: this interpreter ends
          raise futures.CancelledError from None
        self._end()
        self._process = None
        where = make.describe(ids if lost.place is None else ids[lost.place:lost.place + 1])
        if number >= lost.tries:
          kind = RetryError if lost.may_pass else UserError
          raise kind(f'data.workers: {number} worker processes in a row were lost at the same examples, the last one '
                     f'{lost}, at {where}. {lost.advice}') from None
        logging.warning('data.workers: a worker process was lost (%s) at %s; another one makes these examples again '
                        '(try %d of %d)', lost, where, number + 1, lost.tries)
    raise AssertionError('there is a last try')


class _LostError(Exception):
  """A process that cannot answer any more.

  Attributes:
    place: of the example in the request that it was at; None if it was at none.
    may_pass: whether the reason is the machine's rather than these examples'.
    advice: what to do.
    tries: how many processes may be lost like this at the same examples.
  """

  def __init__(self, reason: str, place: int | None, may_pass: bool, advice: str, tries: int = _TRIES):
    super().__init__(reason)
    self.place, self.may_pass, self.advice, self.tries = place, may_pass, advice, tries


class _Process:
  """One process and the memory shared with it.

  Attributes:
    pixels: (_SHARED_BYTES,) uint8; those of the last request come first.
    ended: whether `end` was called.
  """

  def __init__(self):
    self._shared, self._sent, self.ended = _shared_file(), set(), False
    memory = mmap.mmap(self._shared, 0)
    self.pixels, self._signs = np.frombuffer(memory, np.uint8, offset=worker.SIGNS_BYTES), worker.signs_of_life(memory)
    self._signs[1] = worker.IDLE
    # The process must find all modules that this one finds, also if a notebook has added to sys.path.
    paths = os.pathsep.join(filter(None, (os.getcwd(), *sys.path)))
    self._process = subprocess.Popen(
        [sys.executable, '-m', 'vit_jax.data.loading.worker', str(self._shared)], pass_fds=[self._shared], bufsize=0,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(os.environ, PYTHONPATH=paths))
    assert self._process.stdin and self._process.stdout
    self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
    os.set_blocking(self._to, False)

  def request(self, make: ExampleMaker, ids: Sequence[int], keys: Sequence[int]) -> np.ndarray:
    """Have examples made; return their labels. Their pixels are in `pixels` then; errors as of `Worker`."""
    self._alarm = _Alarm(self._process.pid, self._signs)
    self._send(pickle.dumps((make.number, None if make.number in self._sent else make, ids, keys)))
    self._sent.add(make.number)
    error, result = pickle.loads(self._receive(int.from_bytes(self._receive(8), 'little')))
    if error is not None:
      raise error(result)
    return result

  def end(self) -> None:
    """End the process, which may be stopped or blocked, and close what connects to it; harmless to call again."""
    if self.ended:
      return
    self.ended = True
    self._process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):  # in a read that even a kill does not interrupt
      self._process.wait(timeout=5)
    for pipe in (self._process.stdin, self._process.stdout):
      assert pipe
      pipe.close()
    os.close(self._shared)

  def _send(self, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
      self._wait(self._to, select.POLLOUT)
      try:
        rest = rest[os.write(self._to, rest):]
      except BlockingIOError:
        pass
      except BrokenPipeError:
        self._raise_ended()

  def _receive(self, size: int) -> bytes:
    content = b''
    while len(content) < size:
      self._wait(self._from, select.POLLIN)
      part = os.read(self._from, size - len(content))
      if not part:
        self._raise_ended()
      content += part
    return content

  def _wait(self, descriptor: int, events: int) -> None:
    """Wait until a pipe can be used; raise _LostError if the process is found to be stopped or silent before."""
    poll = select.poll()
    poll.register(descriptor, events)
    while not poll.poll(1000 * _POLL_SECONDS):
      if reason := self._alarm.ring():
        raise _LostError(reason, self._place(), True, 'Look at the file system that the images are on, then start the '
                         'same command again')

  def _raise_ended(self) -> NoReturn:
    try:
      code = self._process.wait(timeout=5)
    except subprocess.TimeoutExpired:  # it has closed its output
      self._process.kill()
      code = self._process.wait()
    if code == -signal.SIGKILL:
      raise _LostError('killed, as happens if memory runs out', self._place(), True,
                       'Try fewer: --config.data.workers, then start the same command again', _TRIES_IF_KILLED)
    how = f'ended by {signal.Signals(-code).name}' if code < 0 else f'ended with exit code {code}'
    raise _LostError(how, self._place(), False, 'See its messages on standard error. If an image crashes the decoder, '
                     'list it in --config.data.exclude')

  def _place(self) -> int | None:
    place = int(self._signs[1])
    return None if place in (worker.IDLE, worker.READING) else place


class _Alarm:
  """Counts for how long a process has given no sign of life; `ring` is called once per poll without an answer."""

  def __init__(self, process: int, signs: np.ndarray):
    self._state, self._signs, self._last = pathlib.Path(f'/proc/{process}/stat'), signs, int(signs[0])
    self._silent = self._stopped = 0

  def ring(self) -> str | None:
    """Return why the process is given up, or None."""
    beats = int(self._signs[0])
    self._silent = 0 if beats != self._last else self._silent + _POLL_SECONDS
    self._last = beats
    self._stopped = self._stopped + _POLL_SECONDS if self._is_stopped() else 0
    if self._stopped >= _STOPPED_SECONDS:
      return f'stopped by a signal for {self._stopped} s'
    if self._silent >= _SILENT_SECONDS:
      return f'without progress for {self._silent} s'
    return None

  def _is_stopped(self) -> bool:
    """Return whether a signal has stopped the process; False where the system has no /proc, and under a debugger."""
    try:
      return self._state.read_text().rpartition(')')[2].split()[0] == 'T'
    except (OSError, IndexError):
      return False


def _shared_file() -> int:
  """Return the descriptor of an unnamed file in memory; its pages are allocated when they are written."""
  if hasattr(os, 'memfd_create'):
    shared = os.memfd_create('vit_jax-data')
  else:
    with tempfile.TemporaryFile() as file:
      shared = os.dup(file.fileno())
  os.ftruncate(shared, worker.SIGNS_BYTES + _SHARED_BYTES)
  return shared
