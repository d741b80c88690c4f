"""The command `predict`."""
import csv
import io
import json
import os

import numpy as np
import pytest

from tests import golden_files, tiny
from tests.conftest import encode
from tests.inference.test_predict import make_image, make_model
import vit_jax
from vit_jax import predict
from vit_jax.base.errors import UserError
from vit_jax.data.sources import folder
from vit_jax.inference import predict as inference
from vit_jax.inference.images import find_images
from vit_jax.pretrained import load as load_lib

NAMES = ('ant', 'bee', 'wild, bee', 'Käfer', 'wasp')


@pytest.fixture(scope='module')
def model():
  model = make_model()
  model.class_names = NAMES
  return model


@pytest.fixture
def load(model, monkeypatch):
  monkeypatch.setattr(load_lib, 'load', lambda source, **options: model)


@pytest.fixture
def photos(tmp_path):
  """Return photos/{a.png, b.txt, deep/er/c.JPG, .hidden/d.png, loop → photos}."""
  folder = tmp_path / 'photos'
  for seed, name in enumerate(('a.png', 'deep/er/c.JPG', '.hidden/d.png')):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(encode(make_image(seed=seed)))
  (folder / 'b.txt').touch()
  os.symlink(folder, folder / 'loop')
  return folder


def run(capsys, *arguments, **options):
  """Return (what `run` returns, standard output, standard error)."""
  returned = predict.run('model', [str(argument) for argument in arguments], **options)
  return returned, *capsys.readouterr()


def test_find_images(photos):
  assert find_images(str(photos)) == [f'{photos}/a.png', f'{photos}/deep/er/c.JPG']
  assert find_images(f'{photos}/b.txt') == [f'{photos}/b.txt']  # named explicitly: tried
  (photos / 'a.png').unlink()
  with pytest.raises(UserError, match='/.hidden/.: there are no images in this folder'):
    (photos / '.hidden' / 'd.png').unlink()
    find_images(f'{photos}/.hidden/.')


def test_json(load, model, photos, capsys):
  status, out, _ = run(capsys, photos, form='json', top=2)
  lines = [json.loads(line) for line in out.splitlines()]
  images = [f'{photos}/a.png', f'{photos}/deep/er/c.JPG']
  expected = inference.predict(model, images)
  assert status == 0 and [line['image'] for line in lines] == images
  for line, probabilities in zip(lines, expected, strict=True):
    best = np.argsort(-probabilities)[:2].tolist()
    assert line['predictions'] == [
        {'label': label, 'class': NAMES[label], 'probability': float(probabilities[label])} for label in best]


def test_csv(load, model, photos, capsys):
  _, out, _ = run(capsys, f'{photos}/a.png', form='csv', top=9)
  header, *rows = csv.reader(io.StringIO(out))
  assert header == ['image', 'rank', 'label', 'class', 'probability']
  assert [row[1] for row in rows] == ['1', '2', '3', '4', '5'] and {row[3] for row in rows} == set(NAMES)
  np.testing.assert_array_equal([np.float32(row[4]) for row in rows],
                                np.sort(inference.predict(model, [photos / 'a.png'])[0])[::-1])


def test_table_is_aligned(load, model, photos, capsys):
  _, out, _ = run(capsys, photos, top=2)
  header, *lines = out.splitlines()
  assert header.split() == ['image', 'class', 'probability'] and len(lines) == 4
  assert {len(line) for line in out.splitlines()} == {len(header)}
  assert lines[0].startswith(f'{photos}/a.png ') and lines[1].startswith(' ' * len(f'{photos}/a.png'))
  probabilities = [float(line.split()[-1]) for line in lines]
  expected = -np.sort(-inference.predict(model, [photos / 'a.png', photos / 'deep/er/c.JPG']))[:, :2]
  np.testing.assert_allclose(probabilities, expected.ravel(), atol=6e-5)


def test_classes_without_names_are_numbers(photos, monkeypatch, capsys):
  model = make_model()
  model.class_names = None
  monkeypatch.setattr(load_lib, 'load', lambda source, **options: model)
  _, out, _ = run(capsys, photos, form='json', top=1)
  for line in out.splitlines():
    best, = json.loads(line)['predictions']
    assert best['class'] == str(best['label'])


def test_unreadable_images_are_named_and_the_rest_predicted(load, photos, capsys):
  unreadable, out, err = run(capsys, f'{photos}/missing.png', photos, f'{photos}/b.txt', form='json', batch_size=2)
  assert unreadable == 2 and len(out.splitlines()) == 2
  assert f'error: {photos}/missing.png: no such image\n' in err and f'error: {photos}/b.txt: expected an encoded image' in err
  assert '2 of 4 images could not be read.' in err


def test_bad_arguments_come_before_the_model(tmp_path):
  for arguments, options, message in (
      ([], {}, 'name at least one image or folder'), (['x.png'], {'top': 0}, '--top: must be at least 1, got 0'),
      (['x.png'], {'batch_size': 0}, '--batch_size: must be at least 1, got 0'),
      ([tmp_path], {}, 'no images in this folder')):
    with pytest.raises(UserError, match=message):
      predict.run('model', list(map(str, arguments)), **options)


