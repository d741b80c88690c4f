"""`vit_jax.load`: a model ready to use, and the run directories of our own runs."""
import logging
import shutil

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import golden_files, tiny
from tests.golden_files import MODELS
import vit_jax
from vit_jax.base.errors import FileError, MissingFileError, UserError
from vit_jax.base.preprocessing import Preprocessing
from vit_jax.data.sources import registry
from vit_jax.pretrained import load, resize
from vit_jax.pretrained.formats import weights as weights_lib
from vit_jax.run import claim, start
from vit_jax.run.build import build
from vit_jax.rundir.checkpoint import Checkpoints
from vit_jax.rundir.layout import RunDir


def test_a_model_ready_to_use():
  images, output = golden_files.vectors('vit_token')
  model = vit_jax.load(str(MODELS['vit_token']))
  assert isinstance(model, vit_jax.VisionTransformer)
  assert model.preprocessing == Preprocessing('resize', 0.5, 0.5) and model.class_names is None
  np.testing.assert_allclose(nnx.jit(lambda model, x: model(x))(model, images), output, rtol=0, atol=1e-5)
  assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(nnx.state(model)))


def test_architectures_of_transformers_resize_positions_in_their_own_ways():
  methods = {name: load.read(golden_files.GOLDEN / name).resize_method for name in ('hf_dinov2', 'hf_dinov2_registers', 'hf_mae')}
  assert methods == dict(hf_dinov2='bicubic_no_antialias', hf_dinov2_registers='bicubic', hf_mae='bicubic_no_antialias')


@pytest.mark.parametrize('name, method', [
    ('vit_token', 'bilinear'), ('bv_tok_learn', 'bilinear'), ('hf_vit', 'bicubic_no_antialias'),
    ('timm_token', 'bicubic')])
def test_positions_are_resized_as_the_source_does(name, method):
  grid = golden_files.read(name).params['position']['grid']
  model = load.load(MODELS[name], image_size=(24, 20))
  np.testing.assert_array_equal(model.position.grid[...], resize.resize_grid(grid, (6, 5), method))
  other = 'bicubic' if method == 'bilinear' else 'bilinear'
  model = load.load(MODELS[name], image_size=(24, 20), method=other)
  np.testing.assert_array_equal(model.position.grid[...], resize.resize_grid(grid, (6, 5), other))


@pytest.mark.parametrize('name', [
    'Transformer/encoderblock_0/LayerScale_0/gamma', 'Transformer/rope/freqs', 'registers/reg_tokens', 'dist_token',
    'MAPHead_0/probe', 'Transformer/pre_norm/scale', 'conv_extra/kernel'])
def test_arrays_that_change_the_computation_are_never_left_out(name, tmp_path):
  arrays = golden_files.arrays_of(MODELS['vit_token'])
  np.savez(tmp_path / 'file.npz', **arrays, **{name: np.zeros(3, np.float32)})
  for strict in (True, False):
    with pytest.raises(UserError) as error:
      load.load(tmp_path / 'file.npz', strict=strict)
    assert name in str(error.value) or 'hybrid' in str(error.value)


def test_other_arrays_are_left_out_with_a_warning(tmp_path, caplog):
  names = ('surplus', 'text_model/layers/0/kernel', 'decoder/blocks/0/kernel', 'mask_token')
  np.savez(tmp_path / 'file.npz', **golden_files.arrays_of(MODELS['vit_token']), **{name: np.zeros(3) for name in names})
  load.load(tmp_path / 'file.npz', strict=False)
  assert {record.levelname for record in caplog.records} == {'WARNING'}
  for name in names:
    assert f'unused: {name}' in caplog.text


def test_what_was_assumed_is_a_warning(caplog):
  load.load(MODELS['bv_nonsquare_sincos2d'])
  assert 'is assumed; give trained_at' in caplog.text


