"""Being asked to stop: Ctrl-C, or the signal that comes before a machine is taken away."""
import signal
import threading

import jax
from jax.experimental import multihost_utils


class StopRequest:
  """Notes SIGINT and SIGTERM, so that the loop can save before it ends; a second SIGINT acts at once.

  Among several processes the signal of one is for all, and they stop at the same step, a second or two later. jax does
  that: it has handled SIGTERM since it connected them, also before this object was made.

  Attributes:
    signal: the number of the signal that came to this process, or None.
  """

  def __init__(self):
    self.signal = None
    self._before = {}
    self._several = jax.process_count() > 1
    if threading.current_thread() is threading.main_thread():  # Python lets no other thread handle signals
      for number in (signal.SIGINT,) if self._several else (signal.SIGINT, signal.SIGTERM):
        self._before[number] = signal.signal(number, self._note)

  def _note(self, number, frame):
    del frame
    self.signal = number
    self._give_back()
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
    for number, handler in self._before.items():
      signal.signal(number, handler)
    self._before = {}

  def end(self):
    """Ends the process the way the signal asks, with exit status 128 + its number; KeyboardInterrupt for SIGINT."""
    if self.signal == signal.SIGINT and not self._several:  # which ends others, who save and end by themselves
      raise KeyboardInterrupt
    raise SystemExit(128 + self.signal)
