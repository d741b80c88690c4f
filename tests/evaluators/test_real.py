"""Images with any number of right answers against plain NumPy: ImageNet-ReaL by file name, ObjectNet by its mapping."""
import io
import json

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests import tiny
from tests.conftest import encode
from vit_jax import train
from vit_jax.base.errors import FileError, UserError
from vit_jax.data.images import decode
from vit_jax.data.sources import registry
from vit_jax.evaluators import real
from vit_jax.pretrained import load
from vit_jax.pretrained.classes import imagenet
from vit_jax.run import evaluation

COUNT = 23
NUMBERS = np.random.default_rng(0).permutation(50_000)[:COUNT] + 1  # of the validation images that the data has


class TinyImagenet(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """As TFDS's imagenet2012, with a few images."""

  VERSION = tfds.core.Version('1.0.0')
  code_path = None

  def _info(self):
    features = {'image': tfds.features.Image(), 'label': tfds.features.ClassLabel(names=list(imagenet.ids())),
                'file_name': tfds.features.Text()}
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

  def _split_generators(self, dl_manager):
    return {'validation': self._generate_examples()}

  def _generate_examples(self):
    for index, number in enumerate(NUMBERS):
      name = f'ILSVRC2012_val_{number:08d}.JPEG'
      yield name, {'image': io.BytesIO(encode(picture(index))), 'label': index, 'file_name': name}


def picture(seed, shape=(8, 8, 3)):
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def right_answers(model, images, answers):
  """Return (top-1, top-5 accuracy) over the images with answers, one by one."""
  logits = np.log(model.predict(images))
  ranked = [np.argsort(-row)[:5].tolist() for row in logits]
  counted = [index for index, found in enumerate(answers) if found]
  first = [ranked[index][0] in answers[index] for index in counted]
  five = [bool(set(ranked[index]) & set(answers[index])) for index in counted]
  return np.mean(first), np.mean(five)


def recipe(data_dir, evaluators):
  return tiny.config(data_dir, **{
      'data.name': 'tiny_imagenet', 'data.train_split': 'validation', 'data.train_transform': 'resize',
      'data.batch_size': 8, 'model': dict(patch_size=4, width=8, depth=1, heads=1, mlp_dim=16), 'train.ema_decay': None,
      'train.duration': '3 steps', 'checkpoint': {}, 'optim': dict(name='sgd', peak_lr=1.0), 'evaluators': evaluators})


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """Return (folder, run directory, model, answers by index): half of them what the model says, a fifth none."""
  folder = tmp_path_factory.mktemp('real')
  TinyImagenet(data_dir=str(folder), file_format='array_record').download_and_prepare()
  train.run(tiny.config(folder, **{
      'data.name': 'tiny_imagenet', 'data.train_split': 'validation', 'data.train_transform': 'resize',
      'data.batch_size': 8, 'model': dict(patch_size=4, width=8, depth=1, heads=1, mlp_dim=16), 'train.ema_decay': None,
      'train.duration': '3 steps', 'checkpoint': {}, 'optim': dict(name='sgd', peak_lr=1.0),
      'evaluators': {}}), folder / 'run')
  model = load.load(folder / 'run')
  best = model.predict([picture(index) for index in range(COUNT)]).argsort(axis=1)[:, ::-1]
  answers = [[[], [int(best[n, 0]), 7], [8], [9, int(best[n, 3])], [int(best[n, 0])]][n % 5] for n in range(COUNT)]
  items: list[list[int]] = [[] for _ in range(50_000)]
  for number, found in zip(NUMBERS, answers, strict=True):
    items[number - 1] = found
  (folder / 'real.json').write_text(json.dumps(items))
  return folder, folder / 'run', model, answers


def test_labels_are_found_by_file_name(made):
  """TFDS shuffles the records, so places would be wrong. Batches of 5 leave padding in the last one."""
  folder, run, model, answers = made
  expected = right_answers(model, [picture(index) for index in range(COUNT)], answers)
  assert 0.3 < expected[0] < expected[1] < 1.0
  for batch_size in (5, 23):
    values = evaluation.evaluate_weights(run, dict(
        data=dict(name='tiny_imagenet', data_dir=str(folder), batch_size=batch_size),
        evaluators=dict(real=dict(kind='real', labels=str(folder / 'real.json')))))
    assert (values['real/accuracy'], values['real/top_5_accuracy']) == expected


def test_a_run_records_where_its_labels_are(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert real.RealConfig(labels='real.json').labels == str(tmp_path / 'real.json')
  assert real.RealConfig(labels='gs://bucket/real.json').labels == 'gs://bucket/real.json'


def test_labels_follow_classes_in_another_order(made):
  folder = made[0]
  source = registry.open_source('tiny_imagenet', 'validation', str(folder))
  relabeled = real.relabel(source, folder / 'real.json')
  source.class_names = tuple(reversed(source.class_names))
  turned = real.relabel(source, folder / 'real.json')
  for index in range(COUNT):
    assert turned[index]['label'] == [999 - label for label in relabeled[index]['label']]
    assert turned.read([index]) == [turned[index]]


def test_files_and_data_that_do_not_fit_are_refused(made, tmp_path):
  folder, run, _, _ = made
  data = dict(name='tiny_imagenet', data_dir=str(folder))
  evaluate = lambda data, **keys: evaluation.evaluate_weights(run, dict(data=data, evaluators=dict(a=dict(kind='real', **keys))))
  with pytest.raises(UserError, match=r"kind 'real' needs labels=PATH of real.json, as tiny_imagenet validation has one"):
    evaluate(data)
  with pytest.raises(FileError, match='none.json: not found; it is at https'):
    evaluate(data, labels=str(tmp_path / 'none.json'))
  for content, message in (('[[1], [1000]]', 'classes 0..999'), ('{"a": [1]}', 'expected a list'), ('[[1]', 'not JSON')):
    (tmp_path / 'bad.json').write_text(content)
    with pytest.raises(UserError, match=message):
      evaluate(data, labels=str(tmp_path / 'bad.json'))
  np.savez(tmp_path / 'a.npz', test_images=np.stack([picture(0)]), test_labels=[0], class_names=np.array(imagenet.ids()))
  with pytest.raises(UserError, match=r"labels: none for the file '0' of npz:.*some for ILSVRC2012_val_00000001.JPEG"):
    evaluate(dict(name=f'npz:{tmp_path}/a.npz'), labels=str(folder / 'real.json'))
  with pytest.raises(UserError, match='are classes of ImageNet-1k, which digits does not have: 10 classes'):
    real.relabel(registry.open_source('digits', 'test', str(tmp_path)), folder / 'real.json')


OBJECTS = {'Alarm clock': ('alarm_clock', ['analog clock', 'digital clock']), 'Banana': ('banana', ['banana']),
           'Tray': ('tray', ['tray'])}


def write_objectnet(path, images_per_object=4):
  """Write made images as ObjectNet has them, in a red frame of two pixels, and its mappings; return {folder: images}."""
  inner = {}
  for number, folder in enumerate([*(folder for folder, _ in OBJECTS.values()), 'squeegee']):
    (path / 'images' / folder).mkdir(parents=True)
    inner[folder] = [picture(100 * number + n, (8, 8, 3)) for n in range(images_per_object)]
    for n, pixels in enumerate(inner[folder]):
      framed = np.full((12, 12, 3), (255, 0, 0), np.uint8)
      framed[2:-2, 2:-2] = pixels
      (path / 'images' / folder / f'{n}.png').write_bytes(encode(framed))
  lines = np.random.default_rng(1).permutation(1000)  # where each class is in the file of names
  names = [''] * 1000
  for label, line in enumerate(lines):
    names[line] = imagenet.names()[label]
  (path / 'mappings').mkdir()
  for name, content in (
      ('objectnet_to_imagenet_1k.json', {name: '; '.join(classes) for name, (_, classes) in OBJECTS.items()}),
      ('folder_to_objectnet_label.json', {**{folder: name for name, (folder, _) in OBJECTS.items()}, 'squeegee': 'Squeegee'}),
      ('pytorch_to_imagenet_2012_id.json', {str(label): int(line) for label, line in enumerate(lines)})):
    (path / 'mappings' / name).write_text(json.dumps(content))
  (path / 'mappings' / 'imagenet_to_label_2012_v2').write_text('\n'.join(names) + '\n')
  return inner


def test_objectnet_is_read_without_its_frame_and_with_the_classes_of_imagenet(tmp_path):
  inner = write_objectnet(tmp_path)
  source = registry.open_source(f'objectnet:{tmp_path}', 'all')
  assert (len(source), source.channels, source.multi_label, source.num_classes) == (12, 3, True, 1000)
  assert imagenet.to_ids(source.class_names) == imagenet.ids()
  assert registry.split_names(f'objectnet:{tmp_path}') == ['all']
  for index in range(len(source)):
    folder, _, file = source.record_name(index).partition('/')
    classes = next(classes for name, classes in OBJECTS.values() if name == folder)
    assert source[index]['label'] == [imagenet.names().index(name) for name in classes]
    np.testing.assert_array_equal(decode.decode(source[index]['image'], 3), inner[folder][int(file.removesuffix('.png'))])
  assert len(registry.open_source(f'objectnet:{tmp_path}', 'all[:50%]')) < 12


def test_objectnet_of_weights_that_know_imagenet(made, tmp_path, capsys):
  """The evaluator is chosen by itself: a softmax is right with any of the classes that an object stands for."""
  _, run, model, _ = made
  inner = write_objectnet(tmp_path, 30)
  classes = {folder: [imagenet.names().index(name) for name in names] for folder, names in OBJECTS.values()}
  images = [image for folder in classes for image in inner[folder]]
  expected = right_answers(model, images, [found for folder, found in classes.items() for _ in inner[folder]])
  values = evaluation.evaluate_weights(run, dict(data=dict(name=f'objectnet:{tmp_path}')))
  assert (values['all/accuracy'], values['all/top_5_accuracy']) == expected
  assert 'warning' not in capsys.readouterr().err


def test_an_incomplete_objectnet_is_named(tmp_path):
  write_objectnet(tmp_path, 1)
  mapping = tmp_path / 'mappings' / 'objectnet_to_imagenet_1k.json'
  mapping.write_text('{"Banana": "no such fruit"}')
  with pytest.raises(UserError, match="expected the mappings that come with ObjectNet.*no such fruit"):
    registry.open_source(f'objectnet:{tmp_path}', 'all')
  mapping.unlink()
  with pytest.raises(FileError, match='objectnet_to_imagenet_1k.json: not found; it comes with ObjectNet'):
    registry.open_source(f'objectnet:{tmp_path}', 'all')
