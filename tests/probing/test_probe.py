"""The command `probe`: features, their cache, splits, and the model that it saves."""
import dataclasses
import json
import os

from flax import nnx
import jax
import numpy as np
import pytest

from tests import tiny
from tests.conftest import encode
from tests.distributed.test_hosts import end, start
import vit_jax
from vit_jax.base.errors import ExistingFileError, MissingFileError, UserError
from vit_jax.base.preprocessing import Preprocessing
from vit_jax.data.sources import registry
from vit_jax.evaluators.frozen import features as features_lib
from vit_jax.evaluators.frozen.few_shot import FewShotConfig
from vit_jax.evaluators.frozen.knn import KnnConfig
from vit_jax.evaluators.frozen.linear_head import LinearHead
from vit_jax.inference.predict import make_reader
from vit_jax.models.bit.config import BiTConfig
from vit_jax.models.config import ViTConfig
from vit_jax.models.mixer.config import MixerConfig
from vit_jax.pretrained import load
from vit_jax.pretrained.formats import weights as weights_lib
from vit_jax.probing import data as data_lib
from vit_jax.probing import head as head_lib
from vit_jax.probing import methods
from vit_jax.probing import probe as probe_lib

VIT = dict(image_size=(8, 8), patch_size=4, width=16, depth=2, heads=2, mlp_dim=32, channels=1, pool='gap')


def make_weights(config):
  """Return random weights, the head's too."""
  rng = np.random.default_rng(0)
  leaves = {path: (0.3 * rng.normal(size=shape) + path.endswith('scale')).astype(np.float32)
            for path, shape in sorted(weights_lib.shapes(config).items())}
  return weights_lib.Weights(config, weights_lib.unflatten(leaves), Preprocessing('resize', 0.4, 0.3))


def embed(model, images):
  """Return `model.embed` of paths or encoded images, prepared one by one."""
  read, preprocessing = make_reader(model), model.preprocessing
  pixels = np.stack([read(image) for image in images]).astype(np.float32)
  prepared = (pixels / 255 - np.float32(preprocessing.mean)) / np.float32(preprocessing.std)
  return np.asarray(nnx.jit(lambda model, images: model.embed(images))(model, prepared))


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  """Return the directory of a model without a head."""
  path = tmp_path_factory.mktemp('probe') / 'model'
  vit_jax.save(make_weights(ViTConfig(**VIT, num_classes=None)), path)
  return path


@pytest.fixture
def digits(data_dir):
  """Return a section `data`: 120 digits to learn from."""
  return dict(name='digits', data_dir=data_dir, train_split='train[:120]')


def settings(tmp_path, *names, **changes):
  options = methods.Options(FewShotConfig(shots=(1, 5), seeds=2), KnnConfig(k=(3, 7)))
  return probe_lib.Settings(methods=names or ('nearest_mean',), cache_dir=tmp_path / 'cache',
                            **dict(dict(test_split='test[:50]', options=options), **changes))


def cached(tmp_path):
  """Return the (features, labels) in the files of the cache, the largest split first."""
  found = [np.load(path) for path in (tmp_path / 'cache').glob('*.npz')]
  return sorted(((file['features'], file['labels']) for file in found), key=lambda pair: -len(pair[1]))


def test_features_are_those_of_the_model_in_stored_order(source, digits, tmp_path, capsys):
  """120 and 50 images in batches of 32: the last ones are padded."""
  probe_lib.probe(source, digits, settings(tmp_path))
  model, pairs = vit_jax.load(source), cached(tmp_path)
  for split, (features, labels) in zip(('train[:120]', 'test[:50]'), pairs, strict=True):
    records = registry.open_source('digits', split, digits['data_dir'])
    assert [record['label'] for record in records.read(range(len(records)))] == labels.tolist()
    images = [record['image'] for record in records.read(range(len(records)))]
    np.testing.assert_allclose(features, embed(model, images), rtol=0, atol=1e-5)
    assert features.dtype == np.float32
  said = capsys.readouterr().err
  assert "digits: 10 classes, 120 images of train[:120] to learn from, 50 of test[:50] to test; 8 × 8 pixels" in said
  assert 'features of test[:50]: 50 of 50 images' in said


