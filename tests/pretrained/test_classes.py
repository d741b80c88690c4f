"""Names of classes: from a file, those of ImageNet-1k, and two lists matched."""
import dataclasses
import json

import numpy as np
import pytest

from tests import golden_files, tiny
from vit_jax.base.errors import MissingFileError, UserError
from vit_jax.pretrained import describe, load, save
from vit_jax.pretrained.classes import imagenet, names


@pytest.mark.parametrize('text', [
    'ant\nbee, wild\nKäfer\n', '\ufeffant\r\nbee, wild\r\nKäfer', json.dumps(['ant', 'bee, wild', 'Käfer']),
    json.dumps({'2': 'Käfer', '0': 'ant', '1': 'bee, wild'}), json.dumps({'Käfer': 2, 'ant': 0, 'bee, wild': 1})])
def test_forms_of_a_file(text, tmp_path):
  (tmp_path / 'names').write_text(text, encoding='utf-8')
  assert names.read_file(tmp_path / 'names') == ('ant', 'bee, wild', 'Käfer')


def test_numbers_can_be_names(tmp_path):
  (tmp_path / 'names').write_text('{"5": 0, "3": 1}')
  assert names.read_file(tmp_path / 'names') == ('5', '3')


@pytest.mark.parametrize('content, message', [
    (b'', 'holds no class names'), (b'[]', 'holds no class names'), (b'a\n\nb', 'line 2 is empty'),
    (b'["a", 1]', 'expected every class name to be text'), (b'{"0": "a", "2": "b"}', r'numbers 0\.\.1, each once'),
    (b'{"a": 0, "b": 0}', r'numbers 0\.\.1, each once'), (b'[1, ', 'not JSON'), (b'\xff\xfe', 'expected text in UTF-8'),
    (b'[' * 100_000, 'not JSON')])
def test_files_of_another_form(content, message, tmp_path):
  (tmp_path / 'names').write_bytes(content)
  with pytest.raises(UserError, match=f'classes: {tmp_path}/names: .*{message}'):
    names.read_file(tmp_path / 'names')
  with pytest.raises(MissingFileError, match='classes: .*nothing: not found'):
    names.read_file(tmp_path / 'nothing')


def test_imagenet():
  """In the usual order: that of the sorted WordNet ids; a few classes that everybody knows."""
  assert len(imagenet.ids()) == 1000 and list(imagenet.ids()) == sorted(set(imagenet.ids()))
  for label, name in {0: 'tench', 207: 'golden retriever', 281: 'tabby', 388: 'giant panda', 980: 'volcano',
                      999: 'toilet tissue'}.items():
    assert imagenet.names()[label].startswith(name)


def test_readable_names_of_imagenet_match_its_ids():
  ids, readable = imagenet.ids(), imagenet.names()
  assert names.find_order(readable, ids) == list(range(1000))
  order = np.random.default_rng(0).permutation(1000)
  assert names.find_order(ids, [ids[i] for i in order]) == order.tolist()
  # Two classes are called crane, so a list of names in another order means nothing certain.
  assert names.find_order(ids, [readable[i] for i in order]) is None


def imagenet_file(folder, **changes):
  """Write an official file with a head of 1,000 classes."""
  arrays = golden_files.arrays_of(golden_files.MODELS['vit_token'])
  rng = np.random.default_rng(0)
  arrays.update({'head/kernel': rng.normal(size=(24, 1000)).astype(np.float32), 'head/bias': np.zeros(1000, np.float32)})
  folder.mkdir(parents=True, exist_ok=True)
  np.savez(folder / 'file.npz', **arrays)
  return folder / 'file.npz'


def test_a_head_of_1000_classes_gets_the_names_of_imagenet_with_a_note(tmp_path, caplog):
  path = imagenet_file(tmp_path)
  assert load.read(path).class_names is None  # a guess is not written to other files
  assert load.load(path).class_names == imagenet.names()
  assert 'class names: not in the file; guessed to be those of ImageNet-1k in the usual order' in caplog.text
  caplog.clear()
  assert load.load(path, class_names=[str(i) for i in range(1000)]).class_names[999] == '999' and not caplog.text
  for options in (dict(num_classes=3), dict(num_classes=0), dict(reset_head=True)):
    assert load.load(path, **options).class_names is None and not caplog.text
  assert load.load(imagenet_file(tmp_path / 'imagenet21k+imagenet2012')).class_names == imagenet.names()
  assert not caplog.text
  text = describe.describe(path).to_text()
  assert 'class names    tench, Tinca tinca; goldfish, Carassius auratus;' in text and '--classes=FILE' in text


def test_timm_says_in_its_config_that_the_classes_are_those_of_imagenet(tmp_path):
  """And names of another number than the head has classes are left out."""
  weights = golden_files.read('timm_token')
  head = {'kernel': np.zeros((24, 1000), np.float32), 'bias': np.zeros(1000, np.float32)}
  weights = dataclasses.replace(weights, config=dataclasses.replace(weights.config, num_classes=1000),
                                params=dict(weights.params, head=head))
  save.save(weights, tmp_path / 'model', 'timm')
  config = json.loads((tmp_path / 'model' / 'config.json').read_text())
  assert load.read(tmp_path / 'model').class_names is None
  config['pretrained_cfg']['tag'] = 'augreg_in21k_ft_in1k'
  (tmp_path / 'model' / 'config.json').write_text(json.dumps(config))
  back = load.read(tmp_path / 'model')
  assert back.class_names == imagenet.names()
  assert 'class names: those of ImageNet-1k, as the name augreg_in21k_ft_in1k says' in back.notes
  (tmp_path / 'model' / 'config.json').write_text(json.dumps(dict(config, label_names=['a', 'b'])))
  back = load.read(tmp_path / 'model')
  assert back.class_names is None
  assert 'class names: left out, as the config has 2 names and the head 1,000 classes' in back.notes


def test_the_commands_take_a_file_of_names(tmp_path):
  (tmp_path / 'names.txt').write_text('\n'.join('abcdefg'))
  model = golden_files.MODELS['vit_token']
  process = tiny.command('describe', model, f'--classes={tmp_path}/names.txt', '--trained_at=8', '--trained_at=32')
  out, err = process.communicate()
  assert process.returncode == 0 and 'class names    a; b; c; d; e and 2 more' in out and 'image_size=(8, 32)' in out, err
  process = tiny.command('convert', model, tmp_path / 'out', f'--classes={tmp_path}/names.txt', '--image_size=32')
  assert process.communicate() and process.returncode == 0
  weights = load.read(tmp_path / 'out')
  assert weights.class_names == tuple('abcdefg') and weights.config.image_size == (32, 32)
  (tmp_path / 'names.txt').write_text('\n'.join('abc'))
  np.save(tmp_path / 'image.npy', np.zeros((4, 4), np.uint8))
  process = tiny.command('predict', f'--model={model}', f'--classes={tmp_path}/names.txt', tmp_path / 'image.npy')
  _, err = process.communicate()
  assert process.returncode == 1
  assert err.strip().endswith('expected one name for each of the 7 logits of the weights, got 3 names')
