"""A head follows the names of its classes: fine-tuning and evaluating on data with the same classes in another order."""
import json
import shutil

import numpy as np
import pytest

from tests import tiny
from tests.conftest import encode
from vit_jax import train
from vit_jax.base.errors import UserError
from vit_jax.models.base import flatten
from vit_jax.pretrained import load, save
from vit_jax.run import evaluation

NAMES = ('ant', 'bee', 'cat', 'dog')
ORDER = (2, 0, 3, 1)  # of the classes in the other data


def images(seed, count=24):
  """Return images (N, 9, 9, 3) and labels of four classes that are easy to tell apart: two halves, two colors."""
  rng = np.random.default_rng(seed)
  labels = np.arange(count) % len(NAMES)
  pixels = rng.integers(0, 60, (count, 9, 9, 3), dtype=np.uint8)
  for image, label in zip(pixels, labels, strict=True):
    image[:, slice(0, 5) if label % 2 else slice(5, 9), label // 2] += 180
  return pixels, labels


def write_npz(path, names):
  """Write both splits with the labels that the names have in this order."""
  arrays = {}
  for seed, split in enumerate(('train', 'val')):
    pixels, labels = images(seed)
    place = np.array([names.index(name) for name in NAMES])
    arrays.update({f'{split}_images': pixels, f'{split}_labels': place[labels]})
  np.savez(path, class_names=np.array(names), **arrays)
  return path


def write_folder(path, names):
  """Write both splits as folders, `names` in place of NAMES."""
  for seed, split in enumerate(('train', 'val')):
    for index, (image, label) in enumerate(zip(*images(seed), strict=True)):
      (path / split / names[label]).mkdir(parents=True, exist_ok=True)
      (path / split / names[label] / f'{index}.png').write_bytes(encode(image))
  return path


def recipe(data, **changes):
  return tiny.config('unused', **{
      'data.name': str(data), 'data.data_dir': None, 'data.train_split': 'train', 'data.batch_size': 8,
      'data.eval_transform': 'resize', 'data.train_transform': 'resize', 'data.image_size': 8, 'train.ema_decay': 0.9,
      'evaluators': {'test': {'kind': 'classification', 'split': 'val'}}, 'optim.warmup': '0 steps', **changes})


def continued(data, init, **changes):
  """Return a recipe that starts from weights and stays there: evaluation gives what they know."""
  config = recipe(data, init=str(init), **{'optim.peak_lr': 0.0, 'optim.weight_decay': 0.0, **changes})
  config.model = {}
  config.train.update(duration='1 steps', eval_every='1 steps')
  return config


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """Return (run directory, its metrics) of a run on a folder."""
  folder = tmp_path_factory.mktemp('classes')
  config = recipe(f'folder:{write_folder(folder / "data", NAMES)}', **{'optim.peak_lr': 1e-2, 'optim.warmup': '4 steps'})
  config.train.update(duration='60 steps', eval_every='60 steps', log_every='60 steps')
  config.model.update(dropout=0.0, attention_dropout=0.0)
  metrics = train.run(config, folder / 'run')
  assert metrics['test/accuracy'] > 0.9
  return folder / 'run', metrics


@pytest.mark.slow
def test_fine_tuning_on_the_same_classes_in_another_order(trained, tmp_path, capsys):
  """The same metrics, from a run and from a file; the parameters of the head are those of the same names."""
  run, metrics = trained
  names = tuple(NAMES[i] for i in ORDER)
  data = f'npz:{write_npz(tmp_path / "other.npz", names)}'
  save.save(load.read(run), tmp_path / 'file', 'timm', approximate=True)
  for number, init in enumerate((run, tmp_path / 'file')):
    after = train.run(continued(data, init, **{'model': {}}), tmp_path / f'run{number}')
    assert after['test/accuracy'] == metrics['test/accuracy']
    assert after['test/loss'] == pytest.approx(metrics['test/loss'], abs=2e-3 if number else 1e-6)  # GELU: as it was
    assert 'the same classes in another order; 4 of 4 rows moved, by name' in capsys.readouterr().out
  before, after = (flatten(load.read(path).params) for path in (run, tmp_path / 'run0'))
  for leaf in ('head/kernel', 'head/bias'):
    np.testing.assert_array_equal(after[leaf], before[leaf][..., list(ORDER)])
  assert load.read(tmp_path / 'run0').class_names == names


def test_numbered_folders_are_matched_by_the_names_that_are_given(trained, tmp_path, capsys):
  """Without names the head is kept as it is, and accuracy falls: loudly. With them it is right again."""
  run, metrics = trained
  numbers = ('10', '9', '1', '2')  # sorted as text: 1, 10, 2, 9
  data = f'folder:{write_folder(tmp_path / "data", numbers)}'
  wrong = train.run(continued(data, run), tmp_path / 'wrong')
  assert wrong['test/accuracy'] < 0.5
  assert 'warning: head: kept, although its classes have other names: ant; bee; cat; dog' in capsys.readouterr().out
  (tmp_path / 'names.json').write_text(json.dumps(numbers))
  right = train.run(continued(data, run, **{'transfer': {'classes': str(tmp_path / 'names.json')}}), tmp_path / 'right')
  assert right['test/accuracy'] == metrics['test/accuracy']


@pytest.mark.parametrize('names', [NAMES[:3], (*NAMES, 'emu')])
def test_fewer_or_more_classes_reset_the_head(names, trained, tmp_path, capsys):
  pixels, labels = images(0)
  data = tmp_path / 'data.npz'
  np.savez(data, train_images=pixels, train_labels=labels % 3, val_images=pixels, val_labels=labels % 3,
           class_names=np.array(names))
  train.run(continued(f'npz:{data}', trained[0]), tmp_path / 'run')
  assert not flatten(load.read(tmp_path / 'run').params)['head/kernel'].any()
  output = capsys.readouterr().out
  assert f'head: reset to zeros for {len(names)} classes (was 4)' in output and 'warning: head: reset, although' in output


def test_evaluating_a_run_on_the_same_classes_in_another_order(trained, tmp_path):
  run, metrics = trained
  shutil.copytree(run, tmp_path / 'run')
  config = json.loads((run / 'config.json').read_text())
  config['data']['name'] = f'npz:{write_npz(tmp_path / "other.npz", tuple(NAMES[i] for i in ORDER))}'
  (tmp_path / 'run' / 'config.json').write_text(json.dumps(config))
  values = evaluation.evaluate(tmp_path / 'run')[1]
  assert values == pytest.approx(metrics, abs=1e-6) and 'test_ema/accuracy' in values
  config['data']['name'] = f'npz:{write_npz(tmp_path / "others.npz", ("ant", "bee", "cat", "dog", "emu"))}'
  (tmp_path / 'run' / 'config.json').write_text(json.dumps(config))
  with pytest.raises(UserError, match='data.name: the classes of .*others.npz have changed'):
    evaluation.evaluate(tmp_path / 'run')


def test_another_loss_than_that_of_the_weights_is_said(trained, tmp_path, capsys):
  config = recipe(f'npz:{write_npz(tmp_path / "data.npz", NAMES)}', init=str(trained[0]), **{'objective.loss': 'sigmoid'})
  config.model = {}
  config.train.update(duration='1 steps', eval_every='1 steps')
  train.run(config, tmp_path / 'run')
  assert "head: trained with the loss 'softmax', this run uses 'sigmoid': --config.objective.loss=softmax" in (
      capsys.readouterr().out)
