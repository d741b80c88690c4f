"""What the loop gathers between two log lines."""
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
    self.restart_clock()

  def restart_clock(self):
    """Begins to time anew: what came before (compilation, an evaluation, a save) is no training speed."""
    self._since, self._waited, self._steps = time.monotonic(), 0.0, 0

  def elapsed(self):
    """Seconds since the clock was started."""
    return time.monotonic() - self._since

  def wait(self, draw):
    """Calls `draw` and counts its time as waiting for input."""
    begin = time.monotonic()
    batch = draw()
    self._waited += time.monotonic() - begin
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
