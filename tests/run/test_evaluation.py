"""Evaluating weights without a recipe: equal to the run they come from, classes by name, errors before compilation."""
import json

import numpy as np
import pytest

from tests import tiny
from tests.test_class_order import NAMES, ORDER, images, recipe, write_npz
from vit_jax import train
from vit_jax.base.errors import MissingFileError, UserError
from vit_jax.pretrained import load, save
from vit_jax.run import evaluation


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """Return (run directory, data, metrics) of a short run on arrays of four named classes."""
  folder = tmp_path_factory.mktemp('evaluation')
  data = f'npz:{write_npz(folder / "data.npz", NAMES)}'
  config = recipe(data, **{
      'normalization': dict(mean=(0.4, 0.5, 0.6), std=0.3), 'data.eval_transform': 'resize(to=(9, 9))|central_crop',
      'train.duration': '2 steps', 'train.eval_every': '2 steps', 'checkpoint': {}, 'train.ema_decay': 0.5, 'optim.peak_lr': 1e-2, 'evaluators': {'val': dict(kind='classification', split='val')}})
  return folder / 'run', data, train.run(config, folder / 'run')


def sections(data, **keys):
  return dict(data=dict(name=str(data), **keys))


@pytest.mark.parametrize('ema', [False, True])
def test_a_run_directory_evaluates_to_what_the_run_recorded(ema, trained, capsys):
  run, data, metrics = trained
  values = evaluation.evaluate_weights(run, sections(data, batch_size=8), ema=ema)
  suffix = '_ema' if ema else ''
  recorded = {name.partition('/')[2]: value for name, value in metrics.items() if name.startswith(f'val{suffix}/')}
  assert values == {f'val/{metric}': value for metric, value in recorded.items()} and len(values) > 1
  said = capsys.readouterr().err
  assert "8 × 8, in color, prepared by 'resize(to=(9, 9))|central_crop', mean (0.4, 0.5, 0.6), std 0.3" in said


def test_files_and_other_batches_give_the_same(trained, tmp_path):
  """24 images in batches of 7: the last one is padded."""
  run, data, metrics = trained
  save.save(load.read(run), tmp_path / 'model.npz', 'google', approximate=True)
  values = evaluation.evaluate_weights(run, sections(data, batch_size=7, workers=0))
  assert values == pytest.approx({name: metrics[name] for name in values}, rel=1e-6)
  file = evaluation.evaluate_weights(tmp_path / 'model.npz', dict(
      sections(data, eval_transform='resize(to=(9, 9))|central_crop'), normalization=dict(mean=(0.4, 0.5, 0.6), std=0.3)))
  assert file['val/accuracy'] == values['val/accuracy']
  assert file['val/loss'] == pytest.approx(values['val/loss'], abs=2e-3)  # GELU: tanh in our runs


def test_classes_are_matched_by_name(trained, tmp_path, capsys):
  run, data, metrics = trained
  other = write_npz(tmp_path / 'other.npz', tuple(NAMES[i] for i in ORDER))
  values = evaluation.evaluate_weights(run, sections(f'npz:{other}'))
  assert values == pytest.approx({name: metrics[name] for name in values}, rel=1e-6)
  assert 'in another order; 4 of 4 matched by name' in capsys.readouterr().err


def test_other_classes_are_refused_or_said(trained, tmp_path, capsys):
  run = trained[0]
  some = write_npz(tmp_path / 'some.npz', NAMES)
  np.savez(some, **dict(np.load(some), class_names=np.array(['ant', 'bee', 'cat', 'emu'])))
  with pytest.raises(UserError, match='other classes than npz:.* val: 3 of 4 names are the same; only there: dog; '
                                      'only here: emu.*--classes=FILE'):
    evaluation.evaluate_weights(run, sections(f'npz:{some}'))
  others = write_npz(tmp_path / 'others.npz', NAMES)
  np.savez(others, **dict(np.load(others), class_names=np.array(['w', 'x', 'y', 'z'])))
  assert evaluation.evaluate_weights(run, sections(f'npz:{others}'))
  assert 'warning: the classes of the model have other names: ant; bee; cat; dog' in capsys.readouterr().err
  evaluation.evaluate_weights(run, sections(f'npz:{others}'), class_names=('z', 'x', 'w', 'y'))
  assert '3 of 4 matched by name' in capsys.readouterr().err


