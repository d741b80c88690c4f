"""Being asked to stop: Ctrl-C, or the signal that comes before a machine is taken away."""
import signal
import threading


class StopRequest:
  """Notes SIGINT and SIGTERM, so that the loop can save before it ends; a second one acts at once.

  Attributes:
    signal: the number of the signal that came, or None.
  """

  def __init__(self):
    self.signal = None
    self._before = {}
    if threading.current_thread() is threading.main_thread():  # Python lets no other thread handle signals
      for number in (signal.SIGINT, signal.SIGTERM):
        self._before[number] = signal.signal(number, self._note)

  def _note(self, number, frame):
    del frame
    self.signal = number
    self._give_back()

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
    if self.signal == signal.SIGINT:
      raise KeyboardInterrupt
    raise SystemExit(128 + self.signal)
