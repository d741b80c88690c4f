"""BiT ResNets and hybrids in the formats of Google, big_vision, timm and Hugging Face."""
import json
import re
import shutil

from flax import nnx
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests import golden_files
from tests.golden_files import MODELS
from vit_jax.base.errors import UserError
from vit_jax.models.bit.config import BiTConfig
from vit_jax.models.config import ViTConfig
from vit_jax.pretrained import load, save
from vit_jax.pretrained.formats import weights as weights_lib
from vit_jax.pretrained.formats.google import bit as google_bit
from vit_jax.pretrained.formats.registry import FORMATS

# Golden model → (format, kind).
RESNETS = {
    'bit_official': ('google', 'bit'), 'resnet_only': ('google', 'bit'), 'bv_bit': ('big_vision', 'bit'),
    'bv_bit_paper': ('big_vision', 'bit'), 'timm_bit_resnet': ('timm', 'bit'), 'hf_bit': ('huggingface', 'bit'),
    'hybrid_r': ('google', 'vit'), 'hybrid_r_root_only': ('google', 'vit'), 'timm_hybrid': ('timm', 'vit'),
    'timm_hybrid_root_only': ('timm', 'vit')}
# Those that timm has no architecture for.
UNWRITABLE = {'timm_hybrid', 'timm_hybrid_root_only'}


def arrays_of(path):
  return load_file(path / 'model.safetensors') if path.is_dir() else golden_files.arrays_of(path)


@pytest.mark.parametrize('name', RESNETS)
def test_golden_outputs_of_every_kind(name):
  path = MODELS[name]
  weights = golden_files.read(name)
  assert not weights.problems and (weights.source, weights.config.kind) == RESNETS[name]
  with np.load(path / 'io.npz' if path.is_dir() else path.with_suffix('.io.npz')) as io:
    images, output = io['images'], io['output']
    np.testing.assert_allclose(golden_files.logits(weights, images), output, rtol=0, atol=1e-5)
    if 'pooled' not in io:
      return
    pooled, features = io['pooled'], io['features']
  graphdef = nnx.graphdef(weights_lib.abstract_model(weights.config))
  both = lambda params, images: ((model := nnx.merge(graphdef, params)).embed(images), model.features(images))
  ours = jax.jit(both)(weights.params, images)
  if features.ndim == 4:  # (batch, features, rows, columns)
    features = features.reshape(*features.shape[:2], -1).swapaxes(1, 2)
  np.testing.assert_allclose(ours[0], pooled, rtol=0, atol=1e-5)
  np.testing.assert_allclose(ours[1], features, rtol=0, atol=1e-5)


@pytest.mark.parametrize('name', sorted(RESNETS.keys() - UNWRITABLE))
def test_written_again_bit_for_bit(name, tmp_path):
  weights = golden_files.read(name)
  form = FORMATS[weights.source]
  path = tmp_path / ('again.npz' if form.suffix == '.npz' else 'again')
  save.save(weights, path, form.name)
  written, original = arrays_of(path), arrays_of(MODELS[name])
  assert written.keys() == original.keys()
  for key, array in original.items():
    np.testing.assert_array_equal(written[key], array, err_msg=key, strict=True)
  again = load.read(path, trained_at=weights.config.image_size)
  assert (again.config, again.preprocessing, again.class_names) == (
      weights.config, weights.preprocessing, weights.class_names)
  golden_files.assert_same_params(again.params, weights.params)


def test_hybrid_with_arrays_of_2020(tmp_path):
  """GroupNorm's arrays were (1, 1, 1, features)."""
  norm = re.compile(r'(^|/)gn(\d|_root|_proj)/')
  arrays = {key: array.reshape(1, 1, 1, -1) if norm.search(key) else array
            for key, array in golden_files.arrays_of(MODELS['hybrid_r']).items()}
  np.savez(tmp_path / 'old.npz', **arrays)
  weights = load.read(tmp_path / 'old.npz')
  assert weights.config == golden_files.read('hybrid_r').config
  golden_files.assert_same_params(weights.params, golden_files.read('hybrid_r').params)


def test_numbered_convolutions_of_official_bit_files(tmp_path):
  arrays = {key.replace('/standardized_conv2d/', '/standardized_conv2d_7/'): array
            for key, array in golden_files.arrays_of(MODELS['bit_official']).items()}
  np.savez(tmp_path / 'numbered.npz', **arrays)
  golden_files.assert_same_params(load.read(tmp_path / 'numbered.npz').params, golden_files.read('bit_official').params)


def written(form, config):
  """Return {name: shape} of a model of this config in a format, without values."""
  params = {path: np.broadcast_to(np.float32(0), shape) for path, shape in weights_lib.shapes(config).items()}
  weights = weights_lib.Weights(config, weights_lib.unflatten(params))
  return {name: array.shape for name, array in FORMATS[form].write(weights, approximate=True).arrays.items()}


