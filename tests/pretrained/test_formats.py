"""Every format against its own code's outputs, and the meaning of its names and configs."""
import json
import shutil

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests import golden_files
from tests.golden_files import MODELS
from vit_jax.base.errors import UserError
from vit_jax.base.preprocessing import Preprocessing
from vit_jax.pretrained import load


@pytest.mark.parametrize('name', MODELS)
def test_golden_outputs(name):
  images, output = golden_files.vectors(name)
  weights = golden_files.read(name)
  assert not weights.problems
  np.testing.assert_allclose(golden_files.logits(weights, images), output, rtol=0, atol=1e-5)


def test_numerics_are_stored_by_source():
  numerics = lambda name: tuple(getattr(golden_files.read(name).config, field) for field in ('gelu', 'norm_epsilon'))
  assert numerics('vit_token') == numerics('bv_map') == ('tanh', 1e-6)
  assert numerics('timm_token') == ('exact', 1e-6)
  assert numerics('hf_vit') == ('exact', 1e-12)


@pytest.mark.parametrize('name, fields', [
    ('vit_gap', dict(pool='gap', class_token=False)),
    ('vit_features', dict(num_classes=None)),
    ('vit_nonsquare_patch', dict(patch_size=(4, 2), image_size=(16, 16))),
    ('vit_token_prelogits_old', dict(representation_size=24)),
    ('bv_tok_learn', dict(pool='token', token_position=False)),
    ('bv_nonsquare_sincos2d', dict(position='sincos2d', image_size=(16, 24))),
    ('bv_map', dict(pool='map', class_token=False)),
    ('hf_vit_nonsquare', dict(image_size=(16, 24), heads=3)),
    ('timm_gap', dict(pool='gap', class_token=True, norm_after_pool=True)),
    ('timm_reg4', dict(registers=4, token_position=False)),
    ('timm_layerscale_qknorm', dict(layer_scale=0.01, qk_norm=True)),
])
def test_fields(name, fields):
  config = golden_files.read(name).config
  assert {field: getattr(config, field) for field in fields} == fields


# npz


def rewritten(tmp_path, name, rename):
  """Another `.npz` of the same arrays; `rename` maps (name, array) to (name, array)."""
  arrays = dict(rename(*item) for item in golden_files.arrays_of(MODELS[name]).items())
  np.savez(tmp_path / 'rewritten.npz', **arrays)
  return load.read(tmp_path / 'rewritten.npz')


@pytest.mark.parametrize('rename', [
    lambda name, array: (name.replace('params/', 'opt/target/'), array),
    lambda name, array: (name.replace('params/', ''), array),
    lambda name, array: (name.replace('params/pos_emb', 'params/Transformer/pos_emb'), array),
    lambda name, array: (name.replace('params/pos_emb', 'params/Transformer/posembed_input/pos_emb'), array),
    lambda name, array: (name.replace('MAPHead_0/', ''), array),  # inlined, as in the time of ViT-G
    lambda name, array: (name, array.view('V2') if array.dtype == ml_dtypes.bfloat16 else array),
])
def test_older_big_vision_names(tmp_path, rename):
  weights = rewritten(tmp_path, 'bv_map', rename)
  assert weights.source == 'big_vision' and weights.config.pool == 'map'
  golden_files.assert_same_params(weights.params, golden_files.read('bv_map').params)


def test_big_vision_training_state_is_left_out(tmp_path):
  arrays = golden_files.arrays_of(MODELS['bv_map'])
  np.savez(tmp_path / 'run.npz', **arrays, **{'opt/mu/head/kernel': np.ones(3), 'chrono/steps': np.ones(())})
  assert not load.read(tmp_path / 'run.npz').problems


def test_class_token_position_folded_or_not_gives_the_same(tmp_path):
  images, output = golden_files.vectors('bv_tok_learn')
  own = np.random.default_rng(0).normal(size=(1, 1, 24)).astype(np.float32)
  unfold = {'params/cls': lambda array: array - own,
            'params/pos_embedding': lambda array: np.concatenate([own, array], 1)}
  weights = rewritten(tmp_path, 'bv_tok_learn', lambda name, array: (name, unfold.get(name, lambda x: x)(array)))
  assert weights.config.token_position
  np.testing.assert_allclose(golden_files.logits(weights, images), output, rtol=0, atol=1e-5)


def test_bfloat16_and_float16_are_read_exactly(tmp_path):
  for dtype in (ml_dtypes.bfloat16, np.float16, np.float64):
    weights = rewritten(tmp_path, 'vit_token', lambda name, array, dtype=dtype: (name, array.astype(dtype)))
    expected = golden_files.read('vit_token').params['head']['kernel'].astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(weights.params['head']['kernel'], expected, strict=True)


# Hugging Face and timm


