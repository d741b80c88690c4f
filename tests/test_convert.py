"""Every format to every format, and the commands `convert` and `describe`."""
import dataclasses
import json
import pathlib

from flax import nnx
import jax
import numpy as np
import pytest

from tests import golden_files, tiny
from tests.golden_files import MODELS
from vit_jax.base.errors import ExistingFileError, FileError, UserError
from vit_jax.base.preprocessing import Preprocessing
from vit_jax.models.base import flatten
from vit_jax.pretrained import convert, describe, load, save
from vit_jax.pretrained.formats import weights as weights_lib
from vit_jax.pretrained.formats.registry import FORMATS

# What a format cannot hold: the config field that the error names.
REFUSED = {
    'bv_gap_rep_sincos2d': dict(huggingface='representation_size', timm='representation_size'),
    'bv_map': dict(google='pool', huggingface='pool'),
    'bv_bit': dict(google='representation_size', timm='preactivation'),
    'hf_bit': dict(google='groups', big_vision='groups', timm='groups'),
    'hybrid_r': dict(big_vision='resnet', huggingface='resnet', timm='resnet'),
    'hybrid_r_root_only': dict(big_vision='resnet', huggingface='resnet', timm='resnet_width'),
    'resnet_only': dict(big_vision='representation_size', huggingface='representation_size', timm='preactivation'),
    # timm builds hybrids by name, and has no name for ones as small as these.
    'timm_hybrid': dict(big_vision='resnet', huggingface='resnet', timm='resnet'),
    'timm_hybrid_root_only': dict(big_vision='resnet', huggingface='resnet', timm='resnet_width'),
    'mixer': dict.fromkeys(('big_vision', 'huggingface'), 'kind'),
    'timm_clip': dict(google='patch_bias', big_vision='patch_bias', huggingface='num_classes'),
    'timm_clip_quickgelu': dict(google='patch_bias', big_vision='patch_bias', huggingface='num_classes'),
    'timm_deit_distilled': dict(google='pool', big_vision='class_token'),
    'timm_dinov2_swiglu': dict(google='layer_scale', big_vision='layer_scale'),
    'timm_dinov3': dict(google='class_token', big_vision='class_token', huggingface='pool'),
    'timm_eva02': dict(google='class_token', big_vision='class_token', huggingface='norm_after_pool'),
    'timm_relpos': dict(google='layer_scale', big_vision='layer_scale', huggingface='class_token'),
    'timm_gap': dict(google='class_token', big_vision='class_token', huggingface='norm_after_pool'),
    'timm_gap_nocls': dict(google='norm_after_pool', big_vision='norm_after_pool', huggingface='norm_after_pool'),
    'timm_layerscale_qknorm': dict(google='layer_scale', big_vision='layer_scale', huggingface='qk_norm'),
    'timm_mixer': dict.fromkeys(('big_vision', 'huggingface'), 'kind'),
    'timm_reg4': dict(google='registers', big_vision='registers'),
    'timm_reg_map': dict(google='pool', huggingface='pool'),
    'timm_registers_no_class': dict(google='registers', big_vision='registers', huggingface='class_token'),
    'vit_token_prelogits_old': dict(huggingface='representation_size', timm='representation_size'),
}
# What a conversion may change: stored by the format in another way, or not at all, but equal.
NUMERICS = ('gelu', 'norm_epsilon', 'numerics', 'resnet_numerics')
SCALES = ('layer_scale',)
POSITIONS = ('position', 'token_position')
DINOV2 = ('pool', 'mask_token')  # its classifier also reads the mean of the patches; it has a mask token


def saved(weights, folder, form):
  """Write weights and read them again, given the image size."""
  path = folder / ('model.npz' if FORMATS[form].suffix == '.npz' else 'model')
  save.save(weights, path, form, approximate=True)
  return load.read(path, trained_at=weights.config.image_size)


