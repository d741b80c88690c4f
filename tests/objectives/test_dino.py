"""DINO as an objective of a run: closed forms of its averages, places and devices, resuming, loading the teacher."""
import functools
import math
import shutil
import types

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from tests.training.test_step import assert_close, batches, optimizer, permuted, prepare
import vit_jax
from vit_jax import train
from vit_jax.base.durations import Duration
from vit_jax.base.errors import UserError
from vit_jax.data.sources.info import DatasetInfo
from vit_jax.objectives.base import EMA, mean_of
from vit_jax.objectives.dino import Dino, DinoConfig
from vit_jax.run import start
from vit_jax.run.build import build
from vit_jax.rundir.checkpoint import CheckpointConfig, Checkpoints
from vit_jax.rundir.layout import RunDir
from vit_jax.training import step as step_lib
from vit_jax.training.state import TrainState, join_params, model_params

SMALL = dict(outputs=16, hidden=12, bottleneck=8, local_crops=1, local_size=(4, 4), blur=0.5)
INFO = DatasetInfo(num_examples=40, num_classes=3, channels=1)


@functools.cache
def parts(**fields):
  """Return (objective, params → model, initial state) of a tiny ViT."""
  config = DinoConfig(**{**SMALL, 'freeze_last_layer': Duration(0), **fields})
  context = tiny.objective_context(INFO, depth=1, width=8, mlp_dim=16)
  graphdef, _ = nnx.split(context.model, nnx.Param)
  objective = Dino(config, context)

  def create():
    model = type(context.model)(context.model.config, rngs=nnx.Rngs(0))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    own, averages = objective.init(params, jax.random.key(1))
    return TrainState.create(join_params(params, own), optimizer().transform, ema=False, averages=averages)

  return objective, lambda params: nnx.merge(graphdef, params), jax.jit(create)()


@functools.cache
def step_of(num_micro_batches=1, axis_name=None, **fields):
  objective, merge, _ = parts(**fields)
  model = step_lib.StepModel(merge, lambda params: params, lambda tree, params: tree)
  return step_lib.make_train_step(model, objective, optimizer(), prepare,
                                  step_lib.BatchSplit(num_micro_batches, axis_name=axis_name), seed=0, ema_decay=None)


@functools.cache
def plain_step():
  return jax.jit(step_of())


@functools.cache
def trained():
  """Return (state, {metric: mean}) after two steps."""
  state, metrics = parts()[2], {}
  for batch in batches(2):
    state, metrics = plain_step()(state, batch)
  return state, {name: mean_of(value) for name, value in metrics.items()}


def test_teacher_center_and_temperature_equal_their_formulas():
  objective, _, state = parts(temperature_warmup=Duration(4), teacher_temperature=0.07, momentum=0.9)
  rng, averages = np.random.default_rng(0), state.averages
  teacher = jax.tree.map(np.float64, averages[EMA])
  jax.tree.map(np.testing.assert_array_equal, averages[EMA], state.params)
  center = np.zeros(16)
  for step in range(3):
    assert float(averages['temperature']) == pytest.approx(0.04 + 0.03 * min(1, step / 4))
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), state.params)
    mean = rng.normal(size=16).astype(np.float32)
    averages = objective.update(averages, dict(center=mean), params)
    momentum = 1 - (1 - 0.9) * (math.cos(math.pi * step / 10) + 1) / 2
    teacher = jax.tree.map(lambda t, p, m=momentum: m * t + (1 - m) * p, teacher, params)
    center = 0.9 * center + 0.1 * mean
    assert_close(averages[EMA], teacher, atol=1e-6)
    np.testing.assert_allclose(averages['center'], center, atol=1e-6)
  assert int(averages['step']) == 3


