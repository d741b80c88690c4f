"""What the loop measures between log lines: means, speed, and the time spent waiting for input."""
import time

import jax.numpy as jnp
import pytest

from vit_jax.base.durations import Pace
from vit_jax.run.meters import InputStallMonitor, Meters


def metrics(loss=1.0, count=4):
  return dict(loss=(jnp.float32(loss * count), jnp.float32(count)), grad_norm=(jnp.float32(2.0), jnp.float32(1.0)))


def meters():
  return Meters(Pace(batch_size=4, examples=8))


def test_means_are_over_all_examples_since_the_last_line():
  measured = meters()
  measured.add(metrics(1.0, count=4))
  measured.add(metrics(4.0, count=2))
  values = measured.take(6)
  assert values['train/loss'] == pytest.approx((4 * 1.0 + 2 * 4.0) / 6)
  assert values['train/grad_norm'] == pytest.approx(2.0)
  assert values['train/epoch'] == 3.0
  measured.add(metrics(7.0))
  assert measured.take(7)['train/loss'] == pytest.approx(7.0)


def test_an_objective_may_report_any_metric():
  measured = meters()
  measured.add(dict(metrics(), psnr=(jnp.float32(30.0), jnp.float32(2.0))))
  assert measured.take(1)['train/psnr'] == pytest.approx(15.0)


class Running:
  """Stands in for the metrics of a step that takes `seconds`."""

  def __init__(self, seconds):
    self._end = time.monotonic() + seconds

  def block_until_ready(self):
    time.sleep(max(0.0, self._end - time.monotonic()))
    return self


def measured_wait(fetch_seconds, step_seconds, steps=3):
  """Return the seconds of waiting per step for given times to fetch a batch and to run a step."""
  window = meters()
  window.add(metrics())
  for _ in range(steps):
    running = Running(step_seconds)
    window.wait(lambda: time.sleep(fetch_seconds), running)
    running.block_until_ready()
  return window.take(4)['train/input_wait'] * window.elapsed() / steps


def test_a_batch_that_comes_while_the_step_runs_is_no_wait():
  assert measured_wait(fetch_seconds=0.01, step_seconds=0.2) == 0


def test_only_the_time_after_the_step_counts_as_waiting():
  assert 0.1 < measured_wait(fetch_seconds=0.2, step_seconds=0.05) <= 0.2


@pytest.mark.parametrize('waited, warned', [(0.0, False), (0.05, False), (0.051, True), (1.0, True)])
def test_waiting_more_than_a_twentieth_of_the_time_is_a_warning(waited, warned):
  monitor = InputStallMonitor(every=100)
  assert monitor.warning(10, {'train/input_wait': 1.0}) is None  # the first window after a start
  warning = monitor.warning(20, {'train/input_wait': waited})
  assert (warning is not None) == warned
  if warned:
    assert f'{waited:.0%}' in warning
    assert all(knob in warning for knob in ('data.threads', 'data.workers', 'data.cache', 'ArrayRecord', 'transform'))


def test_the_warning_comes_once_per_interval():
  monitor = InputStallMonitor(every=100)
  warned = [step for step in range(10, 410, 10) if monitor.warning(step, {'train/input_wait': 0.5})]
  assert warned == [20, 120, 220, 320]


def test_a_line_without_a_wait_is_no_reason_to_warn():
  monitor = InputStallMonitor(every=100)
  monitor.warning(1, {})
  assert monitor.warning(2, {}) is None