def test_bfloat16(source, digits, tmp_path):
  probe_lib.probe(source, digits, settings(tmp_path))
  probe_lib.probe(source, digits, settings(tmp_path / 'half', dtype='bfloat16'))
  (exact, _), (rounded, _) = cached(tmp_path)[0], cached(tmp_path / 'half')[0]
  error = np.abs(exact - rounded).max() / np.abs(exact).max()
  assert 1e-4 < error < 0.1 and rounded.dtype == np.float32


def arguments(source, data_dir, cache, *flags):
  return (f'--model={source}', '--config.data.name=digits', f'--config.data.data_dir={data_dir}',
          '--config.data.train_split=train[:75]', '--test_split=test[:50]', f'--cache_dir={cache}', '--shots=1,3',
          '--k=5,40', '--json', *flags)


def check_same(tmp_path, output, expected):
  """Check features and rows of another number of devices or processes against those of one."""
  for (features, labels), (others, other_labels) in zip(cached(tmp_path / 'one'), cached(tmp_path / 'many'), strict=True):
    np.testing.assert_array_equal(labels, other_labels)
    np.testing.assert_allclose(features, others, rtol=0, atol=1e-5)
  rows = [json.loads(line) for line in output.splitlines()]
  for row, other in zip(rows, expected, strict=True):
    assert row['value'] == pytest.approx(other.pop('value'), abs=1e-6), row
  assert [row['method'] for row in rows] == [row['method'] for row in expected]


@pytest.fixture(scope='module')
def one_device(source, data_dir, tmp_path_factory):
  """Return (folder with the features of one device, the command's output)."""
  folder = tmp_path_factory.mktemp('devices')
  (status, output, error), = end([tiny.command('probe', *arguments(source, data_dir, folder / 'one' / 'cache'))])
  assert status == 0, error
  return folder, [json.loads(line) for line in output.splitlines()]


@pytest.mark.slow
def test_eight_devices_and_another_batch_give_the_same(one_device, source, data_dir):
  folder, expected = one_device
  flags = arguments(source, data_dir, folder / 'many' / 'cache', '--batch_size=2')
  (status, output, error), = end([tiny.command('probe', *flags, devices=8)])
  assert status == 0, error
  check_same(folder, output, [dict(row) for row in expected])
  assert [row['setting'] for row in expected][:4] == ['1 per class, l2 1024', '3 per class, l2 1024', 'k 5', 'k 40']


@pytest.mark.slow
def test_two_processes_give_the_same(one_device, source, data_dir, tmp_path):
  """Each process reads its own part; the first writes and prints; a second run finds the features on both."""
  folder, expected = one_device
  os.symlink(folder / 'one', tmp_path / 'one')
  for repeat in range(2):
    flags = arguments(source, data_dir, tmp_path / 'many' / 'cache', '--batch_size=3')
    (status, output, error), (other_status, other_output, _) = end(start('probe', flags))
    assert status == other_status == 0 and '{' not in other_output, error
    rows = ''.join(line for line in output.splitlines(keepends=True) if line.startswith('{'))  # others are jax's
    check_same(tmp_path, rows, [dict(row) for row in expected])
    assert ('read from' in error) == bool(repeat)


def test_cached_features_are_read_only_if_nothing_changed(source, digits, tmp_path, monkeypatch):
  passes, run = [], features_lib.FeaturePass.__call__
  monkeypatch.setattr(features_lib.FeaturePass, '__call__',
                      lambda *args, **kwargs: passes.append(1) or run(*args, **kwargs))

  def count(*names, source=source, digits=digits, **changes):
    passes.clear()
    results = probe_lib.probe(source, digits, settings(tmp_path, *names, **changes))
    return len(passes), results.rows

  first, again = count(), count()
  assert (first[0], again[0]) == (2, 0) and first[1] == again[1]
  assert count('knn', batch_size=7)[0] == 0  # what does not change the features
  assert count(test_split='test[50:90]')[0] == 1
  assert count(dtype='bfloat16')[0] == 2
  assert count(digits=dict(digits, eval_transform='resize(to=(9, 9))|central_crop'))[0] == 2
  assert count(digits=dict(digits, image_size=(12, 12)))[0] == 2
  weights = load.read(source)
  weights.params['encoder']['blocks']['mlp']['up']['bias'][1, 3] += 1e-6
  vit_jax.save(weights, tmp_path / 'changed')
  assert count(source=tmp_path / 'changed')[0] == 2 and count()[0] == 0