@pytest.mark.slow
def test_a_step_moves_the_center_to_the_teachers_mean_output_and_reports_finite_metrics():
  state, metrics = trained()
  assert set(metrics) == {'loss', 'grad_norm', 'kl', 'teacher_entropy', 'teacher_std'}
  assert all(math.isfinite(value) for value in metrics.values())
  assert metrics['loss'] == pytest.approx(metrics['kl'] + metrics['teacher_entropy'], rel=1e-4)
  assert 0 < metrics['teacher_entropy'] < math.log(16) and metrics['kl'] > 0
  assert 0 < np.abs(state.averages['center']).max() <= 0.19 + 1e-6  # cosines, two updates of weight 0.1
  moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), state.averages[EMA], parts()[2].averages[EMA])
  assert 0 < max(jax.tree.leaves(moved))


@pytest.mark.slow
def test_micro_batches_devices_and_places_change_nothing():
  expected, metrics = trained()
  over_devices = jax.vmap(step_of(2, 'batch'), in_axes=(None, 0), axis_name='batch')

  def two_devices(state, batch):
    split = {name: x.reshape(2, 4, *x.shape[1:]) for name, x in batch.items()}
    return jax.tree.map(lambda x: x[0], over_devices(state, split))

  for step, order in ((jax.jit(two_devices), slice(None)), (plain_step(), np.array([3, 0, 7, 6, 2, 5, 1, 4]))):
    state, values = parts()[2], {}
    for batch in batches(2):
      state, values = step(state, permuted(batch, order))
    assert_close(state.params, expected.params, atol=1e-4, rtol=1e-4)
    assert_close(state.averages, expected.averages, atol=1e-5, rtol=1e-4)
    assert {name: mean_of(value) for name, value in values.items()} == pytest.approx(metrics, rel=1e-3)


def test_an_evaluation_draws_the_crops_from_the_id():
  objective, merge, state = parts()
  batch = prepare(batches(1)[0], None)
  call = jax.jit(lambda batch: objective(merge(model_params(state.params)), state.params['objective'], state.averages,
                                         batch, None))
  first, order = call(batch), np.array([3, 0, 7, 6, 2, 5, 1, 4])
  other = call({**permuted(batch, order), 'rng': batch['rng'] + 1, 'label': batch['label'] * 0})
  np.testing.assert_allclose(other.losses, first.losses[order], rtol=1e-4)
  masked = call({**batch, 'mask': np.arange(8) < 5}).metrics
  assert mean_of(masked['kl']) + mean_of(masked['teacher_entropy']) == pytest.approx(
      float(first.losses[:5].mean()), rel=1e-4)


def test_the_last_layer_waits():
  objective, merge, state = parts(freeze_last_layer=Duration(1))
  batch = prepare(batches(1)[0], None)
  keys = step_lib.example_keys(0, 0, batch['rng'])

  @jax.jit
  def gradient(step):
    averages = {**state.averages, 'step': step}
    loss = lambda own: objective(merge(model_params(state.params)), own, averages, batch, keys).losses.mean()
    return jax.grad(loss)(state.params['objective'])['head']

  before, after = gradient(jnp.int32(0)), gradient(jnp.int32(1))
  assert np.abs(before['prototypes']['kernel']).max() == 0 and np.abs(before['hidden_0']['kernel']).max() > 0
  assert np.abs(after['prototypes']['kernel']).max() > 0


@pytest.mark.parametrize('fields, message', [
    (dict(outputs=0), 'objective.outputs: must be at least 1'),
    (dict(global_area=(0.5,)), 'objective.global_area: expected the smallest and the largest share'),
    (dict(local_area=(0.3, 0.2)), 'objective.local_area: expected the smallest'),
    (dict(momentum=1.0), r'objective.momentum: must be in \[0, 1\)'),
    (dict(student_temperature=0.0), 'objective.student_temperature: must be positive'),
    (dict(blur=-1.0), 'objective.blur: must be at least 0'),
])
def test_bad_values_are_errors(fields, message):
  with pytest.raises(UserError, match=message):
    DinoConfig(**fields)


