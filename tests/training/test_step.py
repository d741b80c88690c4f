"""The step: micro-batches, EMA, keys and hashes, on one device and on two simulated ones."""
import functools
import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import tiny
from vit_jax.base.preprocessing import Normalization
from vit_jax.data.sources.info import DatasetInfo
from vit_jax.models import layers
from vit_jax.objectives.base import Outcome, mean_of
from vit_jax.objectives.classification import Classification, ClassificationConfig
from vit_jax.training import step as step_lib
from vit_jax.training.optim import Optimizer
from vit_jax.training.state import TrainState, join_params, model_params, own_params

BATCH = 8


class Network(nnx.Module):
  """A small model with dropout: all that a step needs of a model."""

  def __init__(self, rngs):
    self.hidden = nnx.Linear(64, 8, rngs=rngs)
    self.head = nnx.Linear(8, 3, rngs=rngs)

  def __call__(self, images, rngs=None):
    x = jnp.tanh(self.hidden(images.reshape(len(images), -1)))
    return self.head(layers.dropout(x, 0.3, rngs))


GRAPHDEF, ABSTRACT = nnx.split(nnx.eval_shape(lambda: Network(nnx.Rngs(0))), nnx.Param)
INFO = DatasetInfo(num_examples=100, num_classes=3, channels=1)
OBJECTIVE = Classification(ClassificationConfig(label_smoothing=0.1), tiny.objective_context(INFO))
NORMALIZE = Normalization()
MODEL = step_lib.StepModel(lambda params: nnx.merge(GRAPHDEF, params), lambda params: params, lambda tree, params: tree)


def prepare(batch, keys):
  """Normalize the images of a batch."""
  del keys
  return dict(batch, image=NORMALIZE(batch['image']))


def random_params(seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), jnp.float32), nnx.to_pure_dict(ABSTRACT))


def batches(count, seed=0, size=BATCH):
  rng = np.random.default_rng(seed)
  return [dict(image=rng.integers(0, 256, (size, 8, 8, 1), dtype=np.uint8),
               label=rng.integers(0, 3, size).astype(np.int32), id=(np.arange(size) + i * size).astype(np.int32),
               rng=rng.integers(0, 2**32, size, dtype=np.uint32)) for i in range(count)]


def optimizer(frozen=None):
  return Optimizer(optax.sgd(0.5), lambda step: jnp.float32(0.5), frozen)


def make_step(num_micro_batches=1, ema_decay=None, axis_name=None, seed=0, objective=OBJECTIVE, prepare=prepare,
              ema_warmup=False):
  split = step_lib.BatchSplit(num_micro_batches, axis_name=axis_name)
  return step_lib.make_train_step(MODEL, objective, optimizer(), prepare, split, seed=seed, ema_decay=ema_decay,
                                  ema_warmup=ema_warmup)


def run(step, data, ema=True):
  """Return (states after each step, metrics of each)."""
  state, states, metrics = TrainState.create(random_params(), optimizer().transform, ema=ema), [], []
  for batch in data:
    state, values = step(state, batch)
    states.append(state)
    metrics.append({name: mean_of(value) for name, value in values.items()})
  return states, metrics


@pytest.fixture(scope='module')
def plain():
  """Return three steps with an EMA, the run that others are compared with."""
  return run(plain_step(), batches(3))


@functools.cache
def plain_step():
  return jax.jit(make_step(ema_decay=0.7))


def assert_close(a, b, **tolerance):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, **tolerance)


def permuted(batch, order):
  return {name: values[order] for name, values in batch.items()}


def test_micro_batches_give_the_same_step(plain):
  states, metrics = run(jax.jit(make_step(num_micro_batches=4, ema_decay=0.7)), batches(3))
  assert_close(states[-1].params, plain[0][-1].params, atol=2e-6, rtol=2e-5)
  assert states[-1].seen == plain[0][-1].seen
  for ours, expected in zip(metrics, plain[1], strict=True):
    assert ours == pytest.approx(expected, rel=1e-4)


def test_two_devices_give_the_same_step(plain):
  over_devices = jax.vmap(make_step(num_micro_batches=2, ema_decay=0.7, axis_name='batch'), in_axes=(None, 0),
                          axis_name='batch')
  step = lambda state, batch: over_devices(state, {n: x.reshape(2, 4, *x.shape[1:]) for n, x in batch.items()})
  first = lambda state, batch: jax.tree.map(lambda x: x[0], step(state, batch))
  states, metrics = run(jax.jit(first), batches(3))
  assert_close(states[-1].params, plain[0][-1].params, atol=2e-6, rtol=2e-5)
  assert states[-1].seen == plain[0][-1].seen
  for ours, expected in zip(metrics, plain[1], strict=True):
    assert ours == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize('i', [0, 1])