def variant(tmp_path, name, config=None, preprocessor=None, arrays=None, drop=()):
  """A copy of a golden directory with other config entries and arrays."""
  shutil.copytree(MODELS[name], tmp_path / 'model', dirs_exist_ok=True)
  (tmp_path / 'model' / 'config.json').write_text(
      json.dumps(dict(json.loads((MODELS[name] / 'config.json').read_text()), **config or {})))
  if preprocessor:
    (tmp_path / 'model' / 'preprocessor_config.json').write_text(json.dumps(preprocessor))
  tensors = dict(load_file(MODELS[name] / 'model.safetensors'), **arrays or {})
  save_file({key: value for key, value in tensors.items() if key not in drop}, tmp_path / 'model' / 'model.safetensors')
  return tmp_path / 'model'


def test_huggingface_names_and_preprocessing(tmp_path):
  weights = load.read(variant(
      tmp_path, 'hf_vit', dict(id2label={str(i): name for i, name in enumerate('abcdefg')}, hidden_act='gelu_new'),
      dict(image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.5, 0.5], resample=3, size=dict(height=16, width=16))))
  assert weights.class_names == tuple('abcdefg') and weights.config.gelu == 'tanh'
  assert weights.preprocessing == Preprocessing("resize(interpolation='bicubic')", (0.1, 0.2, 0.3), 0.5)
  assert golden_files.read('hf_vit').class_names is None  # LABEL_0, … are no names
  weights = load.read(variant(tmp_path, 'hf_vit', {}, dict(
      size=dict(shortest_edge=18), do_center_crop=True, crop_size=16, do_normalize=False)))
  assert weights.preprocessing == Preprocessing(
      "resize_small(18, rounding='down')|central_crop(rule='huggingface')", 0.0, 1.0)


def test_huggingface_model_without_classifier(tmp_path):
  tensors = load_file(MODELS['hf_vit'] / 'model.safetensors')
  arrays = {key.removeprefix('vit.'): value for key, value in tensors.items() if not key.startswith('classifier.')}
  pooler = {'pooler.dense.weight': np.eye(24, dtype=np.float32), 'pooler.dense.bias': np.zeros(24, np.float32)}
  weights = load.read(variant(tmp_path, 'hf_vit', arrays={**arrays, **pooler}, drop=tensors))
  assert weights.config.num_classes is None and weights.config.representation_size == 24
  features = load.read(variant(tmp_path, 'hf_vit', arrays=arrays, drop=tensors))
  images = golden_files.vectors('hf_vit')[0]
  expected = np.tanh(golden_files.logits(features, images))
  np.testing.assert_allclose(golden_files.logits(weights, images), expected, atol=1e-6)


@pytest.mark.parametrize('config, message', [
    (dict(model_type='swin', architectures=['SwinModel']), "transformers' architecture 'swin', SwinModel, which"),
    (dict(hidden_act='relu'), "hidden_act: unknown 'relu'"),
    (dict(hidden_size=25), 'hidden_size: its config.json says 25, its arrays 24'),
    (dict(num_hidden_layers=10 ** 12), 'num_hidden_layers'),
    (dict(num_attention_heads=5), 'model.heads: must divide the width 24, got 5'),
    (dict(num_attention_heads=0), 'model.safetensors: .*heads'),
    (dict(num_attention_heads='3'), "model.safetensors: .*model.heads: expected a whole number, got '3'"),
    (dict(num_attention_heads=-3), 'model.safetensors: .*heads'),
    (dict(image_size=10 ** 9), r'position_embeddings: expected shape .*, got \(1, 17, 24\)'),
    (dict(image_size=None), 'image_size: .* got None'),
    (dict(image_size='16'), "model.safetensors: .*image_size: .* got '16'"),
    (dict(layer_norm_eps=-1), 'layer_norm_eps: .* got -1'),
    (dict(id2label=[1, 2]), 'wrong type or size'),
])
def test_huggingface_configs_that_do_not_fit(tmp_path, config, message):
  with pytest.raises(UserError, match=message):
    load.read(variant(tmp_path, 'hf_vit', config))


def hub_config(**entries):
  """A config.json as timm has it on the Hugging Face hub."""
  return dict({'library': None, 'class': None, 'architecture': 'vit_tiny', 'global_pool': 'token', 'model_args': dict(
      num_heads=3, img_size=16), 'pretrained_cfg': dict(input_size=[3, 16, 16], crop_pct=0.9, interpolation='bicubic',
                                                        mean=[0.5] * 3, std=[0.1, 0.2, 0.3])}, **entries)


def test_timm_hub_config(tmp_path):
  weights = load.read(variant(tmp_path, 'timm_token', hub_config(
      label_names=[f'n{i}' for i in range(7)], label_descriptions={'n1': 'a fish'})))
  assert weights.class_names[:2] == ('n0', 'a fish')
  assert weights.preprocessing == Preprocessing(
      "resize_small(17, interpolation='bicubic', rounding='down')|central_crop(rule='torchvision')", 0.5,
      (0.1, 0.2, 0.3))
  numbered = hub_config(label_names={str(i): f'n{i}' for i in reversed(range(7))}, label_descriptions={'n1': 'a fish'})
  assert load.read(variant(tmp_path, 'timm_token', numbered)).class_names[:2] == ('n0', 'a fish')
  squash = hub_config(pretrained_cfg=dict(crop_mode='squash', crop_pct=1.0, interpolation='bilinear'))
  assert load.read(variant(tmp_path, 'timm_token', squash)).preprocessing.transform == 'resize'
  assert load.read(variant(tmp_path, 'timm_gap', hub_config(global_pool='avg'))).config.pool == 'gap'
  siglip = hub_config(architecture='vit_so400m_patch16_siglip_256')
  assert load.read(variant(tmp_path, 'timm_reg_map', dict(siglip, global_pool='map'))).config.gelu == 'tanh'


