"""Metrics of classifiers against plain NumPy and scikit-learn; the objective's own; which values are better."""
import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from tests import tiny
from tests.evaluators import on_devices
from vit_jax import train
from vit_jax.base.errors import UserError
from vit_jax.evaluators import EVALUATORS, classification
from vit_jax.evaluators.base import EvalContext
from vit_jax.evaluators.tally import Tally
from vit_jax.objectives.classification import Classification as Objective
from vit_jax.objectives.classification import ClassificationConfig as ObjectiveConfig
from vit_jax.run.build import build
from vit_jax.rundir.layout import RunDir


def evaluated(logits, labels, loss='softmax', batch=7, **options):
  """Return (metrics, tally) of logits (N, C) and labels, counted in batches."""
  num_classes = logits.shape[1]
  names = classification._metric_names(num_classes, labels.ndim == 2, loss)
  tally = Tally(num_classes, **options)
  for start in range(0, len(logits), batch):
    part = slice(start, start + batch)
    found = classification.measure(jnp.asarray(logits[part], jnp.float32), jnp.asarray(labels[part]), loss, names)
    counts = None
    if labels.ndim == 2:
      mask = jnp.arange(len(logits[part]) + 2) < len(logits[part])  # two rows of padding
      padded = [jnp.pad(jnp.asarray(x[part]), [(0, 2), (0, 0)], constant_values=1) for x in (logits, labels)]
      counts = np.asarray(classification.count_classes(*padded, mask))
    tally.add({name: np.asarray(x) for name, x in found.items()}, counts)
  return {name: tally.metrics()[name] for name in names}, tally


def softmax(logits):
  e = np.exp(logits - logits.max(axis=1, keepdims=True))
  return e / e.sum(axis=1, keepdims=True)


def calibration_error(confidence, correct):
  """Expected calibration error as its paper writes it: a sum over bins."""
  total = 0.0
  for m in range(15):
    inside = (confidence > m / 15) & (confidence <= (m + 1) / 15)
    if inside.any():
      total += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
  return total