def test_names_of_published_files():
  """Number of arrays, and some shapes: npz listings of R50+ViT-B_16 (21,843 classes) and BiT-M-R50x1, timm's models."""
  names = written('google', ViTConfig(variant='R50+B/16', num_classes=21_843, representation_size=768))
  assert len(names) == 358 and sum(map(np.prod, names.values())) == 115_277_971
  assert names['block3/unit9/conv3/kernel'] == (1, 1, 256, 1024) and names['gn_root/scale'] == (64,)
  assert names['embedding/kernel'] == (1, 1, 1024, 768)
  names = written('google', BiTConfig(variant='R50x1', num_classes=21_843))
  # 16 units of 9 arrays, 4 projections, the root, the last norm and the head.
  assert len(names) == 16 * 9 + 4 + 1 + 2 + 2 and sum(map(np.prod, names.values())) == 68_256_659
  assert names['resnet/block4/unit01/a/proj/standardized_conv2d/kernel'] == (1, 1, 1024, 2048)
  assert names['resnet/head/conv2d/kernel'] == (1, 1, 2048, 21_843)
  assert written('timm', ViTConfig(variant='R+Ti/16'))['patch_embed.backbone.conv.weight'] == (64, 3, 7, 7)
  names = written('timm', ViTConfig(variant='R26+S/32'))
  assert names['patch_embed.backbone.stages.3.blocks.1.norm3.weight'] == (2048,)
  assert names['patch_embed.proj.weight'] == (384, 2048, 1, 1)


def test_timm_architectures():
  config = lambda model: FORMATS['timm'].write(weights_lib.Weights(model, weights_lib.unflatten({
      path: np.zeros(shape, np.float32) for path, shape in weights_lib.shapes(model).items()})), approximate=True).configs
  tiny = dict(width=24, depth=1, heads=2, mlp_dim=24, image_size=64, num_classes=3)
  hub = config(ViTConfig(**tiny, resnet=(), patch_size=4))['config.json']
  assert hub['architecture'] == 'vit_tiny_r_s16_p8_224' and hub['model_args']['patch_size'] == 4
  assert hub['pretrained_cfg']['first_conv'] == 'patch_embed.backbone.conv'
  assert config(BiTConfig(variant='R50x1', num_classes=3))['config.json']['model_args'] == {}
  with pytest.raises(UserError, match=r'model.resnet: timm has no hybrid with the stages \(1, 1\)'):
    config(ViTConfig(**tiny, resnet=(1, 1), patch_size=1))


@pytest.mark.parametrize('name, form, key', [
    ('hybrid_r', 'big_vision', 'model.resnet'), ('hybrid_r', 'huggingface', 'model.resnet'),
    ('hybrid_r', 'timm', 'model.resnet_numerics'), ('bit_official', 'big_vision', 'model.numerics'),
    ('hf_bit', 'google', 'model.groups'), ('resnet_only', 'timm', 'model.preactivation'),
    ('bv_bit', 'google', 'model.representation_size'), ('bv_bit', 'huggingface', 'model.numerics')])
def test_what_a_format_cannot_hold_is_named(name, form, key, tmp_path):
  path = tmp_path / ('a.npz' if FORMATS[form].suffix == '.npz' else 'a')
  with pytest.raises(UserError, match=key):
    save.save(golden_files.read(name), path, form)


@pytest.mark.parametrize('form', ['big_vision', 'timm', 'huggingface'])
def test_approximately_the_same_in_other_formats(form, tmp_path):
  path = tmp_path / ('a.npz' if FORMATS[form].suffix == '.npz' else 'a')
  save.save(golden_files.read('bit_official'), path, form, approximate=True)
  images, output = golden_files.vectors('bit_official')
  again = load.read(path, trained_at=images.shape[1:3])
  golden_files.assert_same_params(again.params, golden_files.read('bit_official').params)
  np.testing.assert_allclose(golden_files.logits(again, images), output, atol=0.2)  # the max-pool's border


@pytest.mark.parametrize('name, changes, message', [
    ('hf_bit', dict(output_stride=4), 'output_stride'), ('hf_bit', dict(hidden_act='gelu'), 'hidden_act'),
    ('hf_bit', dict(global_padding='VALID'), 'global_padding'), ('hf_bit', dict(model_type='resnet'), "'resnet'"),
    ('timm_bit_resnet', dict(architecture='resnetv2_50'), 'architecture')])
def test_other_resnets_are_refused(name, changes, message, tmp_path):
  shutil.copytree(MODELS[name], tmp_path / 'model')
  file = tmp_path / 'model' / 'config.json'
  file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
  with pytest.raises(UserError, match=message):
    load.read(tmp_path / 'model', strict=False)


@pytest.mark.parametrize('name, rename', [
    ('bit_official', lambda key: key.replace('block1/unit01', 'block3/unit01')),
    ('bit_official', lambda key: key.replace('unit01', 'unit99999')),
    ('hybrid_r', lambda key: key.replace('block2/unit2', 'block2/unit3'))])
def test_units_that_are_not_consecutive_are_refused(name, rename, tmp_path):
  np.savez(tmp_path / 'a.npz', **{rename(key): array for key, array in golden_files.arrays_of(MODELS[name]).items()})
  with pytest.raises(UserError, match="a.npz: .*(ResNet's stages|a stage and a unit)"):
    load.read(tmp_path / 'a.npz')


def test_bit_root_is_the_official_one():
  assert google_bit.ROOT in golden_files.arrays_of(MODELS['bit_official'])