@pytest.mark.parametrize('keys, split, message', [
    ({}, None, 'data.name: missing'), ({'name': 'DATA', 'repeats': 2}, None, 'data.repeats: unknown config key'),
    ({'name': 'DATA', 'batch_sise': 2}, None, 'did you mean data.batch_size'),
    ({'name': 'DATA'}, 'dev', "split 'dev': no 'dev' in .*Splits there: train, val"),
    ({'name': 'MISSING'}, None, 'no such file')])
def test_mistakes_in_the_data_are_named(keys, split, message, trained, tmp_path):
  places = dict(DATA=trained[1], MISSING=f'npz:{tmp_path}/none.npz')
  keys = dict(keys, name=places[keys['name']]) if 'name' in keys else keys
  with pytest.raises((UserError, MissingFileError), match=message):
    evaluation.evaluate_weights(trained[0], dict(data=keys), split=split)


def test_models_that_cannot_classify_the_data_are_refused(trained, tmp_path):
  run, data, _ = trained
  save.save(load.to_weights(load.load(run, num_classes=0)), tmp_path / 'headless', 'timm', approximate=True)
  with pytest.raises(UserError, match='headless has no head, .*vit_jax.probe --model=.*headless --config.data.name=npz:'):
    evaluation.evaluate_weights(tmp_path / 'headless', sections(data))
  pixels, labels = images(0)
  np.savez(tmp_path / 'three.npz', test_images=pixels, test_labels=labels % 3)
  with pytest.raises(UserError, match='has 4 classes, npz:.* test has 3: 0; 1; 2. Fine-tune it first'):
    evaluation.evaluate_weights(run, sections(f'npz:{tmp_path}/three.npz'))


def test_the_split_is_the_first_that_has_labels(trained, tmp_path):
  run = trained[0]
  np.savez(tmp_path / 'odd.npz', first_images=images(0)[0], first_labels=images(0)[1], second_images=images(0)[0],
           second_labels=images(0)[1], class_names=np.array(NAMES))
  with pytest.raises(UserError, match=r"--split: missing; .*choose from \['first', 'second'\]"):
    evaluation.evaluate_weights(run, sections(f'npz:{tmp_path}/odd.npz'))
  values = evaluation.evaluate_weights(run, sections(f'npz:{tmp_path}/odd.npz'), split='first[:5]+second[5:]')
  assert {name.partition('/')[0] for name in values} == {'first'} and 'first/accuracy' in values


def test_the_command_on_three_devices_with_evaluators_of_its_own(trained, tmp_path):
  run, data, metrics = trained
  command = lambda *arguments, **options: tiny.command('evaluate', *arguments, **options).communicate()
  output, error = command(f'--model={run}', f'--config.data.name={data}', '--config.evaluators.half.split=val[:50%]',
                          '--config.evaluators.all.kind=classification', devices=3)
  values = json.loads(output or '{}')
  assert {name.partition('/')[0] for name in values} == {'all', 'half'}, error
  assert values['all/accuracy'] == metrics['val/accuracy']
  assert values['all/loss'] == pytest.approx(metrics['val/loss'], rel=2e-5)
  for arguments, message in (
      ([], 'expected either --workdir=RUN or --model=MODEL'),
      ([f'--workdir={run}', '--config.data.name=digits'], '--config.data: has no effect with --workdir'),
      ([f'--model={run}', '--data_dir=/data'], '--data_dir: has no effect with --model; use --config.data.data_dir'),
      ([f'--model={run}', '--config.optim.peak_lr=1'], 'config.optim: this command has no such section')):
    output, error = command(*arguments)
    assert message in error and 'Traceback' not in error and not output, (arguments, error)
