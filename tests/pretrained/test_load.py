"""`vit_jax.load`: a model ready to call, and the workdirs of our own runs."""
import logging
import shutil

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import golden_files
from tests import tiny
from tests.golden_files import MODELS
import vit_jax
from vit_jax import train
from vit_jax.run import claim as workdir_lib
from vit_jax.base.preprocessing import Preprocessing
from vit_jax.pretrained import load
from vit_jax.pretrained import resize
from vit_jax.rundir.checkpoint import Checkpoints


def test_a_model_ready_to_call():
  images, output = golden_files.vectors('vit_token')
  model = vit_jax.load(str(MODELS['vit_token']))
  assert isinstance(model, vit_jax.VisionTransformer)
  assert model.preprocessing == Preprocessing('resize', 0.5, 0.5) and model.class_names is None
  np.testing.assert_allclose(nnx.jit(lambda model, x: model(x))(model, images), output, rtol=0, atol=1e-5)
  assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(nnx.state(model)))


@pytest.mark.parametrize('name, method', [
    ('vit_token', 'bilinear'), ('bv_tok_learn', 'bilinear'), ('hf_vit', 'bicubic'), ('timm_token', 'bicubic')])
def test_positions_are_resized_as_the_source_does(name, method):
  grid = golden_files.read(name).params['position']['grid']
  model = load.load(MODELS[name], image_size=(24, 20))
  np.testing.assert_array_equal(model.position.grid[...], resize.resize_grid(grid, (6, 5), method))
  other = {'bilinear': 'bicubic', 'bicubic': 'bilinear'}[method]
  model = load.load(MODELS[name], image_size=(24, 20), method=other)
  np.testing.assert_array_equal(model.position.grid[...], resize.resize_grid(grid, (6, 5), other))


def test_changes_are_made_and_said(caplog):
  with caplog.at_level(logging.INFO, logger='absl'):
    model = load.load(MODELS['vit_token_prelogits_old'], image_size=32, patch_size=8, channels=1, num_classes=3,
                      drop_pre_logits=True, dtype='bfloat16', fields=dict(dropout=0.1))
  assert model.patch_embed.kernel.shape == (8, 8, 1, 24) and model.head.kernel.shape == (24, 3) and model.pre_logits is None
  assert model.patch_embed.dtype == jnp.bfloat16 and model.dropout == 0.1 and model.patch_embed.kernel[...].dtype == jnp.float32
  for line in ('patch kernel: resampled from 4×4 to 8×8 pixels', 'image size: 16×16 to 32×32',
               'head: reset to zeros for 3', 'stem: 3 input channels summed to 1', 'pre_logits: dropped (was 24'):
    assert line in caplog.text


def test_an_image_size_that_the_file_does_not_tell():
  assert load.load(MODELS['bv_nonsquare_sincos2d'], image_size=(16, 24)).image_size == (16, 24)
  assert load.read(MODELS['bv_nonsquare_sincos2d']).notes[0].endswith('(224, 224) is assumed; give image_size')


def test_where_nothing_is(tmp_path):
  with pytest.raises(FileNotFoundError, match="there is no .*nothing.npz; expected an .npz or .safetensors file"):
    load.load(tmp_path / 'nothing.npz')
  with pytest.raises(ValueError, match='neither model.safetensors, nor an .npz file, nor the config.json'):
    load.load(tmp_path)
  for name in ('a.npz', 'b.npz'):
    shutil.copy(MODELS['vit_token'], tmp_path / name)
  with pytest.raises(ValueError, match='several files of weights, name one: a.npz, b.npz'):
    load.load(tmp_path)
  with pytest.raises(ValueError, match='only that has averaged parameters'):
    load.load(tmp_path / 'a.npz', ema=True)


def test_configs_that_are_none(tmp_path):
  shutil.copy(MODELS['timm_token'] / 'model.safetensors', tmp_path)
  for text in ('', '[1]', '{', '[' * 100_000):
    (tmp_path / 'config.json').write_text(text)
    with pytest.raises(ValueError, match='config.json: (no JSON|expected a JSON object)'):
      load.read(tmp_path)


@pytest.fixture(scope='module')
def run(data_dir, tmp_path_factory):
  """(state, workdir) of a run that was saved before its first step, with an average unlike the parameters."""
  config, workdir = tiny.config(data_dir), tmp_path_factory.mktemp('load') / 'run'
  config.model.update(variant=None, dtype='bfloat16')
  config.data.eval_transform = 'resize_small(8)|central_crop'
  config.normalization = dict(mean=0.25, std=0.75)
  parts = train.build(config)
  workdir_lib.claim(workdir, parts.config)
  checkpoints = Checkpoints(workdir / 'checkpoints', **parts.checkpoint)
  _, state, record = train.restore(parts, checkpoints)
  state = parts.strategy.fetch(state)
  state = state.replace(ema=jax.tree.map(lambda x: x + 1, state.params))
  checkpoints.save(0, state, record)
  checkpoints.close()
  return state, workdir


def test_workdir(run):
  state, workdir = run
  weights = load.read(workdir)
  golden_files.assert_same_params(weights.params, state.params)
  golden_files.assert_same_params(load.read(workdir, ema=True).params, state.ema)
  assert weights.class_names == tuple('0123456789') and weights.config.dtype == 'bfloat16'
  assert weights.preprocessing == Preprocessing('resize_small(8)|central_crop', 0.25, 0.75)
  model = load.load(workdir)
  assert model.patch_embed.dtype == jnp.bfloat16 and model.num_classes == 10 and model.image_size == (8, 8)
  assert load.load(workdir, dtype='float32', fields=dict(dropout=0.0)).dropout == 0.0


def test_workdir_without_what_was_asked_for(run, tmp_path):
  _, workdir = run
  (tmp_path / 'run' / 'checkpoints').mkdir(parents=True)
  shutil.copy(workdir / 'config.json', tmp_path / 'run')
  with pytest.raises(ValueError, match='has no checkpoint yet'):
    load.read(tmp_path / 'run')


def test_fields_that_the_weights_do_not_fit_are_refused():
  with pytest.raises(ValueError, match='the weights do not fit a model with .*depth.*encoder/blocks'):
    load.build(golden_files.read('vit_token'), depth=1)