def test_loss_is_that_of_the_model(photos, capsys, monkeypatch):
  """Any file may say that its classes are independent, not only a run."""
  model = make_model()
  model.loss, model.class_names = 'sigmoid', NAMES
  monkeypatch.setattr(load_lib, 'load', lambda source, **options: model)
  image = f'{photos}/a.png'
  for loss, expected in ((None, 'sigmoid'), ('softmax', 'softmax')):
    predict.run('model', [image], form='json', loss=loss)
    predictions = json.loads(capsys.readouterr().out)['predictions']
    probabilities = inference.predict(model, [image], loss=expected)[0]
    assert predictions[0]['probability'] == pytest.approx(probabilities.max(), abs=1e-6)
    assert (sum(best['probability'] for best in predictions) == pytest.approx(1, abs=1e-5)) == (expected == 'softmax')


def test_a_run_without_a_checkpoint_is_an_error_without_a_traceback(photos, tmp_path):
  (tmp_path / 'run' / 'checkpoints').mkdir(parents=True)
  (tmp_path / 'run' / 'config.json').write_text('{"objective": ')
  process = tiny.command('predict', f'--model={tmp_path}/run', photos)
  _, err = process.communicate()
  assert process.returncode == 1 and 'Traceback' not in err
  assert err.startswith(f'error: {tmp_path}/run: has no checkpoint yet')


def test_flags_say_how_images_are_prepared(photos, tmp_path):
  model = golden_files.GOLDEN / 'timm_token'
  process = tiny.command('predict', f'--model={model}', '--transform=resize', '--mean=0.25', '--std=0.1', '--std=0.2',
                         '--std=0.3', '--json', photos / 'a.png')
  out, err = process.communicate()
  expected = vit_jax.load(model, preprocessing=dict(transform='resize', mean=0.25, std=(0.1, 0.2, 0.3)))
  assert process.returncode == 0, err
  assert json.loads(out)['predictions'][0]['probability'] == pytest.approx(
      expected.predict([photos / 'a.png'])[0].max(), abs=1e-6)


def test_command_line_errors(tmp_path):
  for arguments, status, message in (
      (['--model=x'], 1, 'error: arguments: name at least one image'),
      (['--model=x', 'a.png', '--json', '--csv'], 1, 'choose one of --json and --csv'),
      (['a.png'], 1, 'error: --model: missing')):
    process = tiny.command('predict', *arguments)
    _, err = process.communicate()
    assert process.returncode == status and message in err and 'Traceback' not in err


def test_a_run_on_own_images_predicts_what_it_evaluated(tmp_path):
  """Train on a folder, evaluate, load, predict: the same numbers; and the command prints them."""
  for split, count in (('train', 40), ('val', 11)):
    for label, name in enumerate(NAMES[:3]):
      (tmp_path / split / name).mkdir(parents=True)
      for seed in range(count):
        image = make_image(9 + seed % 4, 10, seed) // 3 + np.uint8(80 * label)
        (tmp_path / split / name / f'{seed}.png').write_bytes(encode(image))
  config = tiny.config('unused', **{
      'data.name': f'folder:{tmp_path}', 'data.data_dir': None, 'data.train_split': 'train', 'train.ema_decay': None,
      'data.eval_transform': "resize_small(9, 'bicubic')|central_crop", 'objective.loss': 'sigmoid',
      'evaluators': {'test': {'kind': 'classification', 'split': 'val'}}})
  metrics = vit_jax.train.run(config, tmp_path / 'run')
  source = folder.open_folder(str(tmp_path), 'val')
  labels = np.array([source[index]['label'] for index in range(len(source))])
  model = vit_jax.load(str(tmp_path / 'run'))
  assert tuple(model.class_names) == tuple(sorted(NAMES[:3]))
  probabilities = inference.predict(
      model, [source[index]['image'] for index in range(len(source))], batch_size=64, loss='sigmoid')
  assert (probabilities.argmax(axis=1) == labels).mean() == pytest.approx(metrics['test/accuracy'], abs=1e-7)
  hot = np.eye(3)[labels]
  loss = -(hot * np.log(probabilities) + (1 - hot) * np.log1p(-probabilities)).sum(axis=1).mean()
  assert loss == pytest.approx(metrics['test/loss'], abs=1e-5)

  (tmp_path / 'broken.png').write_bytes(b'no image')
  process = tiny.command('predict', f'--model={tmp_path}/run', tmp_path / 'broken.png', tmp_path / 'val', '--json')
  out, err = process.communicate()
  assert process.returncode == 1 and f'error: {tmp_path}/broken.png: ' in err and 'Traceback' not in err
  lines = [json.loads(line) for line in out.splitlines()]
  assert len(lines) == 33
  expected = inference.predict(model, [line['image'] for line in lines], loss='sigmoid')
  for line, row in zip(lines, expected, strict=True):
    got = {best['label']: best['probability'] for best in line['predictions']}
    np.testing.assert_allclose([got[label] for label in range(3)], row, atol=1e-6)
