"""A watchdog: ends a process whose training hangs, so that a scheduler can start it again."""
from collections.abc import Callable
import contextlib
import enum
import faulthandler
import math
import os
import sys
import threading

from vit_jax.base import exits
from vit_jax.distributed import hosts
from vit_jax.guards.signals import StopRequest

# The first step compiles, which takes minutes for a large model: it may take this many times as long as others.
FIRST_STEP = 4
# Seconds from a signal until the process ends without saving, if the main thread does not notice it. Schedulers send
# SIGKILL after 30 to 90 s.
GRACE = 60.0
# Seconds for what may hang itself: printing to a terminal that is stopped, a log on a disk that does not answer.
_LAST_WORDS = 5.0


class Work(enum.StrEnum):
  """What the main thread of a run does."""
  START = 'compiling and taking the first step'
  FETCH = 'reading a batch'
  STEP = 'taking a step'
  EVALUATE = 'evaluating'
  SAVE = 'saving'


class Watchdog:
  """Context manager that ends the process, with status 75, if nothing is done for too long.

  It counts the time by its own short sleeps, so that neither a process that is stopped and continued nor a clock that
  jumps counts as a hang. Before it ends the process it prints what hangs, on which process, and the Python stack of
  every thread. Nothing is saved: the state belongs to a step that never ends. The latest checkpoint stays as it is.

  Args:
    timeout: seconds for one piece of work: a step, a batch of an evaluation, a save. None: there is no limit.
    stop: whose signals are obeyed although the main thread hangs: after GRACE, or `timeout` if that is shorter, the
      process ends as the signal asks.
    log: where to print as well; () → a file descriptor or None.
  """

  def __init__(self, timeout: float | None = None, stop: StopRequest | None = None,
               log: Callable[[], int | None] = lambda: None):
    self._timeout, self._stop, self._log = timeout or math.inf, stop, log
    self._work, self._count, self._step = Work.START, 0, 0
    self._idle = self._waited = 0.0
    self._closed = threading.Event()

  def begin(self, work: Work, step: int | None = None) -> None:
    """Note that the work before is done, and what comes next.

    Args:
      work: in the main thread.
      step: of the run; None: the same as before.
    """
    self._work, self._step = work, self._step if step is None else step
    self._count += 1

  def describe(self) -> str:
    """Return what the process does, such as 'reading a batch after step 7, for 12 s'."""
    return f'{self._work} after step {self._step}, for {self._idle:.0f} s'

  def __enter__(self) -> 'Watchdog':
    if self._timeout < math.inf:
      hosts.report(self.describe)
      threading.Thread(target=self._watch, daemon=True, name='vit_jax-watchdog').start()
    return self

  def __exit__(self, *error: object) -> None:
    self._closed.set()

  def _watch(self) -> None:
    pause, count = min(1.0, self._timeout / 10), -1
    grace = min(GRACE, self._timeout)
    while not self._closed.wait(pause):
      if count != self._count:
        count, self._idle, self._waited = self._count, 0.0, 0.0
        continue
      self._idle += pause
      pending = self._stop.pending if self._stop else None
      if pending is not None and self._work != Work.SAVE:
        self._waited += pause
        if self._waited >= grace:
          self._end(128 + pending, f'signal {pending} was not obeyed for {self._waited:.0f} s')
      if self._idle >= self._timeout * (FIRST_STEP if self._work == Work.START else 1):
        self._end(exits.EXIT_RETRY, f'nothing was done for {self._idle:.0f} s (train.hang_timeout)')

  def _end(self, status: int, why: str) -> None:
    """Print why, and where all threads are, then end the process; its other threads may hang in C++ for ever."""
    text = (f'error: {why}: this process hangs while {self.describe()}. The latest checkpoint is whole: start the same '
            'command again to resume. The Python stacks of all threads:\n')
    if peers := hosts.describe_peers():
      text = f'The other processes, as last heard of:\n{peers}\n{text}'
    _in_time(lambda: _dump(sys.__stderr__.fileno() if sys.__stderr__ else 2, text))
    if (log := self._log()) is not None:
      _in_time(lambda: _dump(log, text))
    if status == exits.EXIT_RETRY:
      _in_time(lambda: hosts.announce(f'it hangs while {self.describe()}'))
    os._exit(status)


def _dump(file: int, text: str) -> None:
  os.write(file, text.encode())
  faulthandler.dump_traceback(file, all_threads=True)  # reads no source files: their disk may be what hangs


def _in_time(function: Callable[[], object]) -> None:
  """Call a function that may hang, or fail, and wait for it a few seconds at most."""
  thread = threading.Thread(target=lambda: _suppress(function), daemon=True)
  thread.start()
  thread.join(_LAST_WORDS)


def _suppress(function: Callable[[], object]) -> None:
  with contextlib.suppress(Exception):
    function()
