"""What the loop measures between two log lines."""
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
import contextlib
import time
from typing import TypeVar

import jax
import jax.numpy as jnp

from vit_jax.base.durations import Pace
from vit_jax.objectives.base import mean_of
from vit_jax.training.step import Metrics

T = TypeVar('T')

_TOLERATED_WAIT = 0.05  # of the time


class Meters:
  """Sums training metrics since the last log line, and times training since its last pause.

  Args:
    pace: examples per step and epoch.
  """

  def __init__(self, pace: Pace):
    self._pace = pace
    self._merge = jax.jit(lambda total, metrics: jax.tree.map(jnp.add, total, metrics))
    self._total: Metrics | None = None
    self._watcher = futures.ThreadPoolExecutor(1, 'vit_jax-step')
    self.restart_clock()

  def restart_clock(self) -> None:
    """Start timing again: what came before (compilation, an evaluation, a save) is not training speed."""
    self._since, self._waited, self._steps = time.monotonic(), 0.0, 0

  @contextlib.contextmanager
  def pause(self) -> Iterator[None]:
    """Leave out the time of a `with` block, which does something else than training."""
    start = time.monotonic()
    yield
    self._since += time.monotonic() - start

  def elapsed(self) -> float:
    """Return the seconds since the clock was started."""
    return time.monotonic() - self._since

  def wait(self, fetch: Callable[[], T], running: Metrics) -> T:
    """Return fetch(), and count the time from the end of a step until the batch is there as waiting for input.

    Args:
      fetch: () → batch.
      running: metrics of the step that was started last, on the device.
    """
    ended = self._watcher.submit(lambda: jax.block_until_ready(running) and time.monotonic())
    batch = fetch()
    if ended.done():  # otherwise the step was still running when the batch came, and nothing waited
      self._waited += max(0.0, time.monotonic() - ended.result())
    return batch

  def add(self, metrics: Metrics) -> None:
    """Add a step's metrics, which stay on the device."""
    self._total = metrics if self._total is None else self._merge(self._total, metrics)
    self._steps += 1

  def forget(self) -> None:
    """Start again, at a step that the run rolled back to."""
    self._total = None
    self.restart_clock()

  def take(self, step: int) -> dict[str, float]:
    """Return {'train/…': number} since the last call, fetched from the device."""
    total, self._total = jax.device_get(self._total), None
    values = {name: mean_of(metric) for name, metric in (total or {}).items()}
    values['epoch'] = step * self._pace.batch_size / self._pace.examples
    if self._steps:
      values.update(images_per_second=self._steps * self._pace.batch_size / self.elapsed(),
                    input_wait=self._waited / self.elapsed())
    return {f'train/{name}': value for name, value in values.items()}


class InputStallMonitor:
  """Warns if input is the bottleneck; ignores the first window after a start, when no batches are ready yet.

  Args:
    every: least number of steps between two warnings.
  """

  def __init__(self, every: int):
    self._every = every
    self._next: int | None = None

  def warning(self, step: int, values: Mapping[str, float]) -> str | None:
    """Return a warning, or None.

    Args:
      step: of the log line.
      values: as `Meters.take` returned them.
    """
    waited = values.get('train/input_wait', 0.0)
    if self._next is None:
      self._next = step
      return None
    if waited <= _TOLERATED_WAIT or step < self._next:
      return None
    self._next = step + self._every
    return (f'Training waited for input {waited:.0%} of the time. Try: data.cache=True, if the decoded images fit '
            'in memory; more data.threads, up to the number of cores; data.workers, if threads leave cores idle; a '
            'copy in ArrayRecord format instead of many small files; smaller stored images or a lighter '
            'data.train_transform.')
