"""The dtype of arrays in files: written back as it was, bit for bit."""
import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests import golden_files
from tests.golden_files import GOLDEN, MODELS
from vit_jax.base.errors import UserError
from vit_jax.pretrained import convert, load, save
from vit_jax.pretrained.formats.dtypes import DTYPES


def in_dtype(name, dtype, path):
  """Write a golden safetensors model with all arrays of a dtype, or those of `dtype`, a function of name; return it."""
  path.mkdir()
  for config in (GOLDEN / name).glob('*.json'):
    (path / config.name).write_text(config.read_text())
  pick = dtype if callable(dtype) else lambda name: dtype
  arrays = {key: array.astype(DTYPES[pick(key)]) for key, array in load_file(GOLDEN / name / 'model.safetensors').items()}
  save_file(arrays, path / 'model.safetensors')
  return path


def same_bytes(first, second):
  """Check that two safetensors files have the same arrays, bit for bit."""
  ours, theirs = load_file(first), load_file(second)
  assert ours.keys() == theirs.keys()
  for name, array in ours.items():
    assert array.dtype == theirs[name].dtype and array.tobytes() == theirs[name].tobytes(), name


@pytest.mark.parametrize('name', ['hf_vit', 'timm_token', 'timm_layerscale_qknorm'])
@pytest.mark.parametrize('dtype', [
    'float16', 'bfloat16', 'float32', lambda name: 'float32' if 'norm' in name else 'float16'],
    ids=['float16', 'bfloat16', 'float32', 'mixed'])
def test_written_back_bit_for_bit(name, dtype, tmp_path):
  source = in_dtype(name, dtype, tmp_path / 'source')
  weights = load.read(source)
  save.save(weights, tmp_path / 'back', weights.source)
  same_bytes(source / 'model.safetensors', tmp_path / 'back' / 'model.safetensors')
  if name == 'hf_vit' and isinstance(dtype, str):
    assert json.loads((tmp_path / 'back' / 'config.json').read_text())['dtype'] == dtype


@pytest.mark.parametrize('name', [  # timm has no hybrids as small as the golden ones
    path.parent.name for path in sorted(GOLDEN.glob('*/model.safetensors')) if 'hybrid' not in path.parent.name])
def test_every_family_keeps_bfloat16(name, tmp_path):
  source = in_dtype(name, 'bfloat16', tmp_path / 'source')
  weights = load.read(source)
  save.save(weights, tmp_path / 'back', weights.source)
  ours, theirs = load_file(tmp_path / 'back' / 'model.safetensors'), load_file(source / 'model.safetensors')
  for key, array in ours.items():
    assert key in theirs and array.tobytes() == theirs[key].tobytes(), key


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_npz_and_other_formats_keep_the_dtype(dtype, tmp_path):
  source = in_dtype('hf_vit', dtype, tmp_path / 'source')
  convert.convert(source, tmp_path / 'a.npz', approximate=True)
  stored = golden_files.arrays_of(tmp_path / 'a.npz')
  assert {array.dtype for array in stored.values()} == {np.dtype('V2' if dtype == 'bfloat16' else np.float16)}
  weights = load.read(tmp_path / 'a.npz')
  assert set(weights.dtypes.values()) == {dtype}
  golden_files.assert_same_params(weights.params, load.read(source).params)
  convert.convert(tmp_path / 'a.npz', tmp_path / 'b.npz')
  assert (tmp_path / 'a.npz').read_bytes() == (tmp_path / 'b.npz').read_bytes()


def test_a_dtype_that_is_asked_for(tmp_path):
  lines = convert.convert(MODELS['timm_token'], tmp_path / 'a', format='timm', dtype='bfloat16')
  assert any(line.startswith('dtype: ') and line.endswith('rounded to bfloat16') for line in lines)
  assert {array.dtype for array in load_file(tmp_path / 'a' / 'model.safetensors').values()} == {
      np.dtype(ml_dtypes.bfloat16)}
  lines = convert.convert(tmp_path / 'a', tmp_path / 'b', format='timm', dtype='float32')
  assert not any(line.startswith('dtype') for line in lines)
  golden_files.assert_same_params(load.read(tmp_path / 'a').params, load.read(tmp_path / 'b').params)
  with pytest.raises(UserError, match=r"dtype: unknown 'int8'; choose from \['bfloat16', 'float16', 'float32'\]"):
    convert.convert(MODELS['timm_token'], tmp_path / 'c', format='timm', dtype='int8')


def test_values_that_a_dtype_does_not_hold(tmp_path):
  """Changed weights are not rounded unless that is asked for, and never made infinite."""
  weights = load.read(in_dtype('timm_token', 'float16', tmp_path / 'source'))
  weights.params['norm']['bias'][0] = 1e6
  lines = save.save(weights, tmp_path / 'a', 'timm')[1]
  assert lines == ['dtype: written as float32, as the dtype of the file does not hold their values: norm.bias']
  stored = load_file(tmp_path / 'a' / 'model.safetensors')
  assert stored['norm.bias'].dtype == np.float32 and stored['norm.weight'].dtype == np.float16
  with pytest.raises(UserError, match=r'dtype: norm.bias has values up to 1e\+06, too large for float16'):
    save.save(weights, tmp_path / 'b', 'timm', dtype='float16')


def test_a_model_is_written_as_float32(tmp_path):
  save.save(load.load(in_dtype('timm_token', 'float16', tmp_path / 'source')), tmp_path / 'a', 'timm')
  assert {array.dtype for array in load_file(tmp_path / 'a' / 'model.safetensors').values()} == {np.dtype('float32')}
