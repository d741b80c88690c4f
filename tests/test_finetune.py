"""Starting from trained weights: what is kept, resized, reset, frozen, slowed down; and what else a fine-tune offers."""
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from vit_jax import train
from vit_jax.evaluators.average_precision import mean_average_precision
from vit_jax.models.base import flatten
from vit_jax.objectives import classification as objectives
from vit_jax.objectives import losses
from vit_jax.rundir.checkpoint import Checkpoints


def params_of(workdir, config, step=None):
  parts = train.build(train.transfer.fill_model(config.to_dict(), workdir)[0])
  state = train.restore(parts, Checkpoints(workdir / 'checkpoints', **parts.checkpoint), step)[1]
  return parts.strategy.fetch(state.params)


@pytest.fixture(scope='module')
def pretrained(data_dir, tmp_path_factory):
  """(config, workdir, last metrics) of a run to start from."""
  config, workdir = tiny.config(data_dir), tmp_path_factory.mktemp('pretrained') / 'run'
  return config, workdir, train.run(config, workdir)


def finetune(data_dir, init, **changes):
  """A recipe that takes its model from `init`; a learning rate of 0 shows what it starts from."""
  config = tiny.config(data_dir, init=str(init), **{'optim.peak_lr': 0.0, 'optim.weight_decay': 0.0, **changes})
  config.model = {}
  config.train.update(duration='4 steps', eval_every='4 steps')
  return config


def test_starts_where_the_other_run_ended(pretrained, data_dir, tmp_path):
  config, init, last = pretrained
  config_2 = finetune(data_dir, init)
  after = train.run(config_2, tmp_path)
  jax.tree.map(np.testing.assert_array_equal, params_of(tmp_path, config_2), params_of(init, config))
  assert after['test/accuracy'] == last['test/accuracy'] and after['test/loss'] == last['test/loss']


def test_another_resolution_and_aspect_resizes_positions_and_says_so(pretrained, data_dir, tmp_path, capsys):
  config, init, last = pretrained
  config_2 = finetune(data_dir, init, **{'data.image_size': (16, 12), 'data.train_transform': 'resize'})
  train.run(config_2, tmp_path)
  before, after = flatten(params_of(init, config)), flatten(params_of(tmp_path, config_2))
  assert after['position/grid'].shape == (4, 3, 16)
  for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):  # aligned corners stay
    np.testing.assert_allclose(after['position/grid'][corner], before['position/grid'][corner], atol=1e-6)
  for name in before.keys() - {'position/grid'}:
    np.testing.assert_array_equal(after[name], before[name])
  output = capsys.readouterr().out
  assert f'Starting from {init}' in output and 'position' in output


@pytest.mark.parametrize('asked', [True, False])
def test_the_head_is_reset_only_when_asked(asked, pretrained, data_dir, tmp_path, capsys):
  config, init, _ = pretrained
  config_2 = finetune(data_dir, init, **{'transfer': {'reset_head': asked}})
  train.run(config_2, tmp_path)
  head = flatten(params_of(tmp_path, config_2))['head/kernel']
  expected = 0 * head if asked else flatten(params_of(init, config))['head/kernel']
  np.testing.assert_array_equal(head, expected)
  assert np.any(flatten(params_of(init, config))['head/kernel'])
  assert ('head' in capsys.readouterr().out.split('Starting from')[1].split('+--')[0]) == asked


def test_a_resumed_fine_tune_needs_the_weights_no_more(pretrained, data_dir, tmp_path):
  _, init, _ = pretrained
  shutil.copytree(init, tmp_path / 'init')
  config = finetune(data_dir, tmp_path / 'init')
  last = train.run(config, tmp_path / 'run')
  shutil.rmtree(tmp_path / 'init')
  assert train.run(config, tmp_path / 'run') == last