@pytest.mark.parametrize('form', FORMATS)
@pytest.mark.parametrize('name', MODELS)
def test_round_trip(name, form, tmp_path):
  weights = golden_files.read(name)
  if field := REFUSED.get(name, {}).get(form):
    with pytest.raises(UserError, match=f'model.{field}: .*(can hold it|no other format)'):
      saved(weights, tmp_path, form)
    return
  back = saved(weights, tmp_path, form)
  assert back.source == form and not back.problems
  kept = lambda fields: dataclasses.replace(back.config, **{name: getattr(weights.config, name) for name in fields
                                                                 if hasattr(weights.config, name)})
  assert kept(NUMERICS + SCALES + POSITIONS + DINOV2) == weights.config
  same = kept(NUMERICS + SCALES) == weights.config
  back = dataclasses.replace(back, config=kept(NUMERICS + SCALES if same else NUMERICS))
  images = golden_files.vectors(name)[0]
  if same:  # the same config and parameters: the same model
    golden_files.assert_same_params(back.params, weights.params)
  else:  # what the format stores in another way, or adds without changing anything: everything else is the same
    added = ('position', 'mask_token', *(('head', '_scale') if back.config.pool != weights.config.pool else ()))
    rest = lambda weights: {path: leaf for path, leaf in flatten(weights.params).items() if not any(
        name in path for name in added)}
    golden_files.assert_same_params(rest(back), rest(weights))
    np.testing.assert_allclose(golden_files.logits(back, images), golden_files.logits(weights, images), atol=1e-6)


@pytest.mark.parametrize('form', FORMATS)
def test_a_hidden_layer_of_size_0_is_none(form, tmp_path):
  """`representation_size=0` is how big_vision's and old recipes spell that there is none."""
  weights = golden_files.read('vit_token')
  spelled = dataclasses.replace(weights, config=dataclasses.replace(weights.config, representation_size=0))
  back = saved(spelled, tmp_path, form)
  assert back.config.representation_size is None and not back.problems
  golden_files.assert_same_params(back.params, saved(weights, tmp_path / 'plain', form).params)


@pytest.mark.parametrize('name', [
    'vit_token', 'mixer', 'bv_map', 'hf_vit', 'timm_token', 'timm_registers_no_class', 'timm_mixer'])
def test_same_names_as_the_code_it_comes_from(name, tmp_path):
  """A file written in its own format again has the same arrays, bit for bit."""
  weights, path = golden_files.read(name), MODELS[name]
  save.save(weights, tmp_path / f'model{FORMATS[weights.source].suffix}', weights.source)
  if path.is_dir():
    (header, data), (ours, our_data) = (golden_files.safetensors_of(file) for file in (
        path / 'model.safetensors', tmp_path / 'model.safetensors'))
    arrays = lambda header, data: {
        name: (entry['dtype'], entry['shape'], data[slice(*entry['data_offsets'])])
        for name, entry in header.items() if name != '__metadata__'}
    assert arrays(header, data) == arrays(ours, our_data)
  else:
    theirs, ours = golden_files.arrays_of(path), golden_files.arrays_of(tmp_path / 'model.npz')
    golden_files.assert_same_params(theirs, ours)


def test_numerics_that_the_target_lacks_need_consent(tmp_path):
  weights = golden_files.read('timm_token')
  with pytest.raises(UserError, match="model.gelu: .* google format uses 'tanh', this model 'exact'.*--approximate"):
    save.save(weights, tmp_path / 'a.npz', 'google')
  with pytest.raises(UserError, match='model.norm_epsilon: .* timm format uses 1e-06, this model 1e-12'):
    save.save(golden_files.read('hf_vit'), tmp_path / 'a', 'timm')
  assert not list(tmp_path.iterdir())


def test_names_and_preprocessing_travel(tmp_path):
  for form, transform in (('huggingface', "resize(interpolation='bicubic')"),
                          ('timm', "resize_small(19, rounding='down')|central_crop(rule='torchvision')"),
                          ('timm', 'resize')):
    weights = dataclasses.replace(
        golden_files.read('hf_vit' if form == 'huggingface' else 'timm_token'), class_names=tuple('abcdefg'),
        preprocessing=Preprocessing(transform, (0.1, 0.2, 0.3), 0.25))
    back = saved(weights, tmp_path / transform, form)
    assert back.class_names == weights.class_names and back.preprocessing == weights.preprocessing


