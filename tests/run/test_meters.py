import time

import jax.numpy as jnp
import pytest

from vit_jax.training.step import TrainMetrics
from vit_jax.run.meters import Starvation, Window


def metrics(loss=1.0):
  return TrainMetrics.single_from_model_output(loss=jnp.float32(loss), accuracy=jnp.float32(0.5), grad_norm=jnp.float32(2.0))


class Running:
  """Stands in for the metrics of a step that takes so long."""

  def __init__(self, seconds):
    self._end = time.monotonic() + seconds

  def block_until_ready(self):
    time.sleep(max(0.0, self._end - time.monotonic()))
    return self


def window_with(draw_seconds, step_seconds, steps=3):
  """The wait that a window counts where a batch takes so long to draw and a step so long to run."""
  window = Window(lambda step: 0.1, batch_size=4, examples=8)
  window.add(metrics())
  for _ in range(steps):
    running = Running(step_seconds)
    window.wait(lambda: time.sleep(draw_seconds), running)
    running.block_until_ready()
  return window.take(4)['train/input_wait'] * window.elapsed() / steps


def test_a_batch_that_comes_while_the_step_runs_is_not_waited_for():
  assert window_with(draw_seconds=0.01, step_seconds=0.2) == 0


def test_only_what_passes_after_the_step_is_waited_for():
  assert 0.1 < window_with(draw_seconds=0.2, step_seconds=0.05) <= 0.2


@pytest.mark.parametrize('share, told', [(0.0, False), (0.05, False), (0.051, True), (1.0, True)])
def test_waiting_more_than_a_twentieth_is_told(share, told):
  starvation = Starvation(every=100)
  assert starvation.warning(10, {'train/input_wait': 1.0}) is None  # the first window after a start
  warning = starvation.warning(20, {'train/input_wait': share})
  assert (warning is not None) == told
  if told:
    assert f'{share:.0%}' in warning
    assert all(knob in warning for knob in ('data.threads', 'data.workers', 'data.cache', 'ArrayRecord', 'transform'))


def test_it_is_told_once_an_interval():
  starvation = Starvation(every=100)
  told = [step for step in range(10, 410, 10) if starvation.warning(step, {'train/input_wait': 0.5})]
  assert told == [20, 120, 220, 320]


def test_a_line_without_a_wait_is_no_reason_to_warn():
  starvation = Starvation(every=100)
  starvation.warning(1, {})
  assert starvation.warning(2, {}) is None