def test_what_was_assumed_is_a_warning_and_can_be_set(tmp_path, caplog):
  shutil.copy(MODELS['timm_layerscale_qknorm'] / 'model.safetensors', tmp_path / 'a.safetensors')
  with caplog.at_level(logging.WARNING, logger='absl'):
    model = load.load(tmp_path / 'a.safetensors', fields=dict(gelu='tanh'),
                      preprocessing=dict(transform='resize', std=(0.1, 0.2, 0.3)))
  assert model.preprocessing == Preprocessing('resize', 0.5, (0.1, 0.2, 0.3)) and model.config.gelu == 'tanh'
  warnings = ' '.join(record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
  assert "load(fields=dict(gelu='tanh'))" in warnings and 'load(preprocessing=dict(transform=, mean=, std=))' in warnings
  with pytest.raises(UserError, match="preprocessing: unknown 'crop'; choose from \\['mean', 'std', 'transform'\\]"):
    load.load(MODELS['timm_token'], preprocessing=dict(crop=1))


def test_changes_are_made_and_logged(caplog):
  with caplog.at_level(logging.INFO, logger='absl'):
    model = load.load(MODELS['vit_token_prelogits_old'], image_size=32, patch_size=8, channels=1, num_classes=3,
                      drop_pre_logits=True, dtype='bfloat16', fields=dict(dropout=0.1))
  assert model.patch_embed.kernel.shape == (8, 8, 1, 24) and model.head.kernel.shape == (24, 3)
  assert model.pre_logits is None and model.config.dropout == 0.1
  assert model.patch_embed.dtype == jnp.bfloat16 and model.patch_embed.kernel[...].dtype == jnp.float32
  for line in ('patch kernel: resampled from 4×4 to 8×8 pixels', 'image size: 16×16 to 32×32',
               'head: reset to zeros for 3', 'stem: 3 input channels summed to 1', 'pre_logits: dropped (was 24'):
    assert line in caplog.text


def test_an_image_size_that_the_file_does_not_say():
  assert load.load(MODELS['bv_nonsquare_sincos2d'], image_size=(16, 24)).image_size == (16, 24)
  assert load.read(MODELS['bv_nonsquare_sincos2d'], trained_at=(16, 24)).config.image_size == (16, 24)
  assert load.read(MODELS['bv_nonsquare_sincos2d']).notes[0].endswith('(224, 224) is assumed; give trained_at')


def resized_positions(path, rows, tmp_path):
  """Write a golden official file with another number of positions; a row for the class token comes first."""
  arrays = golden_files.arrays_of(path)
  name = 'Transformer/posembed_input/pos_embedding'
  arrays[name] = np.arange(rows * 24, dtype=np.float32).reshape(1, rows, 24)
  np.savez(tmp_path / 'file.npz', **arrays)
  return tmp_path / 'file.npz', arrays[name][0, 1:]


def test_a_rectangular_file_is_told_its_size_and_resized_to_another(tmp_path):
  path, rows = resized_positions(MODELS['vit_token'], 1 + 24, tmp_path)
  grid = rows.reshape(4, 6, 24)
  for options in (dict(trained_at=(16, 24)), dict(image_size=(16, 24)), dict(trained_at=(16, 24), image_size=(16, 24))):
    np.testing.assert_array_equal(load.load(path, **options).position.grid[...], grid)
  model = load.load(path, trained_at=(16, 24), image_size=32)
  assert model.image_size == (32, 32)
  np.testing.assert_array_equal(model.position.grid[...], resize.resize_grid(grid, (8, 8), 'bilinear'))
  for options in ({}, dict(image_size=32)):
    with pytest.raises(UserError, match='24 positions of 4×4 patches are not those of a square.*trained_at=.ROWS'):
      load.load(path, **options)
  with pytest.raises(UserError, match=r'trained_at: an image of \(16, 16\) pixels does not have the file.s 24'):
    load.load(path, trained_at=16)


def test_a_square_number_of_patches_need_not_be_a_square(tmp_path):
  path, rows = resized_positions(MODELS['vit_token'], 1 + 16, tmp_path)
  np.testing.assert_array_equal(load.load(path).position.grid[...], rows.reshape(4, 4, 24))
  model = load.load(path, trained_at=(8, 32))
  assert model.image_size == (8, 32)
  np.testing.assert_array_equal(model.position.grid[...], rows.reshape(2, 8, 24))
  # The size wanted says nothing about the file.
  np.testing.assert_array_equal(load.load(path, image_size=(8, 32)).position.grid[...],
                                resize.resize_grid(rows.reshape(4, 4, 24), (2, 8), 'bilinear'))


def test_a_size_that_the_config_contradicts():
  with pytest.raises(UserError, match=r'trained_at: .*hf_vit says that it was trained at \(16, 16\), got \(8, 32\)'):
    load.read(MODELS['hf_vit'], trained_at=(8, 32))
  assert load.read(MODELS['hf_vit'], trained_at=16).config.image_size == (16, 16)


@pytest.mark.parametrize('name', ['vit_token', 'timm_reg_map', 'vit_token_prelogits_old'])
def test_without_a_head(name):
  images, _ = golden_files.vectors(name)
  model, whole = load.load(MODELS[name], num_classes=0), load.load(MODELS[name])
  assert model.config.num_classes is None and model.class_names is None and model.head is None
  call = nnx.jit(lambda model, x: model(x))
  np.testing.assert_array_equal(call(model, images), nnx.jit(lambda model, x: model.embed(x))(whole, images))
  np.testing.assert_array_equal(call(model, images), nnx.jit(lambda model, x: model.embed(x))(model, images))


@pytest.mark.parametrize('kind, variant', [('vit', 'B/16'), ('mixer', 'B/16'), ('bit', 'R50x1')])
def test_no_classes_are_stored_as_none(kind, variant):
  config = weights_lib.read_config(dict(kind=kind, variant=variant, num_classes=0))
  assert config.num_classes is None and weights_lib.abstract_model(config).num_classes is None


def test_class_names_that_are_given():
  model = load.load(MODELS['vit_token'], class_names=list('abcdefg'))
  assert model.class_names == tuple('abcdefg')
  for names, count in ((list('abc'), '3 names'), (['a'] * 8, '8 names')):
    with pytest.raises(UserError, match=f'class_names: expected one name for each of the 7 logits .* got {count}'):
      load.load(MODELS['vit_token'], class_names=names)
  with pytest.raises(UserError, match="class_names: expected a list of names, got 'abcdefg'"):
    load.load(MODELS['vit_token'], class_names='abcdefg')


def test_where_nothing_is(tmp_path):
  with pytest.raises(MissingFileError, match='nothing.npz: not found; expected an .npz, .safetensors or .pth file'):
    load.load(tmp_path / 'nothing.npz')
  message = 'expected model.safetensors, an .npz file, or the config.json .* it holds nothing'
  with pytest.raises(UserError, match=message):
    load.load(tmp_path)
  for name in ('a.npz', 'b.npz'):
    shutil.copy(MODELS['vit_token'], tmp_path / name)
  with pytest.raises(UserError, match='holds several weight files; name one of a.npz, b.npz'):
    load.load(tmp_path)
  with pytest.raises(UserError, match='a.npz: expected one EMA of the parameters, .* found none'):
    load.load(tmp_path / 'a.npz', ema=True)
  with pytest.raises(UserError, match='a.npz: not a run directory: only those have several steps'):
    load.load(tmp_path / 'a.npz', step=1)


def test_configs_that_are_not_json(tmp_path):
  shutil.copy(MODELS['timm_token'] / 'model.safetensors', tmp_path)
  for text in ('', '[1]', '{', '[' * 100_000):
    (tmp_path / 'config.json').write_text(text)
    with pytest.raises(FileError, match='config.json: (not JSON|expected a JSON object)'):
      load.read(tmp_path)


@pytest.fixture(scope='module')
def run(data_dir, tmp_path_factory):
  """Return (state, run directory) of a run saved before its first step, its EMA different from its parameters."""
  config, workdir = tiny.config(data_dir), tmp_path_factory.mktemp('load') / 'run'
  config.model.update(variant=None, dtype='bfloat16')
  config.data.eval_transform = 'resize_small(8)|central_crop'
  config.normalization = dict(mean=0.25, std=0.75)
  config.objective = dict(loss='sigmoid')
  return save_untrained(config, workdir, lambda state: state.replace(ema=jax.tree.map(lambda x: x + 1, state.params))), workdir


def save_untrained(config, workdir, change):
  """Save a run before its first step; return its state, changed by `change` first."""
  parts = build(config)
  with claim.claim(RunDir(workdir), parts.config):
    checkpoints = Checkpoints(RunDir(workdir).checkpoints_path, parts.config.checkpoint, parts.pace)
    at = start.restore(parts, checkpoints)
    state = change(parts.strategy.fetch(at.state))
    checkpoints.save(0, state, at.record)
    checkpoints.close()
  return state


def test_run_directory(run):
  state, workdir = run
  weights = load.read(workdir)
  golden_files.assert_same_params(weights.params, state.params)
  golden_files.assert_same_params(load.read(workdir, ema=True).params, state.ema)
  assert weights.class_names == tuple('0123456789') and weights.config.dtype == 'bfloat16'
  assert weights.loss == 'sigmoid'
  assert weights.preprocessing == Preprocessing('resize_small(8)|central_crop', 0.25, 0.75)
  model = load.load(workdir)
  assert model.patch_embed.dtype == jnp.bfloat16 and model.num_classes == 10 and model.image_size == (8, 8)
  assert load.load(workdir, dtype='float32', fields=dict(dropout=0.0)).config.dropout == 0.0


def test_run_directory_without_a_checkpoint(run, tmp_path):
  _, workdir = run
  (tmp_path / 'run' / 'checkpoints').mkdir(parents=True)
  shutil.copy(workdir / 'config.json', tmp_path / 'run')
  with pytest.raises(UserError, match='has no checkpoint yet'):
    load.read(tmp_path / 'run')
  with pytest.raises(UserError, match='run: has no checkpoint of step 3; there are 0$'):
    load.read(workdir, step=3)


@pytest.mark.parametrize('ema', [False, True])
@pytest.mark.parametrize('name', ['plain', 'mask_none'])
def test_predictions_of_a_run_of_version_0_1_give_the_metrics_it_recorded(name, ema, data_dir):
  run_dir = RunDir(golden_files.GOLDEN / 'runs' / name)
  digits = registry.open_source('digits', 'test[:100]', data_dir)
  examples = [digits[index] for index in range(len(digits))]
  labels = np.array([example['label'] for example in examples])
  probabilities = load.load(run_dir.path, ema=ema).predict([example['image'] for example in examples])
  recorded, prefix = run_dir.metrics_at(4), 'test_ema' if ema else 'test'
  assert -np.log(probabilities[np.arange(100), labels]).mean() == pytest.approx(recorded[f'{prefix}/loss'], abs=1e-6)
  assert (probabilities.argmax(axis=1) == labels).mean() == pytest.approx(recorded[f'{prefix}/accuracy'])


@pytest.mark.parametrize('ema', [False, True])
def test_a_damaged_checkpoint_is_refused_before_it_is_read(run, tmp_path, ema):
  shutil.copytree(run[1], tmp_path / 'run')
  files = [path for path in (tmp_path / 'run' / 'checkpoints' / '0' / 'state').rglob('*') if path.is_file()]
  largest = max(files, key=lambda path: path.stat().st_size)
  largest.write_bytes(largest.read_bytes()[:1000])
  with pytest.raises(UserError, match=f'0: this checkpoint is damaged: .*{largest.name} has 1,000 bytes'):
    load.read(tmp_path / 'run', ema=ema)


def test_a_run_without_ema_says_so(data_dir, tmp_path):
  save_untrained(tiny.config(data_dir, **{'train.ema_decay': None}), tmp_path / 'run', lambda state: state)
  with pytest.raises(UserError, match='run: trained without train.ema_decay, so it has no EMA'):
    load.read(tmp_path / 'run', ema=True)


def test_fields_that_the_weights_do_not_fit_are_refused():
  with pytest.raises(UserError, match='the weights do not fit a model with .*depth.*encoder/blocks'):
    load.build(golden_files.read('vit_token'), depth=1)
  with pytest.raises(UserError, match='model.dropouts: unknown config key; did you mean model.dropout'):
    load.build(golden_files.read('vit_token'), dropouts=0.1)


def test_predictions_of_a_loaded_model(run):
  """`model.predict` prepares images itself and turns logits into probabilities as the training loss asks for."""
  _, workdir = run
  images = [np.random.default_rng(seed).integers(0, 256, (9, 10), dtype=np.uint8) for seed in range(3)]
  model = load.load(workdir, dtype='float32')
  model.head.kernel[...] = jax.random.normal(jax.random.key(0), model.head.kernel.shape)
  inputs = np.concatenate([model.preprocess(image) for image in images])
  np.testing.assert_allclose(model.predict(images), jax.nn.sigmoid(model(inputs)), atol=1e-6)
  softmax = model.predict(images, batch_size=2, loss='softmax')
  np.testing.assert_allclose(softmax, jax.nn.softmax(model(inputs)), atol=1e-6)
  assert model.embed(inputs).shape == (3, 16) and model.features(inputs).shape == (3, 5, 16)
  assert model.attention_weights(inputs).shape == (2, 3, 2, 5, 5)
  assert nnx.merge(*nnx.split(model)).predict(images).shape == (3, 10)  # still itself after a split, as for `nnx.jit`