def test_nothing_is_overwritten_and_nothing_half_written(tmp_path, monkeypatch):
  weights = golden_files.read('timm_token')
  save.save(weights, tmp_path / 'model', 'timm')
  before = (tmp_path / 'model' / 'model.safetensors').read_bytes()
  for destination in ('model', 'model/model.safetensors', 'model/other.safetensors'):
    with pytest.raises(ExistingFileError, match='exists already; nothing is overwritten'):
      save.save(weights, tmp_path / destination, 'timm')
  assert (tmp_path / 'model' / 'model.safetensors').read_bytes() == before

  def full(*args, **options):
    raise OSError('disk full')

  monkeypatch.setattr(save, 'save_file', full)
  for destination in ('other', 'other.safetensors'):
    with pytest.raises(FileError, match='cannot write the model: disk full'):
      save.save(weights, tmp_path / destination, 'timm')
    assert [path.name for path in tmp_path.iterdir()] == ['model']


@pytest.mark.parametrize('destination, form, message', [
    ('a', 'google', 'a: expected a file name that ends in .npz for the google format'),
    ('a.npz', 'timm', 'a.npz: expected a directory or a .safetensors file for the timm format'),
    ('a.npz', 'keras', r"format: unknown 'keras'; choose from \['big_vision', 'google', 'huggingface', 'timm'\]"),
])
def test_bad_destinations(destination, form, message, tmp_path):
  with pytest.raises(UserError, match=message):
    save.save(golden_files.read('vit_token'), tmp_path / destination, form)


@pytest.mark.parametrize('name', ['vit_token', 'timm_token'])
def test_a_loaded_model_can_be_saved(name, tmp_path):
  """`vit_jax.save` takes a model as well as weights."""
  weights, model = golden_files.read(name), load.load(MODELS[name])
  model.class_names = tuple('abcdefg')
  paths, lines = save.save(model, tmp_path / 'model', 'huggingface', approximate=True)
  back = load.read(tmp_path / 'model')
  golden_files.assert_same_params(back.params, weights.params)
  assert back.preprocessing.mean == weights.preprocessing.mean and back.class_names == model.class_names
  assert not [line for line in lines if not line.startswith('preprocessing: ')]
  assert [path.name for path in paths] == ['model.safetensors', 'config.json', 'preprocessor_config.json']


def test_saving_a_bare_model_says_what_is_assumed(tmp_path):
  model = weights_lib.new_model(golden_files.read('vit_token').config)
  lines = save.save(model, tmp_path / 'a.npz')[1]
  assert lines[0].startswith("preprocessing: the model has none, assumed Preprocessing(transform='resize', mean=0.5")
  expected = nnx.to_pure_dict(nnx.state(model, nnx.Param))
  golden_files.assert_same_params(load.read(tmp_path / 'a.npz').params, jax.tree.map(np.asarray, expected))


def test_convert_from_and_to_everything(tmp_path):
  """From one format to the next and back to the first: the parameters are the same bit for bit."""
  steps = [('google', 'a.npz'), ('timm', 'b'), ('huggingface', 'c'), ('big_vision', 'd.npz'),
           ('huggingface', 'e.safetensors')]
  source = MODELS['hf_vit']
  for form, name in steps:
    lines = convert.convert(str(source), str(tmp_path / name), format=form, approximate=True)
    assert any(line.startswith('wrote ') for line in lines)
    source = tmp_path / name
  golden_files.assert_same_params(load.read(source).params, golden_files.read('hf_vit').params)


def output(module, *arguments):
  """Return (exit status, standard output, standard error) of a command."""
  process = tiny.command(module, *arguments)
  out, err = process.communicate(timeout=120)
  return process.returncode, out, err


def test_command_convert(tmp_path):
  status, out, _ = output('convert', MODELS['timm_token'], tmp_path / 'a.npz', '--approximate')
  assert status == 0 and out.splitlines()[-1] == f'wrote {tmp_path / "a.npz"}'
  assert 'preprocessing: not stored in .npz files' in out and load.read(tmp_path / 'a.npz').source == 'google'
  status, _, err = output('convert', MODELS['bv_map'], tmp_path / 'b.npz', '--to=google')
  assert status == 1 and err.strip() == (
      "error: model.pool: the google format can only hold 'token' or 'gap', got 'map'; big_vision and timm can hold it (--to=big_vision)")


