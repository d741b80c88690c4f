"""Starting from trained weights: what is kept, resized, reset and frozen."""
import dataclasses
import shutil

import numpy as np
import pytest

from tests import golden_files, tiny
from vit_jax import train
from vit_jax.base.errors import FileError, UserError
from vit_jax.base.preprocessing import Preprocessing
from vit_jax.models.base import flatten
from vit_jax.pretrained import load, save


def params_of(workdir):
  """Return {path: array} of a run's latest checkpoint."""
  return flatten(load.read(workdir).params)


@pytest.fixture(scope='module')
def pretrained(data_dir, tmp_path_factory):
  """Return (config, workdir, last metrics) of a run to start from."""
  config, workdir = tiny.config(data_dir), tmp_path_factory.mktemp('pretrained') / 'run'
  return config, workdir, train.run(config, workdir)


def finetune(data_dir, init, **changes):
  """Return a recipe that takes its model from `init`; with a learning rate of 0, it ends where it starts."""
  config = tiny.config(data_dir, init=str(init), **{'optim.peak_lr': 0.0, 'optim.weight_decay': 0.0, **changes})
  config.model = {}
  config.train.update(duration='4 steps', eval_every='4 steps')
  return config


def test_starts_where_the_other_run_ended(pretrained, data_dir, tmp_path):
  _, init, last = pretrained
  after = train.run(finetune(data_dir, init), tmp_path)
  golden_files.assert_same_params(load.read(tmp_path).params, load.read(init).params)
  assert after['test/accuracy'] == last['test/accuracy'] and after['test/loss'] == last['test/loss']


def test_statistics_of_color_images_are_adapted_to_grey_ones(data_dir, tmp_path, capsys):
  """A model of timm's for color images, with the statistics of ImageNet, learns grey digits."""
  mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
  weights = golden_files.read('timm_token')
  save.save(dataclasses.replace(weights, preprocessing=Preprocessing('resize', mean, std)), tmp_path / 'timm', 'timm')
  config = finetune(data_dir, tmp_path / 'timm', **{'optim.peak_lr': 1e-2})
  config.train.update(duration='30 steps', eval_every='30 steps')
  assert train.run(config, tmp_path / 'run')['test/accuracy'] > 0.2
  assert 'normalization: mean (0.485, 0.456, 0.406)' in capsys.readouterr().out
  after = load.read(tmp_path / 'run')
  assert after.config.channels == 1 and after.preprocessing.mean == pytest.approx(0.449)
  assert train.run(config, tmp_path / 'run')['test/accuracy'] > 0.2  # the same command resumes
  with pytest.raises(UserError, match='normalization.mean: expected 1 number, as the images have 1 channel; got'):
    train.run(tiny.config(data_dir, normalization=dict(mean=mean, std=std)), tmp_path / 'other')


def test_another_resolution_and_aspect_resizes_positions_and_says_so(pretrained, data_dir, tmp_path, capsys):
  _, init, _ = pretrained
  train.run(finetune(data_dir, init, **{'data.image_size': (16, 12), 'data.train_transform': 'resize'}), tmp_path)
  before, after = params_of(init), params_of(tmp_path)
  assert after['position/grid'].shape == (4, 3, 16)
  for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):  # aligned corners keep their values
    np.testing.assert_allclose(after['position/grid'][corner], before['position/grid'][corner], atol=1e-6)
  for name in before.keys() - {'position/grid'}:
    np.testing.assert_array_equal(after[name], before[name])
  output = capsys.readouterr().out
  assert f'Starting from {init}' in output and 'position' in output


@pytest.mark.parametrize('reset', [True, False])
def test_the_head_is_reset_only_on_request(reset, pretrained, data_dir, tmp_path, capsys):
  _, init, _ = pretrained
  train.run(finetune(data_dir, init, **{'transfer': {'reset_head': reset}}), tmp_path)
  head = params_of(tmp_path)['head/kernel']
  expected = 0 * head if reset else params_of(init)['head/kernel']
  np.testing.assert_array_equal(head, expected)
  assert np.any(params_of(init)['head/kernel'])
  assert ('head' in capsys.readouterr().out.split('Starting from')[1].split('+--')[0]) == reset


@pytest.mark.parametrize('workdir', ['{tmp_path}/run', '~/run'])
def test_a_resumed_fine_tune_no_longer_needs_the_weights(workdir, pretrained, data_dir, tmp_path, monkeypatch):
  """The weights may be gone, also if the user wrote the run directory with a `~`."""
  monkeypatch.setenv('HOME', str(tmp_path))
  workdir = workdir.format(tmp_path=tmp_path)
  shutil.copytree(pretrained[1], tmp_path / 'init')
  config = finetune(data_dir, tmp_path / 'init')
  last = train.run(config, workdir)
  assert (tmp_path / 'run' / 'config.json').exists()
  shutil.rmtree(tmp_path / 'init')
  assert train.run(config, workdir) == last


def test_weights_of_another_variant_are_refused(pretrained, data_dir, tmp_path):
  config = finetune(data_dir, pretrained[1])
  config.model = dict(variant='Ti/4')
  with pytest.raises(UserError, match="model.variant: 'Ti/4' has width 192, but .* has width 16"):
    train.run(config, tmp_path / 'run')
  config.model = dict(kind='resnet')
  with pytest.raises(UserError, match="model.kind: the recipe says 'resnet', but .* holds 'vit'"):
    train.run(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_missing_weights_are_named(data_dir, tmp_path):
  with pytest.raises(FileError, match='nowhere: not found'):
    train.run(finetune(data_dir, tmp_path / 'nowhere'), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_a_linear_probe_moves_only_the_head(pretrained, data_dir, tmp_path):
  _, init, _ = pretrained
  config = finetune(data_dir, init, **{'optim.freeze': '(?!head/).*', 'optim.peak_lr': 0.01, 'optim.weight_decay': 0.1})
  config.optim.warmup = '0 steps'
  train.run(config, tmp_path)
  before, after = params_of(init), params_of(tmp_path)
  moved = {name for name in before if not np.array_equal(before[name], after[name])}
  assert moved == {'head/kernel', 'head/bias'}


def test_average_precision_evaluator_counts_each_example_once(pretrained, data_dir, tmp_path):
  config = finetune(data_dir, pretrained[1])
  config.evaluators = dict(test=dict(kind='average_precision', split='test[:100]'))
  values = train.run(config, tmp_path)
  assert set(values) == {'test/mAP', 'test_ema/mAP'} and 0.0 < values['test/mAP'] <= 1.0