def made(num_classes=9, n=101, seed=0):
  """Return logits (N, C) that are right about half of the time, and labels (N,) without the last class."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, num_classes - 1, n)
  return 2 * rng.normal(size=(n, num_classes)) + 2 * np.eye(num_classes)[labels], labels


@pytest.mark.parametrize('loss', ['softmax', 'sigmoid'])
@pytest.mark.parametrize('num_classes', [2, 5, 6, 9])
def test_metrics_of_one_class_per_image(loss, num_classes):
  logits, labels = made(num_classes)
  found, tally = evaluated(logits, labels, loss, confusion=True)
  p = softmax(logits) if loss == 'softmax' else 1 / (1 + np.exp(-logits))
  truth = np.eye(num_classes)[labels]
  nats = -np.log(p[np.arange(len(p)), labels])
  if loss == 'sigmoid':
    nats = -(truth * np.log(p) + (1 - truth) * np.log(1 - p)).sum(axis=1)
  best = logits.argmax(axis=1)
  with pytest.warns(UserWarning, match='y_pred contains classes not in y_true'):
    balanced = sklearn_metrics.balanced_accuracy_score(labels, best)
  expected = dict(accuracy=(best == labels).mean(), loss=nats.mean(), balanced_accuracy=balanced,
                  calibration_error=calibration_error(p.max(axis=1), best == labels))
  if num_classes > 5:
    expected['top_5_accuracy'] = sklearn_metrics.top_k_accuracy_score(labels, logits, k=5, labels=range(num_classes))
  assert found == pytest.approx(expected, abs=1e-6)
  confusion = sklearn_metrics.confusion_matrix(labels, best, labels=range(num_classes))
  np.testing.assert_array_equal(tally.confusion, confusion)
  np.testing.assert_array_equal(tally.support, confusion.sum(axis=1))
  np.testing.assert_array_equal(tally.predicted, confusion.sum(axis=0))
  np.testing.assert_array_equal(tally.hits, confusion.diagonal())
  assert np.isnan(tally.recall[-1]) and 0.0 <= np.nanmin(tally.recall)


def test_metrics_of_any_number_of_classes_per_image():
  rng = np.random.default_rng(0)
  labels = (rng.random((83, 6)) < 0.4).astype(np.int32)
  labels[:, 5] = labels[:4] = 0  # a class without images, images without classes
  logits = rng.normal(size=labels.shape) + 1.5 * labels - 0.7
  found, _ = evaluated(logits, labels, 'sigmoid')
  p = 1 / (1 + np.exp(-logits))
  best = logits.argmax(axis=1)
  correct = labels[np.arange(len(labels)), best] > 0
  f1 = lambda average: sklearn_metrics.f1_score(labels, p > 0.5, average=average)
  assert found == pytest.approx(dict(
      accuracy=correct.mean(), loss=-(labels * np.log(p) + (1 - labels) * np.log(1 - p)).sum(axis=1).mean(),
      calibration_error=calibration_error(p.max(axis=1), correct), macro_f1=f1('macro'), micro_f1=f1('micro')), abs=1e-6)
  assert set(evaluated(logits, labels, 'softmax')[0]) == {'accuracy', 'calibration_error'}


def test_metrics_of_a_model_that_diverged():
  found, _ = evaluated(np.full((4, 3), np.nan), np.array([0, 1, 2, 2]))
  assert np.isnan(found['loss']) and np.isnan(found['calibration_error']) and found['accuracy'] == 0.25


@pytest.fixture(scope='module')
def made_run(data_dir):
  """Return (context, parameters) of a run at its start, with a head that is not 0."""
  parts = build(tiny.config(data_dir))
  params = parts.create().params
  params['head']['kernel'] = jnp.asarray(np.random.default_rng(0).normal(size=(16, 10)), jnp.float32)
  context = EvalContext(parts.merge, parts.config.normalization, parts.objective, parts.strategy, parts.data, 64,
                        parts.model.num_classes, parts.config.objective.loss)
  return context, params


def build_evaluator(context, kind, **changes):
  keys = EVALUATORS[kind].Config(split='test[:100]')
  return EVALUATORS[kind](keys, dataclasses.replace(context, **changes))


def test_sizes_of_batches_and_padding_change_nothing(made_run):
  """A split of 100 in batches of 64 and 40, both padded, gives what its images give at once."""
  context, params = made_run
  found = [build_evaluator(context, 'classification', batch_size=size) for size in (64, 40)]
  values = [evaluator(params, {}) for evaluator in found]
  assert list(values[0]) == list(found[0].metrics) == [
      'accuracy', 'balanced_accuracy', 'calibration_error', 'loss', 'top_5_accuracy']
  assert values[1] == pytest.approx(values[0], abs=1e-6)
  batch, = context.data.eval_batches('test[:100]', 100)
  logits = np.asarray(jax.jit(context.logits)(params, batch['image']))
  assert values[0] == pytest.approx(evaluated(logits, batch['label'])[0], abs=1e-6)


def test_the_objective_reports_its_own_loss_and_classification_plain_cross_entropy(made_run):
  context, params = made_run
  config = ObjectiveConfig(label_smoothing=0.3, class_weights=(3.0,) * 10)
  changed = Objective(config, tiny.objective_context(context.data.source.info))
  plain = build_evaluator(context, 'classification', objective=changed)(params, {})
  own, as_is = (build_evaluator(context, 'objective', objective=objective)
                for objective in (changed, context.objective))
  assert dict(own.metrics) == {'loss': 'min', 'accuracy': 'max'}
  assert as_is(params, {}) == pytest.approx({'loss': plain['loss'], 'accuracy': plain['accuracy']}, rel=1e-6)
  assert own(params, {})['loss'] > 2 * plain['loss'] and own(params, {})['accuracy'] == plain['accuracy']


@pytest.mark.parametrize('kind', ['classification', 'average_precision'])
def test_a_model_without_a_head_is_named(made_run, kind):
  with pytest.raises(UserError, match=f"evaluators: kind '{kind}' needs logits, but the model has no head"):
    build_evaluator(made_run[0], kind, num_classes=None)


def test_an_objective_without_labels_cannot_be_measured_as_a_classifier(data_dir):
  config = tiny.config(data_dir, **{'objective': {'kind': 'mae'}})
  with pytest.raises(UserError, match='the model has no head'):
    build(config)


@pytest.mark.slow
def test_the_best_checkpoint_is_that_of_the_smallest_loss(data_dir, tmp_path):
  config = tiny.config(data_dir, **{
      'optim.peak_lr': 1.0, 'train.duration': '6 steps', 'train.eval_every': '1 steps', 'checkpoint.keep': 1,
      'checkpoint.keep_best': 2,
      'checkpoint.best': 'test_ema/loss', 'train.ema_decay': 0.5})
  train.run(config, tmp_path)
  losses = dict(tiny.metrics(tmp_path, ('test_ema/loss',)))
  best = sorted(losses, key=lambda step: losses[step])[:2]
  assert len(losses) == 6 and 6 not in best  # a step that is too long lets the loss rise
  assert sorted(int(path.name) for path in RunDir(tmp_path).checkpoints_path.iterdir()) == sorted([*best, 6])


@pytest.mark.slow
def test_devices_change_nothing_for_any_number_of_labels(data_dir):
  env = dict(os.environ, JAX_PLATFORMS='cpu', XLA_FLAGS='--xla_force_host_platform_device_count=4')
  run = subprocess.run([sys.executable, '-m', 'tests.evaluators.on_devices', data_dir], cwd=tiny.ROOT, env=env, text=True,
                       capture_output=True, check=True)
  expected = on_devices.measured(data_dir, 'pmap')
  for found in json.loads(run.stdout).values():
    for name, values in found.items():
      assert values == pytest.approx(expected[name], abs=1e-6)
  assert len(expected['classification']) == 5