def test_command_describe():
  status, out, _ = output('describe', MODELS['vit_token'], '--num_classes=3', '--image_size=32', '--image_size=24')
  assert status == 0
  for text in ('format         google', 'parameters     11,575', "transform='resize'", 'width=24', 'Total: 11,575',
               'grid 4×4 to 8×6, resized, bilinear', 'head: reset to zeros for 3 classes (was 7)'):
    assert text in out
  status, out, _ = output('describe', MODELS['timm_reg4'], '--json')
  described = json.loads(out)
  assert status == 0 and described['fields']['registers'] == 4 and described['class_names'] is None
  status, _, err = output('describe', pathlib.Path('nothing.npz'))
  assert status == 1 and err.startswith('error: nothing.npz: not found; expected')


def test_describe_shows_what_tells_the_model_from_others():
  description = describe.describe(MODELS['timm_gap'])
  text = description.to_text()
  assert description.fields['dropout'] == 0.0 and 'dropout' not in text and "pool='gap'" in text and 'width=24' in text
  assert f'head           {description.fields["num_classes"]} classes, one class per image (softmax)' in text
  text = describe.describe(MODELS['vit_features']).to_text()
  assert 'head           none: the model returns embeddings' in text and 'class names' not in text


def test_describe_lists_problems(tmp_path):
  np.savez(tmp_path / 'a.npz', surplus=np.zeros(3), **golden_files.arrays_of(MODELS['vit_token']))
  description = describe.describe(tmp_path / 'a.npz')
  assert description.problems == ('unused: surplus',) and 'unused: surplus' in description.to_text()


@pytest.mark.parametrize('form, fields', [
    ('timm', dict(pool='gap', class_token=False, registers=3)),
    ('timm', dict(pool='map', class_token=True, registers=2)),
    ('timm', dict(pool='map', token_position=False, class_token=True)),
    ('timm', dict(pool='gap', position='none', norm_after_pool=True)),
    ('timm', dict(qkv_bias=False, gelu='tanh', patch_size=(4, 2), channels=1)),
    ('timm', dict(position='learned2d')),
    ('timm', dict(mlp_dim=35, norm_after_pool=True)),
    ('huggingface', dict(qkv_bias=False, gelu='tanh', norm_epsilon=1e-5, channels=4)),
    ('huggingface', dict(num_classes=None, representation_size=10)),
    ('huggingface', dict(token_position=False, image_size=(16, 24))),
    ('google', dict(position='learned2d', representation_size=10, channels=1)),
    ('google', dict(position='none', pool='gap')),
    ('big_vision', dict(pool='map', representation_size=10)),
    ('big_vision', dict(position='none', num_classes=None)),
    ('big_vision', dict(position='sincos2d', image_size=(16, 24), patch_size=(4, 2))),
])
def test_other_fields_round_trip(form, fields, tmp_path):
  fields = dict(dict(image_size=16, patch_size=4, width=24, depth=2, heads=3, mlp_dim=48, num_classes=7), **fields)
  weights = randomized(weights_lib.read_config(fields))
  rng = np.random.default_rng(1)
  images = rng.normal(size=(2, *weights.config.image_size, weights.config.channels)).astype(np.float32)
  back = saved(weights, tmp_path, form)
  assert not back.problems
  np.testing.assert_allclose(golden_files.logits(back, images), golden_files.logits(weights, images), rtol=0, atol=1e-5)
  positions = ('position', 'prefix_position')
  rest = lambda weights: {path: leaf for path, leaf in weights.params.items() if path not in positions}
  golden_files.assert_same_params(rest(back), rest(weights))


def randomized(config):
  """Return weights of a config with random parameters."""
  rng = np.random.default_rng(0)
  params = {path: 0.2 * rng.normal(size=shape).astype(np.float32) + path.endswith('scale')
            for path, shape in weights_lib.shapes(config).items()}
  return weights_lib.Weights(config, weights_lib.unflatten(params))