def test_local_crops_that_the_model_cannot_take_are_errors():
  with pytest.raises(UserError, match='objective.local_size: must be whole patches of 4×4 pixels, got 6×6'):
    Dino(DinoConfig(local_size=(6, 6)), tiny.objective_context(INFO))
  with pytest.raises(UserError, match='objective.local_size: this model takes images of one size, 8×8'):
    Dino(DinoConfig(local_size=(4, 4)), tiny.objective_context(INFO, relative_position='table'))
  Dino(DinoConfig(local_crops=0), tiny.objective_context(INFO, relative_position='table'))


# Runs.


def recipe(data_dir, **changes):
  config = tiny.config(data_dir, **{
      'objective': dict(kind='dino', **SMALL), 'train.ema_decay': None, 'train.duration': '4 steps', 'train.micro_batch': 8,
      'train.eval_every': '4 steps', 'checkpoint': dict(every='2 steps', keep=2), 'data.batch_size': 16,
      'evaluators': dict(test=dict(kind='objective', split='test[:20]')),
      'optim.warmup': '1 steps', **changes})
  config.model.update(dtype='bfloat16', unroll=True, depth=1, width=8, mlp_dim=16)
  return config


def state_of(config, path, step=None):
  built = build(config)
  checkpoints = Checkpoints(RunDir(path).checkpoints_path, CheckpointConfig(), read_only=True)
  try:
    return jax.device_get(start.restore(built, checkpoints, step).state)
  finally:
    checkpoints.close()


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one(data_dir, tmp_path):
  """In bfloat16, unrolled, with micro-batches."""
  once, twice, config = tmp_path / 'once', tmp_path / 'twice', recipe(data_dir)
  train.run(config, once)
  shutil.copytree(once, twice)
  shutil.rmtree(RunDir(twice).checkpoints_path / '4')
  train.run(config, twice)
  jax.tree.map(np.testing.assert_array_equal, state_of(config, twice, 4), state_of(config, once, 4))
  names = ('train/loss', 'train/kl', 'train/teacher_entropy')
  assert tiny.metrics(twice, names)[-2:] == tiny.metrics(once, names)[-2:]
  measured = [tiny.metrics(path, ('test/loss', 'test/kl', 'test_ema/loss')) for path in (once, twice)]
  assert measured[0] and measured[0] == measured[1]


@pytest.fixture(scope='module')
def run(data_dir, tmp_path_factory):
  """Return (directory, state) of a run without steps, whose teacher differs from its student."""
  path, config = tmp_path_factory.mktemp('dino') / 'run', recipe(data_dir)
  built = build(config)
  checkpoints = Checkpoints(RunDir(path).checkpoints_path, built.config.checkpoint, built.pace)
  at = start.restore(built, checkpoints)
  teacher = jax.tree.map(lambda x: x + 0.25, at.state.averages[EMA])
  at.state = at.state.replace(averages={**at.state.averages, EMA: teacher})
  RunDir(path).write_config(built.config.to_dict())
  checkpoints.save(1, built.strategy.fetch(at.state.to_save()), at.record)
  checkpoints.close()
  return path, at.state


def test_load_gives_the_student_and_with_ema_the_teacher(run):
  path, state = run
  for ema, params in ((False, state.params), (True, state.averages[EMA])):
    model = vit_jax.load(path, ema=ema)
    assert model.num_classes is None
    assert_close(nnx.to_pure_dict(nnx.state(model, nnx.Param)), model_params(params))


def test_a_run_from_weights_starts_with_them_as_its_teacher(run, data_dir, tmp_path):
  path, state = run
  built = build(recipe(data_dir, init=str(path)))
  at = start.restore(built, Checkpoints(RunDir(tmp_path / 'run').checkpoints_path, built.config.checkpoint, built.pace))
  start.from_weights(built, at, None, types.SimpleNamespace(say=lambda text: None))
  assert_close(at.state.averages[EMA], at.state.params)
  assert_close(model_params(at.state.params), model_params(state.params))


def test_another_ema_is_an_error(data_dir):
  with pytest.raises(UserError, match="train.ema_decay: objective.kind='dino' keeps an EMA of its own"):
    build(recipe(data_dir, **{'train.ema_decay': 0.9}))