def test_a_damaged_cache_is_computed_again(source, digits, tmp_path, caplog):
  rows = probe_lib.probe(source, digits, settings(tmp_path)).rows
  for path in (tmp_path / 'cache').glob('*.npz'):
    path.write_bytes(path.read_bytes()[:-100])
  assert probe_lib.probe(source, digits, settings(tmp_path)).rows == rows
  assert caplog.text.count('cannot be read and is computed again') == 2
  assert not [path for path in (tmp_path / 'cache').iterdir() if path.suffix != '.npz' or path.name.startswith('.')]


def write_folder(root, count=12, splits=('train', 'val')):
  """Write bright and dark images; a name of a split of '' writes none."""
  rng = np.random.default_rng(0)
  for split in splits:
    for low, name in ((0, 'dark'), (120, 'light')):
      (root / split / name).mkdir(parents=True)
      for index in range(count):
        pixels = rng.integers(low, low + 130, (8, 8, 3), dtype=np.uint8)
        (root / split / name / f'{index}.png').write_bytes(encode(pixels))
  return root


def test_changed_images_are_seen(source, tmp_path):
  folder = write_folder(tmp_path / 'photos')
  data = dict(name=f'folder:{folder}')
  probe_lib.probe(source, data, settings(tmp_path, test_split=None))
  before = cached(tmp_path)
  (folder / 'train' / 'dark' / '3.png').write_bytes(encode(np.full((8, 8, 3), 9, np.uint8)))
  probe_lib.probe(source, data, settings(tmp_path, test_split=None))
  assert len(before) == 2 and len(cached(tmp_path)) == 3


def test_the_saved_model_predicts_what_the_probe_does(source, tmp_path, capsys):
  """A gray model on a folder of color images, through the command line's own functions and `predict`."""
  folder = write_folder(tmp_path / 'photos')
  results = probe_lib.probe(source, dict(name=f'folder:{folder}'), settings(
      tmp_path, 'linear_probe', test_split=None, output=tmp_path / 'saved'))
  model = vit_jax.load(tmp_path / 'saved')
  assert model.class_names == ('dark', 'light') and model.preprocessing == Preprocessing('resize', 0.4, 0.3)
  images = sorted((folder / 'val').glob('*/*.png'))
  backbone = vit_jax.load(source)
  features = embed(backbone, images)
  scores = results.probe.head.scores(features)
  chances = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
  np.testing.assert_allclose(model.predict(images), chances, atol=1e-4)
  expected = [path.parent.name for path in images]
  right = np.mean([model.class_names[i] == name for i, name in zip(scores.argmax(1), expected, strict=True)])
  assert results.rows[0].value == pytest.approx(right) and right > 0.8
  assert f'python -m vit_jax.predict --model={tmp_path}/saved' in capsys.readouterr().err


@pytest.mark.parametrize('config', [
    ViTConfig(**dict(VIT, pool='distilled')), ViTConfig(**dict(VIT, representation_size=6)),
    ViTConfig(**dict(VIT, num_classes=None, pool='token_gap')), ViTConfig(**dict(VIT, pool='map')),
    MixerConfig(image_size=(8, 8), patch_size=4, width=16, depth=1, token_mlp_dim=8, channel_mlp_dim=8, channels=1),
    BiTConfig(image_size=(32, 32), channels=1, blocks=(1, 1), stem_width=8, stage_widths=(16, 32), groups=4)], ids=lambda config: f'{config.kind}')
def test_a_head_on_the_embedding_of_every_model(config):
  weights = make_weights(config)
  images = np.random.default_rng(0).normal(size=(3, *config.image_size, 1)).astype(np.float32)
  backbone = load.build(dataclasses.replace(weights, params=jax.tree.map(np.copy, weights.params)))
  features = np.asarray(nnx.jit(lambda model, images: model.embed(images))(backbone, images))
  rng = np.random.default_rng(1)
  head = LinearHead(rng.normal(size=(features.shape[1], 4)) / features.std(), rng.normal(size=4))
  model = load.build(head_lib.with_head(weights, head, 'abcd'))
  scores = head.scores(features)
  np.testing.assert_allclose(nnx.jit(lambda model, images: model(images))(model, images), scores, rtol=1e-4, atol=1e-4 * np.abs(scores).max())
  assert model.class_names == tuple('abcd')


