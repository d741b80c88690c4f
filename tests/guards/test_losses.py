"""When the loss of a step is trouble, and when it is not."""
import math

import numpy as np
import pytest

from vit_jax.base.errors import UserError
from vit_jax.guards.losses import GuardConfig, LossWatch

# Like real runs on the digits: of 16,000 steps of eight (rates, batches and optimizers differ), those that rose by a
# tenth of the first losses or more scored 4.9 at most; scores up to 12 were rises by 6 %.
CURVES = {'learning': (2.3, 0.6, 0.08), 'memorizing': (2.3, 0.0009, 0.5)}


def curve(name, steps=3000):
  """Return losses that fall exponentially, with a log-normal spread."""
  start, end, spread = CURVES[name]
  rng = np.random.default_rng(0)
  middle = end + (start - end) * np.exp(-np.arange(steps) / 300)
  return middle * np.exp(spread * rng.normal(size=steps) * np.minimum(1, np.arange(steps) / 1000))


def watch(losses, **changes):
  """Return (watch, first trouble or None)."""
  found = LossWatch(GuardConfig(**changes), {})
  for step, loss in enumerate(losses, 1):
    if trouble := found.add(step, float(loss)):
      return found, trouble
  return found, None


@pytest.mark.parametrize('name', CURVES)
def test_ordinary_training_is_no_trouble(name):
  found, trouble = watch(curve(name))
  assert trouble is None and found.skipped == 0


@pytest.mark.parametrize('name', CURVES)
@pytest.mark.parametrize('step', [900, 2500])
def test_a_spike_is_found_at_its_step(name, step):
  losses = curve(name)
  losses[step - 1] = 4.0
  found, trouble = watch(losses)
  assert trouble.first == trouble.last == step and 'its loss is 4, above the limit' in trouble.reason
  before = losses[step - 129 if step > 129 else 0:step - 1]
  sigma = 1.4826 * np.median(np.abs(before - np.median(before)))
  assert trouble.statistics['median_loss'] == pytest.approx(np.median(before))
  assert trouble.statistics['score'] == pytest.approx((4.0 - np.median(before)) / sigma)
  assert found.limit() == pytest.approx(np.median(before) + max(10 * sigma, np.median(losses[:16]) / 4))
  assert watch(losses, spike=None)[1] is None


def test_a_spike_after_skipped_steps_began_with_them():
  """As if a weight had become so large that first the gradient overflows, then not."""
  found, trouble = watch([2.3] * 30 + [math.nan] * 2 + [1e30])
  assert (trouble.first, trouble.last) == (31, 33) and 'it was skipped, then the loss of step 33' in trouble.reason


def test_the_first_losses_are_not_judged():
  assert watch([2.3] * 14 + [50.0])[1] is None
  assert watch([2.3] * 16 + [50.0])[1].first == 17


def test_steps_skipped_in_a_row_are_trouble():
  losses = [2.0] * 20 + [math.nan] * 3 + [2.0] + [math.nan] * 4
  found, trouble = watch(losses, skipped=4)
  assert (trouble.first, trouble.last) == (25, 28) and 'up to 28 were skipped' in trouble.reason
  assert found.skipped == 7 and found.in_a_row == 4
  assert watch(losses, skipped=5)[1] is None
  found, _ = watch(losses[:21])
  assert found.streak(21).reason == 'it was skipped, because loss or gradient were not finite'


def test_what_is_stored_gives_the_same_judgement():
  losses = curve('learning', 400)
  whole, _ = watch(losses)
  first, _ = watch(losses[:250])
  resumed = LossWatch(GuardConfig(), first.to_json())
  for step, loss in enumerate(losses[250:], 251):
    assert resumed.add(step, float(loss)) is None
  assert resumed.to_json() == whole.to_json() and resumed.limit() == whole.limit()


@pytest.mark.parametrize('changes, message', [
    (dict(skipped=0), 'guard.skipped: must be at least 1, got 0'), (dict(window=3), 'guard.window: must be at least 16'),
    (dict(rollbacks=-1), 'guard.rollbacks: must be at least 0'), (dict(spike=-1.0), 'guard.spike: expected a positive'),
    (dict(recompute=-5), 'guard.recompute: must be at least 1')])
def test_bad_numbers_are_refused(changes, message):
  with pytest.raises(UserError, match=message):
    GuardConfig(**changes)