def test_a_step_moves_against_the_gradient_of_the_mean_loss(plain, i):
  batch, params = batches(3)[i], random_params() if i == 0 else plain[0][i - 1].params
  images = np.asarray(batch['image'], np.float32) / 127.5 - 1
  keys = step_lib.example_keys(0, i, batch['rng'])

  def loss(params):
    logits = nnx.merge(GRAPHDEF, params)(images, keys)
    targets = 0.9 * np.eye(3)[batch['label']] + 0.1 / 3
    return -(targets * jax.nn.log_softmax(logits)).sum(-1).mean(), logits

  (value, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
  norm = np.sqrt(sum(np.square(g).sum() for g in jax.tree.leaves(grads)))
  assert_close(plain[0][i].params, jax.tree.map(lambda p, g: p - 0.5 * g, params, grads), atol=1e-5)
  accuracy = np.mean(np.argmax(logits, -1) == batch['label'])
  expected = dict(loss=float(value), accuracy=float(accuracy), grad_norm=float(norm))
  assert plain[1][i] == pytest.approx(expected, rel=1e-4)


def test_the_ema_is_exponential(plain):
  average = jax.tree.map(np.float64, random_params())
  for state in plain[0]:
    average = jax.tree.map(lambda e, p: 0.7 * e + 0.3 * np.float64(p), average, state.params)
    assert_close(state.ema, average, atol=1e-6)


def test_an_ema_that_warms_up_weighs_the_steps_by_binomial_coefficients():
  """With decays (1 + t) / (10 + t), the parameters after step k of n weigh C(k + 8, 8) / C(n + 9, 9)."""
  states, _ = run(jax.jit(make_step(ema_decay=0.9999, ema_warmup=True)), batches(5))
  params = [random_params(), *(state.params for state in states)]
  for n, state in enumerate(states, 1):
    weights = [math.comb(k + 8, 8) / math.comb(n + 9, 9) for k in range(n + 1)]
    assert sum(weights) == pytest.approx(1)
    average = jax.tree.map(lambda *x: sum(w * np.float64(p) for w, p in zip(weights, x, strict=True)), *params[:n + 1])  # noqa: B023
    assert_close(state.ema, average, atol=1e-6)


def test_the_warm_up_of_an_ema_ends_at_its_decay():
  weights = [float(step_lib.ema_weight(0.25, True, jnp.int32(t))) for t in range(4)]
  assert weights == pytest.approx([1 - 1 / 10, 1 - 2 / 11, 0.75, 0.75])  # 3 / 12 is 0.25
  far = float(step_lib.ema_weight(0.9999, True, jnp.int32(1_000_000)))
  assert far == np.float32(1 - 0.9999) == np.float32(step_lib.ema_weight(0.9999, False, jnp.int32(1_000_000)))


def test_steps_are_counted(plain):
  assert [int(state.step) for state in plain[0]] == [1, 2, 3]


def test_the_same_run_is_the_same_bit_for_bit(plain):
  again, metrics = run(jax.jit(make_step(ema_decay=0.7)), batches(3))
  assert_close(again[-1], plain[0][-1], atol=0, rtol=0)
  assert metrics == plain[1]


def test_another_seed_drops_other_units_and_without_a_decay_there_is_no_ema(plain):
  states, _ = run(jax.jit(make_step(seed=1)), batches(1), ema=False)
  assert states[0].ema is None
  difference = jax.tree.map(lambda a, b: np.abs(a - b).max(), states[0].params, plain[0][0].params)
  assert max(jax.tree.leaves(difference)) > 1e-3


def test_order_within_a_batch_does_not_matter(plain):
  order = np.random.default_rng(0).permutation(BATCH)
  states, _ = run(plain_step(), [permuted(batch, order) for batch in batches(3)])
  assert states[-1].seen == plain[0][-1].seen
  assert_close(states[-1].params, plain[0][-1].params, atol=2e-6, rtol=2e-5)


# The hash of the examples seen.


def hashed(data):
  seen = jnp.uint32(0)
  for batch in data:
    seen = step_lib.hash_examples(seen, batch, None)
  return int(seen)


def test_the_hash_is_the_steps_hash(plain):
  for i, state in enumerate(plain[0], start=1):
    assert int(state.seen) == hashed(batches(3)[:i])


def test_the_hash_equals_its_definition():
  seen = 0
  for batch in batches(4):
    total = sum((int(i) + 1) * (int(r) | 1) for i, r in zip(batch['id'], batch['rng'], strict=True))
    seen = ((seen ^ total % 2**32) * 16777619) % 2**32
  assert hashed(batches(4)) == seen


def test_different_runs_have_different_hashes():
  one, two, three = batches(3)
  other_id = dict(one, id=one['id'] + (np.arange(BATCH) == 3).astype(np.int32))
  other_rng = dict(one, rng=one['rng'] ^ np.where(np.arange(BATCH) == 3, 4, 0).astype(np.uint32))
  runs = [[one, two, three], [two, one, three], [three, two, one], [one, two], [one, two, two],
          [other_id, two, three], [other_rng, two, three], []]
  assert len({hashed(run) for run in runs}) == len(runs)


def test_the_hash_has_no_order_within_a_batch():
  order = np.random.default_rng(0).permutation(BATCH)
  assert hashed([permuted(batch, order) for batch in batches(3)]) == hashed(batches(3))


# Keys.


def key_data(*args):
  return np.asarray(jax.random.key_data(step_lib.example_keys(*args)))


def test_an_examples_key_does_not_depend_on_its_place():
  numbers = np.array([7, 2**32 - 1, 0, 123], np.uint32)
  order = np.array([3, 1, 0, 2])
  keys = key_data(0, 5, numbers)
  np.testing.assert_array_equal(key_data(0, 5, numbers[order]), keys[order])
  np.testing.assert_array_equal(key_data(0, 5, numbers[1:2]), keys[1:2])


def test_keys_differ_by_example_step_and_seed():
  numbers = np.arange(50, dtype=np.uint32)
  keys = np.concatenate([key_data(seed, step, numbers) for seed in (0, 1) for step in (0, 1)])
  assert len(np.unique(keys, axis=0)) == 200


# Objectives with parameters and running averages of their own.


class Scaled:
  """Scales the logits by a trained number and keeps a running mean of the losses: an objective that owns both."""

  metrics = {'scale': 'max', 'top': 'max'}

  def init(self, params, key):
    del params, key
    return {'scale': jnp.ones(())}, {'loss': jnp.zeros(())}

  def __call__(self, model, own, averages, batch, keys):
    logits = own['scale'] * model(batch['image'], keys)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch['label'])
    top = (logits.max(axis=-1) > 0.1).sum(dtype=jnp.float32)  # a metric that counts otherwise than by examples
    return Outcome(losses, dict(scale=(own['scale'], jnp.float32(1)), top=(top, jnp.float32(2 * len(losses)))),
                   dict(loss=losses.mean() + 0 * averages['loss']))

  def update(self, averages, means, params):
    assert set(params) == {'hidden', 'head', 'objective'}
    return dict(loss=0.9 * averages['loss'] + 0.1 * means['loss'])