def test_models_that_no_format_holds_are_refused_before_the_pass(digits, tmp_path, monkeypatch):
  weights = make_weights(ViTConfig(**VIT, representation_size=6))
  monkeypatch.setattr(load, 'read', lambda *args, **kwargs: weights)
  monkeypatch.setattr(features_lib.FeaturePass, '__call__', None)
  with pytest.raises(UserError, match=r'(?s)--output: no format .*huggingface: model.representation_size: .*'
                     r'timm: model.representation_size: .*Leave out --output, or train the head in a run directory'):
    probe_lib.probe('model', digits, settings(tmp_path, 'linear_probe', output=tmp_path / 'saved'))


def test_default_splits(data_dir, tmp_path):
  choose = lambda test=None, **data: tuple(data_lib.choose_splits(data, test))
  assert choose(name='digits', data_dir=data_dir) == ('train', 'test', None)
  assert choose('test[:9]', name='digits', data_dir=data_dir, train_split='train[:7]') == ('train[:7]', 'test[:9]', None)
  folder = write_folder(tmp_path / 'b', splits=('learn', 'val'))
  assert choose(name=f'folder:{folder}') == ('learn', 'val', None)
  assert choose(name=f'folder:{write_folder(tmp_path / "a")}') == ('train', 'val', None)
  flat = write_folder(tmp_path / 'c', splits=('',))
  assert choose(name=f'folder:{flat}') == (
      'all[:80%]', 'all[80%:]', f'folder:{flat} has no test split: all[80%:] is held out, and all[:80%] learned from')
  three = write_folder(tmp_path / 'd', splits=('x', 'y', 'z'))
  with pytest.raises(UserError, match='data.train_split: missing; folder:.* has the splits x, y, z; name one'):
    choose('x', name=f'folder:{three}')
  with pytest.raises(UserError, match='--test_split: missing; folder:.* has the splits x, y, z; name one, or a slice'):
    choose(name=f'folder:{three}', train_split='x')


def test_errors(source, data_dir, digits, tmp_path):
  def fails(match, error=UserError, data=digits, names=(), **changes):
    with pytest.raises(error, match=match):
      probe_lib.probe(source, data, settings(tmp_path, *names, **changes))

  fails('data.name: missing', data={})
  fails(r'data.nane: unknown config key; did you mean data.name\?', data={'nane': 'digits'})
  fails('data.train_transform: unknown', data=dict(digits, train_transform='flip'))
  fails('no such folder', MissingFileError, data=dict(name=f'folder:{tmp_path}/nothing'))
  fails("split 'half' of dataset 'digits': no such split", test_split='half')
  fails(r"--methods: expected some of few_shot,knn,nearest_mean,linear_probe,retrieval, got \['svm'\]", names=('svm',))
  fails('--batch_size: must be at least 1, got 0', batch_size=0)
  fails('--output: what is written is the linear probe; add linear_probe to --methods, got knn', names=('knn',),
        output=tmp_path / 'saved')
  fails('exists already', ExistingFileError, names=('linear_probe',), output=tmp_path)
  fails('any number of classes per image; a probe needs exactly one', data=dict(name='tiny_scenes', data_dir=data_dir),
        test_split=None)
  fails('knn.k: expected at most 120, the number of training images, got 130', names=('knn',),
        options=methods.Options(knn=KnnConfig(k=(130,))))
  folder = tmp_path / 'one'
  write_folder(folder, splits=('train', 'val'))
  os.rename(folder / 'train' / 'dark', folder / 'elsewhere')
  fails('expected images of at least two classes, got 12 of class 1 only', data=dict(name=f'folder:{folder}'),
        test_split=None)


def test_flags(source, capsys):
  for flag, message in (('--shots=1,two', '--shots: expected whole numbers such as 5,20, got 1,two'),
                        ('--l2=strong', "--l2: expected a positive number or 'sweep', got 'strong'"),
                        ('--config.model.width=3', 'config.model: this command has no such section')):
    (status, output, error), = end([tiny.command('probe', f'--model={source}', '--config.data.name=digits', flag)])
    assert status == 1 and message in error and not output and 'Traceback' not in error
