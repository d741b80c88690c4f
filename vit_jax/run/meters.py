"""What the loop gathers between two log lines."""
from concurrent import futures
import time

import jax
import numpy as np


class Window:
  """Training metrics since the last log line, and times since the last pause of training.

  Args:
    schedule: step → learning rate.
    batch_size: global examples a step.
    examples: examples an epoch.
  """

  def __init__(self, schedule, batch_size, examples):
    self._schedule, self._batch_size, self._examples = schedule, batch_size, examples
    self._merge = jax.jit(lambda total, metrics: total.merge(metrics))
    self._total = None
    self._watcher = futures.ThreadPoolExecutor(1, 'vit_jax-step')
    self.restart_clock()

  def restart_clock(self):
    """Begins to time anew: what came before (compilation, an evaluation, a save) is no training speed."""
    self._since, self._waited, self._steps = time.monotonic(), 0.0, 0

  def elapsed(self):
    """Seconds since the clock was started."""
    return time.monotonic() - self._since

  def wait(self, draw, running):
    """Calls `draw` and counts as waiting for input what passes from the end of a step until the next batch is there.

    Args:
      draw: () → batch.
      running: metrics of the step that was started last, on the device.
    """
    ended = self._watcher.submit(lambda: jax.block_until_ready(running) and time.monotonic())
    batch = draw()
    if ended.done():  # else the step still ran when the batch came: nothing was waited for
      self._waited += max(0.0, time.monotonic() - ended.result())
    return batch

  def add(self, metrics):
    """Adds a step's metrics, which stay on the device."""
    self._total = metrics if self._total is None else self._merge(self._total, metrics)
    self._steps += 1

  def take(self, step):
    """{'train/…': number} since the last call, fetched from the device."""
    total, self._total = jax.device_get(self._total), None
    seen = step * self._batch_size
    values = dict(total.compute(), learning_rate=self._schedule(step - 1), epoch=seen / self._examples)
    if self._steps:
      values.update(images_per_second=self._steps * self._batch_size / self.elapsed(),
                    input_wait=self._waited / self.elapsed())
    return {f'train/{name}': float(value) for name, value in values.items()}


class Starvation:
  """Warns where training waits for its input, but not of the time right after a start, when nothing is made ahead yet.

  Args:
    every: steps between two warnings, at least.
  """

  def __init__(self, every):
    self._every, self._next = every, None

  def warning(self, step, values):
    """Text for a person, or None.

    Args:
      step: of the log line.
      values: what `Window.take` returned.
    """
    first, share = self._next is None, values.get('train/input_wait', 0.0)
    self._next = step if first else self._next
    if first or share <= _TOLERATED or step < self._next:
      return None
    self._next = step + self._every
    return (f'Training waited for its input {share:.0%} of the time. What helps: data.cache=True, where the decoded images '
            'fit in memory; more data.threads, up to the number of cores; data.workers, where threads leave cores idle; '
            'a copy in ArrayRecord format instead of many small files; smaller stored images or a lighter '
            'data.train_transform.')


def check_finite(metrics, step, saved):
  """Raises ValueError if a step's loss is not finite, before such a state can take the place of a good checkpoint.

  Args:
    metrics: of the step, on the device.
    step: which.
    saved: the latest checkpoint's step, or None.
  """
  loss = float(jax.device_get(metrics).loss.compute())
  if not np.isfinite(loss):
    good = 'nothing was saved yet' if saved is None else f'step {saved} is saved'
    raise ValueError(f'the loss is {loss} at step {step}; {good}. Lower optim.peak_lr, lengthen optim.warmup, or set '
                     "optim.clip_norm=1.0 and model.dtype='float32'")


_TOLERATED = 0.05  # of the time
