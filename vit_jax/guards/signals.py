"""Stop on request: Ctrl-C, a closed terminal, or the SIGTERM that arrives before a machine is taken away."""
import contextlib
import ctypes
import os
import signal
import threading
from types import FrameType
from typing import Any, NoReturn

import jax
from jax.experimental import multihost_utils

from vit_jax.base import exits
from vit_jax.distributed import jax_internals

SIGNALS = tuple(number for name in ('SIGINT', 'SIGTERM', 'SIGHUP') if (number := getattr(signal, name, None)))


class StopRequest:
  """Context manager that records SIGINT, SIGTERM and SIGHUP, so that the loop can save first.

  A second SIGINT ends the process at once; further signals of the other kinds change nothing, so that they cannot break
  the save. What is ignored when the process starts, such as SIGHUP under nohup, stays ignored. A thread receives the
  signals, because the main thread may be inside the compiler or a read that never returns; `Watchdog` ends a process
  that does not reach `should_stop` in time.

  Before `arm` there is nothing to save: a SIGINT is recorded for later, the others end the process at once. Of several
  processes, the others then exit as they do when one dies.

  With several processes, a signal to one is for all, and they stop after the same step, a second or two later. jax does
  that: from the first `arm` on, it is sent SIGTERM.

  Attributes:
    signal: number of the signal that this process received, or None.
  """

  def __init__(self):
    self.signal: int | None = None
    self._armed, self._agreed, self._asked, self._interrupts = False, False, 0, 0
    self._many_processes = jax.process_count() > 1
    self._previous_handlers: dict[int, Any] = {}
    self._jax_handler: ctypes.Array[ctypes.c_char] | None = None  # of SIGTERM
    self._pipe: int | None = None  # its writing end
    # Python lets only the main thread handle signals.
    if threading.current_thread() is threading.main_thread():
      self._handle_signals()

  def _handle_signals(self) -> None:
    """Let Python write signals to a pipe, whatever the main thread does, and a thread read them."""
    read, self._pipe = os.pipe()
    os.set_blocking(self._pipe, False)
    self._previous_wakeup_fd = signal.set_wakeup_fd(self._pipe, warn_on_full_buffer=False)
    for number in SIGNALS:
      jax_has_it = number == signal.SIGTERM and jax_internals.preemption_service_runs()
      if signal.getsignal(number) is not signal.SIG_IGN and not jax_has_it:
        self._previous_handlers[number] = signal.signal(number, self._on_signal)
    threading.Thread(target=self._receive_all, args=(read,), daemon=True, name='vit_jax-signals').start()

  def _on_signal(self, number: int, frame: FrameType | None) -> None:
    del frame
    self.signal = self.signal or number

  def _receive_all(self, read: int) -> None:
    with os.fdopen(read, 'rb', buffering=0) as pipe:
      while number := pipe.read(1):
        if number[0] in self._previous_handlers:
          self._receive(number[0])

  def _receive(self, number: int) -> None:
    """Act on a signal, in the thread that receives them."""
    self._interrupts += number == signal.SIGINT
    if self._interrupts > 1:
      os._exit(exits.EXIT_INTERRUPTED)
    if number != signal.SIGINT and not self._armed:
      _print('Stopped before the first step was done: nothing new to save. Run the same command again to resume.')
      os._exit(128 + number)  # a normal exit would wait for the compiler
    first = self.signal is None or number == self.signal
    self.signal = self.signal or number
    if first and number == signal.SIGINT:
      _print('Stopping after this step, which is saved first; press Ctrl-C again to end at once.')
    if self._armed:
      self._notify_processes()

  def _notify_processes(self) -> None:
    """Let jax pass the signal on to the other processes."""
    if self._many_processes:
      if self._jax_handler is not None:
        _set_handler(signal.SIGTERM, self._jax_handler)
        self._jax_handler = None
      os.kill(os.getpid(), signal.SIGTERM)

  def arm(self) -> None:
    """Record SIGTERM too from here on; call it after the first step, when there is something to save."""
    if self._many_processes and not jax_internals.preemption_service_runs():
      ours = _get_handler(signal.SIGTERM)
      jax_internals.start_preemption_service()
      if signal.SIGTERM in self._previous_handlers:  # this process must see it as well, should it hang
        self._jax_handler = _get_handler(signal.SIGTERM)
        _set_handler(signal.SIGTERM, ours)
    self._armed = True
    if self.signal is not None:
      self._notify_processes()

  def should_stop(self) -> bool:
    """Return whether to stop now; all processes must call it equally often, after the same steps and batches."""
    if not self._many_processes:
      self._agreed = self.signal is not None
    elif not self._agreed and self._armed:
      self._asked += 1
      self._agreed = multihost_utils.reached_preemption_sync_point(self._asked)
      if self._agreed:
        self.signal = self.signal or signal.SIGTERM
    return self._agreed

  @property
  def pending(self) -> int | None:
    """The signal that was received since `arm`, while no call of `should_stop` has returned True; else None."""
    return self.signal if self._armed and not self._agreed else None

  def __enter__(self) -> 'StopRequest':
    return self

  def __exit__(self, *error: object) -> None:
    if self._pipe is None:
      return
    signal.set_wakeup_fd(self._previous_wakeup_fd)
    os.close(self._pipe)  # ends its thread
    self._pipe = None
    for number, handler in self._previous_handlers.items():
      if number != signal.SIGTERM or not jax_internals.preemption_service_runs():
        signal.signal(number, handler)
    if self._jax_handler is not None:
      _set_handler(signal.SIGTERM, self._jax_handler)

  def exit(self) -> NoReturn:
    """End the process as the signal asks: KeyboardInterrupt for SIGINT, else exit status 128 + the signal's number."""
    assert self.signal is not None
    if self.signal == signal.SIGINT and not self._many_processes:  # it would end the others before they have saved
      raise KeyboardInterrupt
    raise SystemExit(128 + self.signal)


def _print(text: str) -> None:
  with contextlib.suppress(OSError, ValueError):  # nothing may read the output
    print(text, flush=True)


# Handlers as the C library knows them: Python's own functions do not know those that C++ has installed.

def _get_handler(number: int) -> 'ctypes.Array[ctypes.c_char]':
  """Return the C library's `struct sigaction` of a signal, whose size is at most 152 bytes."""
  handler = ctypes.create_string_buffer(1024)
  ctypes.CDLL(None).sigaction(number, None, handler)
  return handler


def _set_handler(number: int, handler: 'ctypes.Array[ctypes.c_char]') -> None:
  ctypes.CDLL(None).sigaction(number, handler, None)
