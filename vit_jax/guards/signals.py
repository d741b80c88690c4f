"""Stop on request: Ctrl-C, or the SIGTERM that arrives before a machine is taken away."""
import os
import signal
import threading
from types import FrameType
from typing import Any, NoReturn

import jax
from jax.experimental import multihost_utils

from vit_jax.distributed import jax_internals


class StopRequest:
  """Context manager that records SIGINT and SIGTERM, so that the loop can save first; a second SIGINT ends at once.

  Before `arm` there is nothing to save: a SIGINT is recorded for later, a SIGTERM ends the process at once, even while
  the main thread is inside the compiler, which may take minutes and lets no Python handler run. If there are several
  processes, the others then exit as they do when one dies.

  With several processes, a signal to one is for all, and they stop after the same step, a second or two later. jax does
  that: from the first `arm` on, it handles SIGTERM until the process ends.

  Attributes:
    signal: number of the signal that this process received, or None.
  """

  def __init__(self):
    self.signal: int | None = None
    self._previous_handlers: dict[int, Any] = {}
    self._pipe: int | None = None  # its writing end, before `arm`
    self._previous_wakeup_fd = -1
    self._many_processes = jax.process_count() > 1
    # Python lets only the main thread handle signals.
    self._handles = threading.current_thread() is threading.main_thread()
    if self._handles:
      self._previous_handlers[signal.SIGINT] = signal.signal(signal.SIGINT, self._on_signal)
      if not jax_internals.preemption_service_runs():
        self._exit_on_sigterm()

  def _exit_on_sigterm(self) -> None:
    """Let a thread end the process on SIGTERM: Python writes signals to a pipe, whatever the main thread does."""
    read, self._pipe = os.pipe()
    os.set_blocking(self._pipe, False)
    self._previous_wakeup_fd = signal.set_wakeup_fd(self._pipe)
    # Only signals with a Python handler are written to the pipe.
    self._previous_handlers[signal.SIGTERM] = signal.signal(signal.SIGTERM, lambda *_: None)
    threading.Thread(target=_exit_when_signaled, args=(read,), daemon=True).start()

  def arm(self) -> None:
    """Record SIGTERM too from here on; call it after the first step, when there is something to save."""
    self._restore_handlers()
    if self._many_processes and not jax_internals.preemption_service_runs():
      jax_internals.start_preemption_service()
    if self.signal is not None:
      self._notify_processes()
    elif self._handles:
      for number in (signal.SIGINT,) if self._many_processes else (signal.SIGINT, signal.SIGTERM):
        self._previous_handlers[number] = signal.signal(number, self._on_signal)

  def _on_signal(self, number: int, frame: FrameType | None) -> None:
    del frame
    self.signal = number
    armed = self._pipe is None
    self._restore_handlers()
    if armed:
      self._notify_processes()

  def _notify_processes(self) -> None:
    if self._many_processes:
      signal.raise_signal(signal.SIGTERM)  # jax passes it on to the other processes

  def should_stop(self, step: int) -> bool:
    """Return whether to stop after this step; all processes must call it at every step."""
    if self._many_processes and multihost_utils.reached_preemption_sync_point(step):
      self.signal = self.signal or signal.SIGTERM
      return True
    return self.signal is not None and not self._many_processes

  def __enter__(self) -> 'StopRequest':
    return self

  def __exit__(self, *error: object) -> None:
    self._restore_handlers()

  def _restore_handlers(self) -> None:
    if self._pipe is not None:
      signal.set_wakeup_fd(self._previous_wakeup_fd)
      os.close(self._pipe)  # ends its thread
      self._pipe = None
    for number, handler in self._previous_handlers.items():
      signal.signal(number, handler)
    self._previous_handlers = {}

  def exit(self) -> NoReturn:
    """End the process as the signal asks: KeyboardInterrupt for SIGINT, else exit status 128 + the signal's number."""
    assert self.signal is not None
    if self.signal == signal.SIGINT and not self._many_processes:  # it would end the others before they have saved
      raise KeyboardInterrupt
    raise SystemExit(128 + self.signal)


def _exit_when_signaled(read: int) -> None:
  with os.fdopen(read, 'rb', buffering=0) as pipe:
    while number := pipe.read(1):
      if number[0] == signal.SIGTERM:
        try:
          print('Stopped before the first step was done: nothing new to save. Run the same command again to resume.',
                flush=True)
        finally:  # a normal exit would wait for the compiler, and printing fails if nothing reads the output
          os._exit(128 + signal.SIGTERM)
