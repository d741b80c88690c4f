"""Steps that are not applied, and examples of weight 0."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.training import test_step
from tests.training.test_step import BATCH, OBJECTIVE, assert_close, batches, make_step, random_params
from vit_jax.objectives.base import mean_of
from vit_jax.training import step as step_lib
from vit_jax.training.optim import Optimizer
from vit_jax.training.state import TrainState
from vit_jax.training.step import WEIGHT

BAD, STEEP = 1000, 2000  # ids of examples whose loss is infinite, or whose gradient is


class Faulty:
  """The classification, with examples whose loss or gradient is not finite."""

  def __call__(self, model, own, averages, batch, keys):
    outcome = OBJECTIVE(model, own, averages, batch, keys)
    # √x at 0 has the slope ∞, which the product with the slope 0 below makes NaN.
    steep = jnp.sqrt(jnp.where(batch['id'] == STEEP, 0.0 * outcome.losses, 1.0)) - 1.0 + (batch['id'] == STEEP)
    losses = jnp.where(batch['id'] == BAD, jnp.inf, outcome.losses) + steep
    return outcome._replace(losses=losses, means=outcome.losses.mean())

  def init(self, params, key):
    del params, key
    return {}, dict(loss=jnp.zeros(()))

  def update(self, averages, means, params):
    del params
    return dict(loss=0.9 * averages['loss'] + 0.1 * means)


def adam(frozen=None):
  return Optimizer(optax.adam(0.1), lambda step: jnp.float32(0.1), frozen)


@pytest.fixture(scope='module', autouse=True)
def use_adam():
  """Steps with an optimizer that has a state."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(test_step, 'optimizer', adam)
    yield


def make_state():
  return TrainState.create(random_params(), adam().transform, ema=True, averages=dict(loss=jnp.zeros(())))


def on_two_devices(num_micro_batches):
  """Return a step on two simulated devices that takes the batch of both."""
  over = jax.vmap(make_step(num_micro_batches, 0.7, 'batch', objective=Faulty()), in_axes=(None, 0), axis_name='batch')
  return jax.jit(lambda state, batch: jax.tree.map(lambda x: x[0], over(
      state, {name: x.reshape(2, -1, *x.shape[1:]) for name, x in batch.items()})))


STEPS = {'one device': lambda: jax.jit(make_step(1, 0.7, objective=Faulty())),
         'micro-batches': lambda: jax.jit(make_step(4, 0.7, objective=Faulty())),
         'two devices': lambda: on_two_devices(2)}


@pytest.fixture(params=STEPS.values(), ids=STEPS, scope='module')
def step(request):
  return request.param()


@pytest.mark.parametrize('kind', [BAD, STEEP])
def test_a_step_that_is_not_finite_changes_only_what_counts_and_orders(step, kind):
  good, bad, after = batches(3)
  bad['id'][5] = kind
  before, _ = step(make_state(), good)
  state, metrics = step(before, bad)
  kept = dataclasses.replace(before, step=state.step, seen=state.seen)
  jax.tree.map(np.testing.assert_array_equal, state, kept)
  assert state.step == 2 and state.seen == step_lib.hash_examples(before.seen, bad, None)
  assert all(float(x) == 0 for x in jax.tree.leaves(metrics)) and np.isnan(mean_of(metrics['loss']))
  state, metrics = step(state, after)
  assert np.isfinite(mean_of(metrics['loss'])) and float(state.averages['loss']) > 0
  assert not np.array_equal(state.params['head']['kernel'], before.params['head']['kernel'])


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_a_step_from_parameters_that_are_not_finite_is_skipped(step, bad):
  state = make_state()
  state.params['head']['kernel'] = state.params['head']['kernel'].at[0, 0].set(bad)
  after, metrics = step(state, batches(1)[0])
  jax.tree.map(np.testing.assert_array_equal, after.opt_state, state.opt_state)
  assert float(metrics['loss'][1]) == 0


def weighted(batch, rows):
  weight = np.full(BATCH, BATCH / (BATCH - len(rows)), np.float32)
  weight[list(rows)] = 0
  return dict(batch, **{WEIGHT: weight})


def test_the_loss_is_the_mean_of_the_examples_that_have_a_weight(step):
  batch, rows = batches(1)[0], [1, 6]
  rest = {name: np.delete(values, rows, axis=0) for name, values in batch.items()}
  expected, expected_metrics = jax.jit(make_step(1, 0.7, objective=Faulty()))(make_state(), rest)
  state, metrics = step(make_state(), weighted(batch, rows))
  assert_close(state.opt_state, expected.opt_state, atol=1e-6, rtol=2e-5)  # of the gradient
  for name in ('loss', 'accuracy', 'grad_norm'):
    assert mean_of(metrics[name]) == pytest.approx(mean_of(expected_metrics[name]), rel=1e-5)
  assert float(metrics['accuracy'][1]) == BATCH - 2
  assert state.seen == step_lib.hash_examples(make_state().seen, batch, None)  # the order stays


def test_a_step_without_any_weight_is_skipped(step):
  before = make_state()
  after, metrics = step(before, dict(batches(1)[0], **{WEIGHT: np.zeros(BATCH, np.float32)}))
  jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
  jax.tree.map(np.testing.assert_array_equal, after.opt_state, before.opt_state)
  assert after.step == 1 and float(metrics['loss'][1]) == 0


def test_weights_of_1_change_nothing(step):
  batch = batches(1)[0]
  state, _ = step(make_state(), batch)
  other, _ = step(make_state(), weighted(batch, []))
  assert_close(other.params, state.params, rtol=1e-6)