def test_weights_of_another_variant_are_refused(pretrained, data_dir, tmp_path):
  config = finetune(data_dir, pretrained[1])
  config.model = dict(variant='Ti/4')
  with pytest.raises(ValueError, match="model.variant is 'Ti/4', width 192, but .* has width 16"):
    train.run(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_missing_weights_are_named(data_dir, tmp_path):
  with pytest.raises((ValueError, OSError), match='nowhere'):
    train.run(finetune(data_dir, tmp_path / 'nowhere'), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_a_linear_probe_moves_the_head_alone(pretrained, data_dir, tmp_path):
  config, init, _ = pretrained
  config_2 = finetune(data_dir, init, **{'optim.freeze': '(?!head/).*', 'optim.peak_lr': 0.01, 'optim.weight_decay': 0.1})
  config_2.optim.warmup = '0 steps'
  train.run(config_2, tmp_path)
  before, after = flatten(params_of(init, config)), flatten(params_of(tmp_path, config_2))
  moved = {name for name in before if not np.array_equal(before[name], after[name])}
  assert moved == {'head/kernel', 'head/bias'}


def test_class_weights_multiply_the_losses():
  logits, labels = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32), jnp.array([0, 2, 1, 2, 0])
  model = lambda images, rngs: logits
  plain, _ = objectives.Classification()(model, dict(image=None, label=labels), None)
  weighted, _ = objectives.Classification(class_weights=(1.0, 0.5, 3.0))(model, dict(image=None, label=labels), None)
  np.testing.assert_allclose(weighted, plain * np.array([1.0, 3.0, 0.5, 3.0, 1.0]), rtol=1e-6)
  with pytest.raises(ValueError, match='expected 3 numbers'):
    objectives.Classification(class_weights=(1.0, 2.0)).check(3, False)


def test_sigmoid_loss_of_many_labels_is_the_sum_over_classes():
  rng = np.random.default_rng(0)
  logits, labels = rng.normal(size=(4, 3)), np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
  p = 1 / (1 + np.exp(-logits))
  expected = -(labels * np.log(p) + (1 - labels) * np.log(1 - p)).sum(axis=1)
  np.testing.assert_allclose(losses.sigmoid(jnp.asarray(logits), jnp.asarray(labels)), expected, rtol=1e-5)
  with pytest.raises(ValueError, match="objective.loss='sigmoid'"):
    losses.softmax(jnp.asarray(logits), jnp.asarray(labels))


def test_mean_average_precision_by_hand():
  # Class 0: ranks of the positives 1 and 3: (1/1 + 2/3) / 2. Class 1: rank 2: 1/2. Class 2 has no positive.
  logits = np.array([[4.0, 1.0, 0.0], [3.0, 4.0, 0.0], [2.0, 3.0, 0.0], [1.0, 2.0, 0.0]])
  labels = np.array([[1, 0, 0], [0, 0, 0], [1, 1, 0], [0, 0, 0]])
  assert mean_average_precision(logits, labels) == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2)


def test_many_labels_an_image_are_learned(data_dir, tmp_path):
  config = tiny.config(data_dir, **{
      'data.name': 'tiny_scenes', 'data.train_split': 'train', 'data.train_transform': 'resize', 'data.batch_size': 32,
      'train.duration': '60 steps', 'train.eval_every': '60 steps', 'optim.peak_lr': 0.01, 'model.pool': 'gap',
      'objective.loss': 'sigmoid', 'evaluators': {'test': {'kind': 'average_precision', 'split': 'test'}}})
  assert train.run(config, tmp_path)['test/mAP'] > 0.95  # half of the images hold each class: guessing gives about 0.5
  config.objective.loss = 'softmax'
  with pytest.raises(ValueError, match="objective.loss='sigmoid'"):
    train.run(config, tmp_path / 'softmax')


def test_average_precision_evaluator_counts_each_example_once(pretrained, data_dir, tmp_path):
  config = finetune(data_dir, pretrained[1])
  config.evaluators = dict(test=dict(kind='average_precision', split='test[:100]'))
  values = train.run(config, tmp_path)
  assert set(values) == {'test/mAP', 'test_ema/mAP'} and 0.0 < values['test/mAP'] <= 1.0
