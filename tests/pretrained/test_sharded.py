"""Weights in several files with an index."""
import json
import random
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests import golden_files, torch_files
from tests.golden_files import MODELS
from tests.pretrained.test_files import assert_refused, read_all
from vit_jax.base.errors import MissingFileError, UserError
from vit_jax.pretrained import convert, load, source
from vit_jax.pretrained.files import subtrees
from vit_jax.pretrained.files.reader import open_file

ARRAYS = load_file(MODELS['hf_vit'] / 'model.safetensors')
INDEX = 'model.safetensors.index.json'


def shard(folder, count=3, dtype=np.float32, index=INDEX, save=save_file, form='model-{:05}-of-{:05}.safetensors'):
  """Write `hf_vit` in several files and their index, and its config.json; return the index as a dict."""
  names = sorted(ARRAYS)
  files = {name: form.format(i % count + 1, count) for i, name in enumerate(names)}
  for file in sorted(set(files.values())):
    save({name: ARRAYS[name].astype(dtype) for name in names if files[name] == file}, folder / file)
  content = dict(metadata=dict(total_size=1), weight_map=files)
  (folder / index).write_text(json.dumps(content))
  shutil.copy(MODELS['hf_vit'] / 'config.json', folder)
  return content


@pytest.mark.parametrize('count', [1, 3, 40])
def test_a_folder_and_its_index(count, tmp_path):
  shard(tmp_path, count)
  for path in (tmp_path, tmp_path / INDEX):
    weights = load.read(path)
    golden_files.assert_same_params(weights.params, golden_files.read('hf_vit').params)
    assert weights.source == 'huggingface'


def test_a_single_file_comes_first(tmp_path):
  shard(tmp_path)
  (tmp_path / INDEX).write_text('{}')
  save_file(ARRAYS, tmp_path / 'model.safetensors')
  golden_files.assert_same_params(load.read(tmp_path).params, golden_files.read('hf_vit').params)


def test_sharded_pytorch_files(tmp_path):
  shard(tmp_path, index='pytorch_model.bin.index.json', form='pytorch_model-{:05}-of-{:05}.bin',
        save=lambda arrays, path: torch_files.save(path, arrays))
  golden_files.assert_same_params(load.read(tmp_path).params, golden_files.read('hf_vit').params)


def test_the_dtype_is_kept(tmp_path):
  (tmp_path / 'shards').mkdir()
  shard(tmp_path / 'shards', dtype=np.float16)
  convert.convert(tmp_path / 'shards', tmp_path / 'one', format='huggingface')
  back = load_file(tmp_path / 'one' / 'model.safetensors')
  assert all(array.tobytes() == ARRAYS[name].astype(np.float16).tobytes() for name, array in back.items())


def test_a_missing_shard(tmp_path):
  shard(tmp_path)
  (tmp_path / 'model-00002-of-00003.safetensors').unlink()
  with pytest.raises(MissingFileError, match=f'{INDEX}: 1 of its 3 files missing: model-00002-of-00003.safetensors'):
    load.read(tmp_path)


def test_a_damaged_shard(tmp_path):
  shard(tmp_path)
  path = tmp_path / 'model-00002-of-00003.safetensors'
  path.write_bytes(path.read_bytes()[:-1])
  assert_refused(tmp_path / INDEX, 'model-00002-of-00003.safetensors: damaged')
  path.write_bytes(b'<html>404</html>')
  assert_refused(tmp_path / INDEX, 'model-00002-of-00003.safetensors: expected an .npz, .safetensors or PyTorch file')


def test_a_name_in_two_files(tmp_path):
  content = shard(tmp_path)
  name, file = next(iter(content['weight_map'].items()))
  other = next(other for other in content['weight_map'].values() if other != file)
  save_file({**load_file(tmp_path / other), name: ARRAYS[name]}, tmp_path / other)
  assert_refused(tmp_path / INDEX, f'{name} is in two files: {file} and {other}')


@pytest.mark.parametrize('change, message', [
    (lambda names: dict(names, extra=names['vit.embeddings.cls_token']), 'extra is in no file, but in model-.* by the in'),
    (lambda names: {name: file for name, file in names.items() if 'cls_token' not in name},
     'cls_token is in model-.*, but in no file by the index'),
    (lambda names: {name: 'model-00001-of-00003.safetensors' for name in names}, 'in model-00001-.* by the index'),
    *((lambda names, path=path: dict(names, **{'vit.embeddings.cls_token': path}), 'expected the name of a file beside it')
      for path in ('../secret.safetensors', '/etc/passwd', 'a/b', 'a\\b', '..', '.', '', 'C:x', 'a\0b', 'a\nb', 'x' * 300,
                   INDEX, 3, None, ['a'], {})),
    (lambda names: {}, 'expected an index with a weight_map'),
    (lambda names: [], 'expected an index with a weight_map'),
    (lambda names: None, 'expected an index with a weight_map'),
    (lambda names: {str(i): f'{i}.safetensors' for i in range(1001)}, 'names 1,001 files; at most 1,000'),
    (lambda names: {str(i): 'a' for i in range(100_001)}, 'expected an index with a weight_map of 1 to 100,000'),
])
def test_indexes_that_do_not_agree_or_lead_elsewhere(change, message, tmp_path):
  content = shard(tmp_path)
  (tmp_path / INDEX).write_text(json.dumps(dict(content, weight_map=change(content['weight_map']))))
  assert_refused(tmp_path / INDEX, message)


@pytest.mark.parametrize('text', ['', '[1]', '{', '"text"', '[' * 100_000, '{"weight_map": {"a": NaN}}', '\xff',
                                  '{"weight_map": {"a": "b", "a": "c"}}', '1' * 10_000])
def test_not_an_index(text, tmp_path):
  (tmp_path / INDEX).write_text(text, encoding='latin-1')
  assert_refused(tmp_path / INDEX, INDEX)


def test_random_damage_to_an_index(tmp_path):
  """Truncated and changed: refused, or what is read is the same."""
  shard(tmp_path)
  content, rng, refused = (tmp_path / INDEX).read_bytes(), random.Random(7), 0
  for i in range(200):
    changed = bytearray(content)
    if i % 2:
      del changed[rng.randrange(len(content)):]
    else:
      changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    (tmp_path / INDEX).write_bytes(changed)
    try:
      assert read_all(tmp_path / INDEX).shapes.keys() == ARRAYS.keys()
    except UserError as error:
      assert INDEX in str(error)
      refused += 1
  assert refused > 150


def test_random_selectors(tmp_path):
  """Whatever is after the file: arrays below it, or an error that says what there is."""
  np.savez(tmp_path / 'a.npz', **{'params/img/a': np.zeros(1), 'params/txt/b/c': np.zeros(1), 'opt/m.x': np.zeros(1)})
  rng, selected = random.Random(8), 0
  parts = ['params', 'img', 'txt', 'b', 'opt', 'm', '/', '.', ':', '..', '\\', ' ', '', '\0', '*', 'ä', '-', '%2e', '@']
  for _ in range(500):
    text = f'{tmp_path}/a.npz:' + ''.join(rng.choices(parts, k=rng.randrange(1, 6)))
    parsed = source.parse(text)
    if parsed.subtree is None:
      assert parsed.place == text
      continue
    with open_file(parsed.place) as tensors:
      try:
        assert subtrees.select(tensors, parsed.subtree).shapes
        selected += 1
      except UserError as error:
        assert 'a.npz: no arrays under' in str(error)
  assert selected > 20
