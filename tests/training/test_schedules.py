"""Schedules against the closed forms of the authors' code, in plain Python floats."""
import math

import jax
import numpy as np
import pytest

from vit_jax.base.durations import Duration, Pace
from vit_jax.base.errors import UserError
from vit_jax.models.config import ViTConfig
from vit_jax.models.vit_tree import ViTTree
from vit_jax.training import optim, schedules

TOTAL, WARMUP, COOLDOWN, PEAK, END, TAU = 100, 10, 20, 3e-3, 1e-5, 16


def build(name, **fields):
  defaults = dict(peak_lr=PEAK, end_lr=0.0, warmup=WARMUP, cooldown=0, timescale=TAU)
  return schedules.Schedule(name, TOTAL, **{**defaults, **fields})


def reference(name, t, warmup=WARMUP, cooldown=0, end=0.0):
  p = min(max((t - warmup) / (TOTAL - warmup), 0.0), 1.0)
  if name == 'linear':
    rate = end + (PEAK - end) * (1 - p)
  elif name == 'cosine':
    rate = PEAK * 0.5 * (1 + math.cos(math.pi * p))
  elif name == 'rsqrt':
    rate = PEAK / math.sqrt(1 + (t - warmup) / TAU) if t > warmup else PEAK
  elif name in ('constant', 'stairs'):  # no drops
    rate = PEAK
  if warmup:
    rate *= min(1.0, t / warmup)
  if cooldown:
    rate *= min(1.0, (TOTAL - t) / cooldown)
  return rate


@pytest.mark.parametrize('warmup', [0, WARMUP])
@pytest.mark.parametrize('cooldown', [0, COOLDOWN])
@pytest.mark.parametrize('name', sorted(schedules.SHAPES))
def test_every_step_equals_the_closed_form(name, warmup, cooldown):
  schedule = jax.jit(build(name, warmup=warmup, cooldown=cooldown))
  steps = range(TOTAL + 1)
  expected = [reference(name, t, warmup, cooldown) for t in steps]
  np.testing.assert_allclose([schedule(t) for t in steps], expected, rtol=1e-5, atol=1e-9)


def test_linear_ends_at_end_lr():
  schedule = build('linear', end_lr=END)
  expected = [reference('linear', t, end=END) for t in range(TOTAL + 1)]
  np.testing.assert_allclose([schedule(t) for t in range(TOTAL + 1)], expected, rtol=1e-5)
  assert float(schedule(TOTAL)) == pytest.approx(END)


@pytest.mark.parametrize('name', sorted(schedules.SHAPES))
def test_boundaries(name):
  schedule = build(name, cooldown=COOLDOWN)
  assert float(schedule(0)) == 0.0
  assert float(schedule(WARMUP // 2)) == pytest.approx(PEAK / 2)
  assert float(schedule(WARMUP)) == pytest.approx(PEAK)
  assert float(schedule(TOTAL)) == 0.0
  assert all(0.0 <= float(schedule(t)) <= PEAK * (1 + 1e-6) for t in range(TOTAL + 1))


def test_rsqrt_falls_by_the_square_root_of_two_over_the_timescale():
  schedule = build('rsqrt')
  assert float(schedule(WARMUP) / schedule(WARMUP + TAU)) == pytest.approx(math.sqrt(2), rel=1e-6)


def test_stairs_fall_to_a_tenth_at_each_drop():
  schedule = build('stairs', warmup=0, drops=(0.25, 0.5))
  rates = [float(schedule(t)) / PEAK for t in (0, TOTAL // 4 - 1, -(-TOTAL // 4), -(-TOTAL // 2), TOTAL)]
  np.testing.assert_allclose(rates, [1, 1, 0.1, 0.01, 0.01], rtol=1e-5)


def test_without_warmup_the_first_step_is_at_the_peak():
  assert float(build('cosine', warmup=0)(0)) == pytest.approx(PEAK)


def test_the_result_is_float32_whatever_the_step_is():
  for step in (7, np.int32(7), 7.0, jax.numpy.int32(7)):
    rate = build('constant')(step)
    assert rate.dtype == np.float32
    assert float(rate) == pytest.approx(0.7 * PEAK)


@pytest.mark.parametrize('warmup, cooldown', [(101, 0), (0, 101), (60, 41)])
def test_longer_than_the_run_is_refused(warmup, cooldown):
  message = (rf'optim.warmup: the warm-up \({warmup} steps\).*cool-down \({cooldown} steps\).*run \(100 steps\).*'
             'train.duration')
  config = optim.OptimConfig(warmup=Duration(warmup), cooldown=Duration(cooldown))
  with pytest.raises(UserError, match=message):
    optim.build(config, TOTAL, Pace(1, 1), ViTTree(ViTConfig(variant='Ti/16')), {'kernel': np.zeros(3)})


def test_warmup_and_cooldown_may_fill_the_run():
  schedule = build('constant', warmup=60, cooldown=40)
  np.testing.assert_allclose([schedule(t) for t in (30, 60, 80)], [PEAK / 2, PEAK, PEAK / 2], rtol=1e-6)
  assert float(build('linear', warmup=TOTAL)(TOTAL)) == pytest.approx(PEAK)


def test_an_unknown_name_lists_the_choices():
  with pytest.raises(UserError, match=r"optim.schedule: unknown 'step'; choose from \['constant', 'cosine'"):
    optim.OptimConfig(schedule='step')