def test_timm_positions_of_registers(tmp_path):
  weights = golden_files.read('timm_reg4')
  rows = np.random.default_rng(0).normal(size=(5, 24)).astype(np.float32)
  arrays = load_file(MODELS['timm_reg4'] / 'model.safetensors')
  path = variant(tmp_path, 'timm_reg4', dict(no_embed_class=False), arrays=dict(
      cls_token=arrays['cls_token'] - rows[0], reg_token=arrays['reg_token'] - rows[1:],
      pos_embed=np.concatenate([rows[None], arrays['pos_embed']], axis=1)))
  images, output = golden_files.vectors('timm_reg4')
  read = load.read(path)
  assert read.config.token_position and read.config.register_position and not weights.config.register_position
  np.testing.assert_array_equal(read.params['prefix_position'], rows[1:])
  np.testing.assert_allclose(golden_files.logits(read, images), output, rtol=0, atol=1e-5)


def test_sizes_that_the_patch_does_not_divide_are_noted():
  weights = golden_files.read('timm_siglip_floor')
  assert weights.config.image_size == (20, 20) and weights.config.grid == (2, 2)
  assert any('sees the 16×16 pixels' in note for note in weights.notes)
  assert not any('ignores' in note for note in golden_files.read('timm_token').notes)


@pytest.mark.parametrize('name, config, message', [
    ('timm_token', dict(pre_norm=True), 'pre_norm: its config.json says True'),
    ('timm_token', dict(global_pool='avgmax'), "unknown: KeyError\\('avgmax'\\)"),
    ('timm_token', dict(act_layer='silu'), 'silu'),
    ('timm_token', dict(label_names={'first': 'a'}), 'label_names: expected a list, or a dict'),
    ('timm_token', dict(label_names={'1000000000': 'a'}), 'label_names: expected a list, or a dict'),
    ('timm_token', dict(hub_config(), architecture='vit_base_patch16_rpn_224'),
     'this is a vit_base_patch16_rpn_224 model .LayerNorms after the branches., which vit_jax does not have'),
    ('timm_gap', dict(pool_include_prefix=True), r'its pooling \(gap\) includes class token'),
    ('timm_token', hub_config(pretrained_cfg=dict(crop_pct=0)), 'crop_pct: .* got 0'),
    ('timm_token', hub_config(pretrained_cfg=dict(std=[1, 0, 1])), 'std above 0'),
    ('timm_token', dict(img_size=[1, 2, 3]), 'model.safetensors: '),
])
def test_timm_configs_that_do_not_fit(tmp_path, name, config, message):
  with pytest.raises(UserError, match=message):
    load.read(variant(tmp_path, name, config))


def test_a_stated_image_size_wins_over_a_square(tmp_path):
  size_of = lambda stated: load.read(variant(tmp_path, 'timm_token', dict(img_size=stated))).config.image_size
  assert size_of(16) == (16, 16) and size_of([8, 32]) == (8, 32)


@pytest.mark.parametrize('class_token', [True, False])
@pytest.mark.parametrize('registers', [7, 8])
def test_timm_registers_that_leave_another_square(tmp_path, class_token, registers):
  """16 rows could be 16 patches, or 9 and 7 for the prefix: the config's image size decides."""
  rng = np.random.default_rng(0)
  arrays = dict(reg_token=rng.normal(size=(1, registers - class_token, 24)).astype(np.float32))
  path = variant(tmp_path, 'timm_reg4', arrays=arrays, drop=() if class_token else ('cls_token',),
                 config=dict(global_pool='avg', fc_norm=False))
  config = load.read(path).config
  assert config.image_size == (16, 16) and not (class_token and config.token_position)


def test_timm_file_alone(tmp_path):
  shutil.copy(MODELS['timm_layerscale_qknorm'] / 'model.safetensors', tmp_path / 'a.safetensors')
  weights = load.read(tmp_path / 'a.safetensors')  # the norms of q and k determine the heads
  assert weights.config.heads == 3 and 'no config.json' in weights.notes[0]
  assert 'no pretrained_cfg' in weights.notes[1] and len(weights.notes) == 2
  shutil.copy(MODELS['timm_token'] / 'model.safetensors', tmp_path / 'b.safetensors')
  with pytest.raises(UserError, match='cannot infer the number of heads of width 24; put a config.json'):
    load.read(tmp_path / 'b.safetensors')
