"""Runs without labels: they train, resume and evaluate like others, and what they leave can be loaded and fine-tuned."""
import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
from PIL import Image
import pytest

from tests import masked_on_devices, tiny
from tests.test_end_to_end import final_state
import vit_jax
from vit_jax import train
from vit_jax.analysis import reconstructions
from vit_jax.base.errors import UserError
from vit_jax.models.base import flatten
from vit_jax.pretrained import describe, load
from vit_jax.pretrained.adapt import Adaptation, adapt
from vit_jax.run import evaluation
from vit_jax.run.build import build

MAE = dict(kind='mae', decoder_width=16, decoder_depth=1, decoder_heads=2)


def config(data_dir, **changes):
  """Return a run of twelve steps of MAE on digits of 4×4 patches."""
  return tiny.config(data_dir, **{
      'model.patch_size': 2, 'objective': MAE, 'checkpoint.keep': 3,
      'evaluators': dict(test=dict(kind='objective', split='test[:100]')), **changes})


@pytest.fixture(scope='module')
def finished(data_dir, tmp_path_factory):
  """(config, workdir, last metrics) of an uninterrupted run."""
  given, workdir = config(data_dir), tmp_path_factory.mktemp('mae') / 'run'
  return given, workdir, train.run(given, workdir)


def test_it_learns_and_is_measured(finished):
  _, workdir, last = finished
  (_, first), *_, (_, final) = tiny.metrics(workdir, ('train/loss',))
  assert final < first
  assert set(last) == {f'test{ema}/{name}' for ema in ('', '_ema') for name in ('loss', 'pixel_error')}
  assert evaluation.evaluate(workdir)[1] == last


def test_it_resumes_as_if_it_had_not_stopped(finished, tmp_path):
  given, workdir, _ = finished
  shutil.copytree(workdir, tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '12')
  lines = (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines(keepends=True)
  (tmp_path / 'run' / 'metrics.jsonl').write_text(''.join(line for line in lines if json.loads(line)['step'] <= 8))
  train.run(given, tmp_path / 'run')
  (*_, state, record), (*_, other_state, other_record) = (final_state(given, path) for path in (workdir, tmp_path / 'run'))
  assert record == other_record
  jax.tree.map(np.testing.assert_array_equal, state, other_state)
  names = ('train/loss', 'train/pixel_error', 'train/grad_norm')
  assert tiny.metrics(workdir, names) == tiny.metrics(tmp_path / 'run', names)


def test_its_model_has_no_head_and_no_decoder(finished):
  _, workdir, _ = finished
  weights = load.read(workdir)
  assert weights.config.num_classes is None and weights.class_names is None
  assert not [path for path in flatten(weights.params) if path.startswith(('head', 'objective'))]
  model = vit_jax.load(workdir)
  images = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
  np.testing.assert_array_equal(model(images), model.embed(images))
  assert 'head           none: the model returns embeddings' in describe.describe(workdir).to_text()
  with pytest.raises(UserError, match='has no head'):
    model.predict([np.zeros((8, 8), np.uint8)])


def test_a_fine_tune_starts_from_it(finished, data_dir, tmp_path, capsys):
  _, workdir, _ = finished
  tuned = tiny.config(data_dir, **{'init': str(workdir), 'model': dict(dropout=0.0), 'train.duration': '1 steps',
                                   'optim.warmup': '0 steps', 'optim.peak_lr': 0.0, 'optim.weight_decay': 0.0})
  assert 'test/accuracy' in train.run(tuned, tmp_path / 'tuned')
  assert 'head: reset to zeros for 10 classes' in capsys.readouterr().out
  before, after = flatten(load.read(workdir).params), flatten(load.read(tmp_path / 'tuned').params)
  assert after.keys() - before.keys() == {'head/kernel', 'head/bias'}
  for path, leaf in before.items():
    np.testing.assert_array_equal(after[path], leaf, err_msg=path)


@pytest.mark.slow
def test_it_starts_from_a_classifier(finished, data_dir, tmp_path, capsys):
  """The head of the weights is left out, and that their classes are those of the data is no reason to warn."""
  given, workdir, _ = finished
  classifier = tmp_path / 'classifier'
  tuned = tiny.config(data_dir, **{'init': str(workdir), 'model': {}, 'train.duration': '1 steps', 'optim.warmup': '0 steps'})
  train.run(tuned, classifier)
  capsys.readouterr()
  train.run(config(data_dir, **{'init': str(classifier), 'train.duration': '1 steps', 'optim.warmup': '0 steps'}),
            tmp_path / 'mae')
  shown = capsys.readouterr().out
  assert 'head: removed (was 10 classes)' in shown and 'warning: head' not in shown
  assert adapt(load.read(classifier), Adaptation(num_classes=0))[0].config.num_classes is None


def test_kinds_that_need_a_head_are_refused(data_dir):
  evaluators = dict(test=dict(kind='classification', split='test[:100]'))
  with pytest.raises(UserError, match='the model has no head'):
    build(config(data_dir, evaluators=evaluators))


def test_reconstructions_are_drawn(finished, tmp_path):
  _, workdir, _ = finished
  original, hidden, filled = reconstructions.rows(workdir, 5)
  for (image, _), (gray, _), (whole, _) in zip(original, hidden, filled, strict=True):
    assert image.shape == (8, 8, 1)
    hides = np.repeat(np.repeat((gray.reshape(4, 2, 4, 2) == 128).all(axis=(1, 3)), 2, axis=0), 2, axis=1)
    assert hides.sum() == 12 * 4 and (whole == image)[~hides].all() and (gray == image)[~hides].all()
    assert not (whole == image)[hides].all()
  process = tiny.command('show', f'--workdir={workdir}', '--count=4', f'--output={tmp_path / "sheet.png"}')
  output, error = process.communicate()
  assert process.returncode == 0 and 'Wrote' in output, error
  with Image.open(tmp_path / 'sheet.png') as sheet:
    assert sheet.width > 4 * 96 > sheet.height - 100
  with pytest.raises(UserError, match='--count: must be in 1..100'):
    reconstructions.rows(workdir, 101)


def test_reconstructions_need_hidden_patches(data_dir, tmp_path):
  given = tiny.config(data_dir, **{'train.duration': '1 steps', 'optim.warmup': '0 steps'})
  train.run(given, tmp_path)
  with pytest.raises(UserError, match="is 'classification', which hides no patches"):
    reconstructions.rows(tmp_path, 1)


@pytest.mark.slow
@pytest.mark.parametrize('kind', masked_on_devices.OBJECTIVES)
def test_eight_devices_train_like_one(kind):
  env = dict(os.environ, JAX_PLATFORMS='cpu', XLA_FLAGS='--xla_force_host_platform_device_count=8')
  process = subprocess.run([sys.executable, '-m', 'tests.masked_on_devices', kind], cwd=tiny.ROOT, env=env, text=True,
                           capture_output=True, check=False)
  assert process.returncode == 0, process.stderr
  one, *others = json.loads(process.stdout)[kind].values()
  assert len(others) == 4
  for other in others:
    for line, expected in zip(other['lines'], one['lines'], strict=True):
      assert line == pytest.approx(expected, rel=2e-4)
    assert other['sums'] == pytest.approx(one['sums'], rel=1e-3)
