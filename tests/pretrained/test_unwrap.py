"""Models below prefixes, beside their EMA and beside training state."""
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests import golden_files
from tests.golden_files import MODELS
from vit_jax.base.errors import UserError
from vit_jax.pretrained import convert, load


def arrays(name='timm_token'):
  return load_file(MODELS[name] / 'model.safetensors')


def write(folder, tensors, name='timm_token'):
  """Write arrays beside the config of a golden model."""
  for config in MODELS[name].glob('*.json'):
    shutil.copy(config, folder)
  save_file(tensors, folder / 'model.safetensors')
  return folder


def under(prefix, tensors, factor=1):
  return {prefix + name: array * np.float32(factor) for name, array in tensors.items()}


PREFIXES = ['module.', 'model.', '_orig_mod.', 'timm_model.', 'backbone.', 'encoder.', 'vision_model.', 'state_dict.']


@pytest.mark.parametrize('prefix', [*PREFIXES, 'module._orig_mod.', 'state_dict.model.module.backbone.'])
@pytest.mark.parametrize('name', ['timm_token', 'hf_vit'])
def test_prefixes(name, prefix, tmp_path):
  weights = load.read(write(tmp_path, under(prefix, arrays(name)), name))
  golden_files.assert_same_params(weights.params, golden_files.read(name).params)
  assert weights.notes[0] == f'names: prefix {prefix} stripped' and not weights.problems


def test_names_that_begin_so_are_tried_first(tmp_path):
  """Hugging Face's `encoder.layer.0` is a name, not a prefix."""
  headless = {name.removeprefix('vit.'): array for name, array in arrays('hf_vit').items() if name.startswith('vit.')}
  weights = load.read(write(tmp_path, headless, 'hf_vit'))
  assert weights.config.num_classes is None and not any('prefix' in note for note in weights.notes)
  for path in ('a', 'b'):
    (tmp_path / path).mkdir()
  weights = load.read(write(tmp_path / 'a', under('encoder.', headless), 'hf_vit'))
  assert weights.notes[0] == 'names: prefix encoder. stripped'


def test_too_many_prefixes(tmp_path):
  with pytest.raises(UserError, match='not weights of a model in a known format'):
    load.read(write(tmp_path, under('module.' * 6, arrays())))


def test_arrays_beside_the_model(tmp_path):
  """They are a problem, and never become part of the model; a selector leaves them out deliberately."""
  head = {'head.weight': np.zeros((7, 24), np.float32), 'neck.bias': np.zeros(3, np.float32)}
  write(tmp_path, {**under('backbone.', arrays('timm_token')), **head})
  with pytest.raises(UserError, match='unused: head.weight, neck.bias, beside backbone.; left out by .*s:backbone'):
    load.read(tmp_path)
  assert len(load.read(tmp_path, strict=False).problems) == 1
  golden_files.assert_same_params(load.read(f'{tmp_path}:backbone').params, golden_files.read('timm_token').params)


def test_several_models(tmp_path):
  write(tmp_path, {**under('backbone.', arrays()), **under('model.', arrays(), 2)})
  with pytest.raises(UserError, match='holds several models; select one: .*:model or .*:backbone'):
    load.read(tmp_path)
  weights = load.read(f'{tmp_path}:model')
  np.testing.assert_array_equal(weights.params['norm']['scale'], 2 * arrays()['norm.weight'])


def test_models_that_only_a_selector_finds(tmp_path):
  write(tmp_path, {**under('student.module.', arrays(), 2), **under('teacher.backbone.', arrays())})
  with pytest.raises(UserError, match='models are below student, teacher: .*s:student or .*s:teacher'):
    load.read(tmp_path)
  golden_files.assert_same_params(load.read(f'{tmp_path}:teacher').params, golden_files.read('timm_token').params)
  with pytest.raises(UserError, match="no arrays under 'techer'; it holds student, teacher"):
    load.read(f'{tmp_path}:techer')


@pytest.mark.parametrize('name', ['ema', 'model_ema', 'state_dict_ema', 'params_ema'])
def test_parameters_and_their_ema(name, tmp_path):
  """The parameters by default, as for run directories; the EMA on request, by flag or by name."""
  write(tmp_path, {**under('model.', arrays()), **under(f'{name}.module.', arrays(), 0.5)})
  scale = arrays()['norm.weight']
  plain = load.read(tmp_path)
  np.testing.assert_array_equal(plain.params['norm']['scale'], scale)
  assert any(note.startswith(f'left out: EMA ({name}); ema=True (--ema) reads it') for note in plain.notes)
  for average in (load.read(tmp_path, ema=True), load.read(f'{tmp_path}:{name}')):
    np.testing.assert_array_equal(average.params['norm']['scale'], scale / 2)
  assert f'EMA: read from {name}' in load.read(tmp_path, ema=True).notes


def test_only_an_ema(tmp_path):
  weights = load.read(write(tmp_path, under('state_dict_ema.', arrays())))
  assert 'EMA: read from state_dict_ema, the only model there' in weights.notes


def test_several_averages(tmp_path):
  write(tmp_path, {**arrays(), **under('ema.', arrays()), **under('model_ema.', arrays())})
  with pytest.raises(UserError, match='found ema, model_ema: .*s:ema or .*s:model_ema'):
    load.read(tmp_path, ema=True)
  assert not load.read(tmp_path).problems


@pytest.mark.parametrize('model, plain, average', [
    ('bv_map', 'params/', 'ema/params/'), ('bv_map', 'params/', 'params_ema/'), ('vit_token', '', 'ema/')])
def test_ema_in_npz(model, plain, average, tmp_path):
  stored = {name.removeprefix('params/'): array for name, array in golden_files.arrays_of(MODELS[model]).items()}
  np.savez(tmp_path / 'a.npz', **under(plain, stored), **under(average, stored, 0.5))
  scale = golden_files.read(model).params['norm']['scale']
  np.testing.assert_array_equal(load.read(tmp_path / 'a.npz').params['norm']['scale'], scale)
  np.testing.assert_array_equal(load.read(tmp_path / 'a.npz', ema=True).params['norm']['scale'], scale / 2)


def test_training_state_is_left_out(tmp_path):
  state = {'optimizer.state.0.exp_avg': np.zeros(4, np.float32), 'scaler.scale': np.zeros(1, np.float32)}
  weights = load.read(write(tmp_path, {**under('model.', arrays()), **state}))
  assert not weights.problems and 'left out: training state (optimizer, scaler)' in weights.notes


def test_prefixes_and_dtypes(tmp_path):
  """Stripped names keep their dtypes."""
  half = {f'module.{name}': array.astype(np.float16) for name, array in arrays().items()}
  (tmp_path / 'a').mkdir()
  convert.convert(write(tmp_path / 'a', half), tmp_path / 'b', format='timm')
  back = load_file(tmp_path / 'b' / 'model.safetensors')
  assert all(array.tobytes() == half[f'module.{name}'].tobytes() for name, array in back.items())
