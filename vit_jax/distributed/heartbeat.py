"""Heartbeats over the control channel: which process of a run no longer answers, and what each does."""
from collections.abc import Callable
import threading

from vit_jax.distributed.control_channel import ControlChannel, OnPeerExit

EVERY = 5.0  # seconds between two heartbeats of a process
MOST_MISSED = 12  # a process that missed so many does not answer: it is stopped, or its host or network hangs


class Heartbeat:
  """A thread that says every few seconds that this process lives, and notices if a peer no longer does.

  The time is counted in heartbeats of this process: if all are stopped and continued, none is missed.

  Args:
    channel: to the peers, which is watched.
    on_exit: called as `ControlChannel.watch` does, about a peer that does not answer.
    every: seconds between two heartbeats.
    most_missed: heartbeats that a peer may miss.

  Attributes:
    describe: () → what this process does, for the peers.
  """

  def __init__(self, channel: ControlChannel, on_exit: OnPeerExit, *, every: float = EVERY,
               most_missed: int = MOST_MISSED):
    self._channel, self._on_exit, self._every, self._most_missed = channel, on_exit, every, most_missed
    self._ended = threading.Event()
    self.describe: Callable[[], str] = lambda: 'starting'
    threading.Thread(target=self._beat, daemon=True, name='vit_jax-heartbeat').start()

  def end(self) -> None:
    """End the thread."""
    self._ended.set()

  def _beat(self) -> None:
    counts, missed = self._channel.count_messages(), dict.fromkeys(self._channel.count_messages(), 0)
    while not self._ended.wait(self._every):
      self._channel.send_report(self.describe())
      before, counts = counts, self._channel.count_messages()
      for index, count in counts.items():
        missed[index] = 0 if count != before.get(index) else missed[index] + 1
        if missed[index] == self._most_missed:
          self._channel.report_silent(index, self._most_missed * self._every, self._on_exit)
