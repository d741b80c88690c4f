"""Being asked to stop: Ctrl-C, or the signal that comes before a machine is taken away."""
import os
import signal
import threading

import jax
from jax._src import distributed  # jax offers its handling of SIGTERM only together with connecting
from jax.experimental import multihost_utils


class StopRequest:
  """Notes SIGINT and SIGTERM, so that the loop can save before it ends; a second SIGINT acts at once.

  Before `begin` nothing is done that could be saved: SIGINT is noted for then, SIGTERM ends the process at once, also
  where the main thread is inside the compiler, which may take minutes and lets no Python handler run. Others of several
  processes then end as where one dies.

  Among several processes the signal of one is for all, and they stop at the same step, a second or two later. jax does
  that: it handles SIGTERM from the first `begin` of a process on.

  Attributes:
    signal: the number of the signal that came to this process, or None.
  """

  def __init__(self):
    self.signal = None
    self._before = {}
    self._pipe = None
    self._several = jax.process_count() > 1
    # Python lets no other thread handle signals.
    self._handles = threading.current_thread() is threading.main_thread()
    if self._handles:
      self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._note)
      if distributed.global_state.preemption_sync_manager is None:
        self._end_at_once()

  def _end_at_once(self):
    """Has SIGTERM end the process, by a thread: Python tells it of signals through a pipe, whatever the main thread does."""
    read, self._pipe = os.pipe()
    os.set_blocking(self._pipe, False)
    self._before_pipe = signal.set_wakeup_fd(self._pipe)
    self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, lambda *_: None)  # the pipe gets only what has a handler
    threading.Thread(target=_wait_for_end, args=(read,), daemon=True).start()

  def begin(self):
    """The first step is done: from here on SIGTERM is noted, too."""
    self._give_back()
    if self._several and distributed.global_state.preemption_sync_manager is None:
      jax.config.update('jax_enable_preemption_service', True)
      distributed.global_state.initialize_preemption_sync_manager()
    if self.signal is not None:
      self._pass_on()
    elif self._handles:
      for number in (signal.SIGINT,) if self._several else (signal.SIGINT, signal.SIGTERM):
        self._before[number] = signal.signal(number, self._note)

  def _note(self, number, frame):
    del frame
    self.signal = number
    begun = self._pipe is None
    self._give_back()
    if begun:
      self._pass_on()

  def _pass_on(self):
    if self._several:
      signal.raise_signal(signal.SIGTERM)  # jax tells the others

  def asked(self, step):
    """Whether to stop after this step; to be asked at every step, by all processes."""
    if self._several and multihost_utils.reached_preemption_sync_point(step):
      self.signal = self.signal or signal.SIGTERM
      return True
    return self.signal is not None and not self._several

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self._give_back()

  def _give_back(self):
    if self._pipe is not None:
      signal.set_wakeup_fd(self._before_pipe)
      os.close(self._pipe)  # its thread ends
      self._pipe = None
    for number, handler in self._before.items():
      signal.signal(number, handler)
    self._before = {}

  def end(self):
    """Ends the process the way the signal asks, with exit status 128 + its number; KeyboardInterrupt for SIGINT."""
    if self.signal == signal.SIGINT and not self._several:  # which ends others, who save and end by themselves
      raise KeyboardInterrupt
    raise SystemExit(128 + self.signal)


def _wait_for_end(read):
  with os.fdopen(read, 'rb', buffering=0) as pipe:
    while number := pipe.read(1):
      if number[0] == signal.SIGTERM:
        try:
          print('Stopped before the first step was done: there is nothing new to save, the same command goes on.',
                flush=True)
        finally:  # an ordinary end would wait for the compiler, and nobody may be there to read
          os._exit(128 + signal.SIGTERM)