def run_scaled(step, data):
  objective = Scaled()
  own, averages = objective.init({}, None)
  state = TrainState.create(join_params(random_params(), own), optimizer().transform, ema=True, averages=averages)
  metrics = []
  for batch in data:
    state, values = step(state, batch)
    metrics.append({name: mean_of(value) for name, value in values.items()})
  return state, metrics


def test_an_objective_may_own_parameters_and_averages():
  state, metrics = run_scaled(jax.jit(make_step(ema_decay=0.7, objective=Scaled())), batches(3))
  assert own_params(state.params)['scale'] != 1.0 and own_params(state.ema)['scale'] != 1.0
  assert set(model_params(state.params)) == {'hidden', 'head'}
  average = 0.0
  for values in metrics:
    average = 0.9 * average + 0.1 * values['loss']
  assert float(state.averages['loss']) == pytest.approx(average, rel=1e-5)
  assert 0.0 <= metrics[0]['top'] <= 0.5 and metrics[0]['scale'] == 1.0
  for changes in (dict(num_micro_batches=4),):
    other, other_metrics = run_scaled(jax.jit(make_step(ema_decay=0.7, objective=Scaled(), **changes)), batches(3))
    assert_close(other.params, state.params, atol=2e-6, rtol=2e-5)
    assert_close(other.averages, state.averages, rtol=1e-5)
    assert other_metrics[-1] == pytest.approx(metrics[-1], rel=1e-4)


def test_an_objectives_averages_are_those_of_all_devices():
  state, metrics = run_scaled(jax.jit(make_step(ema_decay=0.7, objective=Scaled())), batches(2))
  over_devices = jax.vmap(make_step(ema_decay=0.7, objective=Scaled(), axis_name='batch'), in_axes=(None, 0),
                          axis_name='batch')
  first = lambda state, batch: jax.tree.map(lambda x: x[0], over_devices(
      state, {name: x.reshape(2, 4, *x.shape[1:]) for name, x in batch.items()}))
  other, other_metrics = run_scaled(jax.jit(first), batches(2))
  assert_close(other.averages, state.averages, rtol=1e-5)
  assert other_metrics[-1] == pytest.approx(metrics[-1], rel=1e-4)


def test_an_objective_without_averages_leaves_none_in_the_state(plain):
  assert plain[0][-1].averages is None and 'objective' not in plain[0][-1].params
