"""Families of today's Vision Transformers against their own code's outputs, read and written back."""
import dataclasses
import functools
import json
import re
import shutil

from flax import nnx
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests import golden_files
from tests.golden_files import FAMILIES, MODELS
from vit_jax.base.errors import UserError
from vit_jax.pretrained import load, save
from vit_jax.pretrained.formats import weights as weights_lib

HF = sorted(name for name in FAMILIES if name.startswith('hf_'))
BLOCKS = [name for name in HF if name not in ('hf_clip_vision', 'hf_siglip_vision')]


def golden(name):
  """Return {name: array} of what the family's own code computes."""
  with np.load(FAMILIES[name] / 'io.npz') as io:
    return dict(io)


@functools.cache
def functions(config):
  """Return {name in io.npz: (params, images) → what it names}, compiled."""
  graphdef = nnx.graphdef(weights_lib.abstract_model(config))
  options = dict(xla_backend_optimization_level=0, xla_llvm_disable_expensive_passes=True)
  calls = dict(features=lambda model, images: model.features(images), pooled=lambda model, images: model.embed(images),
               embeds=lambda model, images: model.embed(images), output=lambda model, images: model(images))
  return {name: jax.jit(lambda params, images, call=call: call(nnx.merge(graphdef, params), images),
                        compiler_options=options) for name, call in calls.items()}


def check_outputs(name, weights):
  """Check everything that the golden file of a family has, for weights of its image size."""
  vectors = golden(name)
  for key in vectors.keys() - {'images'}:
    found = functions(weights.config)[key](weights.params, vectors['images'])
    np.testing.assert_allclose(found, vectors[key], rtol=0, atol=1e-5, err_msg=key)


@pytest.mark.parametrize('name', FAMILIES)
def test_golden_outputs(name):
  model = load.load(FAMILIES[name], image_size=golden(name)['images'].shape[1:3])
  check_outputs(name, load.to_weights(model))


@pytest.mark.parametrize('name', ['hf_dinov2', 'hf_dinov2_registers'])
def test_a_new_head_on_the_class_token_of_dinov2_is_written_as_its_classifier(name, tmp_path):
  """Which also reads the mean of the patches: with weights of zero, so that the logits stay the same."""
  weights = load.read(FAMILIES[name])
  rng, config = np.random.default_rng(0), dataclasses.replace(weights.config, num_classes=3)
  head = dict(kernel=rng.normal(size=(config.width, 3)).astype(np.float32), bias=np.arange(3, dtype=np.float32))
  tuned = dataclasses.replace(weights, config=config, params=dict(weights.params, head=head))
  save.save(tuned, tmp_path / 'model', 'huggingface')
  back = load.read(tmp_path / 'model')
  assert back.config.pool == 'token_gap' and 'ForImageClassification' in (tmp_path / 'model' / 'config.json').read_text()
  images = golden(name)['images']
  run = lambda weights: functions(weights.config)['output'](weights.params, images)
  np.testing.assert_allclose(run(back), run(tuned), atol=1e-5)


@pytest.mark.parametrize('name', HF)
@pytest.mark.parametrize('as_model', [False, True], ids=['weights', 'model'])
def test_huggingface_round_trip(name, as_model, tmp_path):
  """Every array is written back as it was, under its name, and config.json with the same meaning."""
  source = FAMILIES[name]
  save.save(load.load(source) if as_model else load.read(source), tmp_path / 'copy', 'huggingface')
  ours, theirs = load_file(tmp_path / 'copy' / 'model.safetensors'), load_file(source / 'model.safetensors')
  assert ours.keys() == theirs.keys()
  for key, array in theirs.items():
    np.testing.assert_array_equal(ours[key], array, err_msg=key, strict=True)
  written, read = (json.loads((path / 'config.json').read_text()) for path in (tmp_path / 'copy', source))
  assert {key: read.get(key) for key in written} == written
  golden_files.assert_same_params(load.read(tmp_path / 'copy').params, load.read(source).params)


def variant(tmp_path, name, rename=lambda name: name, arrays=None, **config):
  """Return a copy of a golden directory with renamed arrays (None: without), more arrays, and other config entries."""
  source, target = {**MODELS, **FAMILIES}[name], tmp_path / 'model'
  shutil.copytree(source, target, dirs_exist_ok=True)
  renamed = {rename(key): array for key, array in load_file(source / 'model.safetensors').items()}
  renamed.pop(None, None)
  save_file({**renamed, **(arrays or {})}, target / 'model.safetensors')
  stated = json.loads((source / 'config.json').read_text())
  (target / 'config.json').write_text(json.dumps({key: value for key, value in {**stated, **config}.items()
                                                  if value is not ...}))
  return target


# Names in files → names in memory, as transformers 5 has them (transformers/conversion_mapping.py).
IN_MEMORY = {'vit': [
    (r'encoder\.layer\.(\d+)\.attention\.attention\.relative', r'layers.\1.relative'),
    (r'encoder\.layer\.(\d+)\.attention\.output\.dense', r'layers.\1.attention.o_proj'),
    (r'encoder\.layer\.(\d+)\.attention\.attention\.(.)\w+\.(\w+)$', r'layers.\1.attention.\2_proj.\3'),
    (r'encoder\.layer\.(\d+)\.intermediate\.dense', r'layers.\1.mlp.fc1'),
    (r'encoder\.layer\.(\d+)\.output\.dense', r'layers.\1.mlp.fc2'), (r'encoder\.layer\.', 'layers.')],
             'dinov2': [(r'attention\.output\.dense', 'attention.o_proj'),
                        (r'attention\.attention\.(.)\w+\.(\w+)$', r'attention.\1_proj.\2')],
             'dinov3': [(r'^layer\.', 'model.layer.')]}


@pytest.mark.parametrize('name', BLOCKS)
def test_names_in_memory_are_read_too(name, tmp_path):
  kind = re.search('dinov[23]', name)
  rules = IN_MEMORY[kind[0] if kind else 'vit']
  rename = lambda name: functools.reduce(lambda name, rule: re.sub(*rule, name), rules, name)
  copy = variant(tmp_path, name, rename)
  assert load_file(copy / 'model.safetensors').keys() != load_file(FAMILIES[name] / 'model.safetensors').keys()
  golden_files.assert_same_params(load.read(copy).params, load.read(FAMILIES[name]).params)


def test_gate_and_up_of_dinov2_may_be_two_arrays(tmp_path):
  fused = load_file(FAMILIES['hf_dinov2_swiglu_classifier'] / 'model.safetensors')
  halves = {key.replace('weights_in', part): np.ascontiguousarray(half) for key, array in fused.items()
            if 'weights_in' in key for part, half in zip(('gate_proj', 'up_proj'), np.split(array, 2), strict=True)}
  rename = lambda name: None if 'weights_in' in name else name.replace('weights_out', 'down_proj')
  copy = variant(tmp_path, 'hf_dinov2_swiglu_classifier', rename, halves)
  golden_files.assert_same_params(load.read(copy).params,
                                  load.read(FAMILIES['hf_dinov2_swiglu_classifier']).params)


@pytest.mark.parametrize('name, fields', [
    ('hf_deit_distilled', dict(pool='distilled', norm_epsilon=1e-12)),
    ('hf_dinov2', dict(layer_scale=1.0, mask_token=True, norm_epsilon=1e-6, pool='token')),
    ('hf_dinov2_swiglu_classifier', dict(mlp='swiglu', mlp_dim=64, pool='token_gap')),
    ('hf_dinov2_registers', dict(registers=4)),
    ('hf_dinov3', dict(rotary='dinov3', rotary_base=100.0, position=None, key_bias=False, mlp='gelu')),
    ('hf_dinov3_gated', dict(mlp='swiglu', registers=2)),
    ('hf_clip_vision', dict(pre_norm=True, gelu='quick', patch_bias=False, projection_size=10, norm_epsilon=1e-5)),
    ('hf_siglip_vision', dict(pool='map', gelu='tanh', class_token=False)),
    ('hf_beit', dict(pool='gap', norm_after_pool=True, relative_position='table', key_bias=False, position=None)),
])
def test_fields(name, fields):
  config = load.read(FAMILIES[name]).config
  assert {field: getattr(config, field) for field in fields} == fields


def test_a_rotary_model_takes_images_of_any_size():
  model = load.load(FAMILIES['hf_dinov3'], image_size=(8, 20))
  assert model.embed(np.zeros((1, 8, 20, 3), np.float32)).shape == (1, 24)


def test_problem_type_decides_how_logits_become_probabilities(tmp_path):
  weights = load.read(MODELS['hf_vit_problem_multilabel'])
  assert weights.loss == 'sigmoid' and load.read(MODELS['hf_vit']).loss == 'softmax'
  model = load.load(MODELS['hf_vit_problem_multilabel'])
  image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
  np.testing.assert_allclose(model.predict([image]), jax.nn.sigmoid(model(model.preprocess(image))), atol=1e-6)
  save.save(weights, tmp_path / 'copy', 'huggingface')
  assert json.loads((tmp_path / 'copy' / 'config.json').read_text())['problem_type'] == 'multi_label_classification'
  with pytest.raises(UserError, match="problem_type: its config.json says 'regression'"):
    load.read(variant(tmp_path, 'hf_vit', problem_type='regression'))


@pytest.mark.parametrize('name, tower, full', [('hf_clip_vision', 'clip_vision_model', 'clip'),
                                               ('hf_siglip_vision', 'siglip_vision_model', 'siglip')])
def test_the_vision_tower_of_a_file_with_both(name, tower, full, tmp_path):
  config = json.loads((FAMILIES[name] / 'config.json').read_text())
  rename = lambda name: name if name.startswith(('vision_model.', 'visual_projection.')) else f'vision_model.{name}'
  text = {'text_model.final_layer_norm.weight': np.ones(3, np.float32), 'logit_scale': np.ones((), np.float32),
          'vision_model.embeddings.position_ids': np.arange(17)[None]}
  copy = variant(tmp_path, name, rename, text, **{key: ... for key in config})
  top = {'model_type': full, 'architectures': ['Model'], 'projection_dim': config.get('projection_dim', 10)}
  (copy / 'config.json').write_text(json.dumps({**top, 'text_config': {}, 'vision_config': config}))
  weights = load.read(copy)
  golden_files.assert_same_params(weights.params, load.read(FAMILIES[name]).params)
  assert weights.architecture == tower and any('left out: logit_scale' in note for note in weights.notes)


def test_siglip_2_has_a_linear_layer_over_patches(tmp_path):
  """Its kernel takes a patch row by row, channels last; `image_size` follows from the number of positions."""
  kernel = load_file(FAMILIES['hf_siglip_vision'] / 'model.safetensors')['embeddings.patch_embedding.weight']
  flat = np.ascontiguousarray(kernel.transpose(0, 2, 3, 1).reshape(24, -1))
  copy = variant(tmp_path, 'hf_siglip_vision', arrays={'embeddings.patch_embedding.weight': flat},
                 model_type='siglip2_vision_model', num_patches=16, image_size=...)
  weights = load.read(copy)
  check_outputs('hf_siglip_vision', weights)
  save.save(weights, tmp_path / 'copy', 'huggingface')
  written = json.loads((tmp_path / 'copy' / 'config.json').read_text())
  assert written['model_type'] == 'siglip2_vision_model' and written['num_patches'] == 16
  assert load_file(tmp_path / 'copy' / 'model.safetensors').keys() == load_file(copy / 'model.safetensors').keys()


def test_siglip_classifier_reads_the_mean_of_the_tokens(tmp_path):
  head = {'classifier.weight': np.ones((2, 24), np.float32), 'classifier.bias': np.zeros(2, np.float32)}
  config = json.loads((FAMILIES['hf_siglip_vision'] / 'config.json').read_text())
  copy = variant(tmp_path, 'hf_siglip_vision', lambda name: f'vision_model.{name}', head)
  (copy / 'config.json').write_text(json.dumps({'model_type': 'siglip', 'vision_config': config}))
  weights, vectors = load.read(copy), golden('hf_siglip_vision')
  logits = functions(weights.config)['output'](weights.params, vectors['images'])
  np.testing.assert_allclose(logits[:, 0], vectors['features'].mean(axis=1).sum(axis=-1), atol=1e-4)
  save.save(weights, tmp_path / 'copy', 'huggingface')
  golden_files.assert_same_params(load.read(tmp_path / 'copy').params, weights.params)


@pytest.mark.parametrize('architecture', ['vit_mae', 'vit_msn', 'ijepa', 'deit'])
def test_plain_backbones_are_written_as_what_they_were(architecture, tmp_path):
  """Their arrays are named alike; only config.json tells them apart."""
  rng = np.random.default_rng(0)
  arrays = {'embeddings.distillation_token': rng.normal(size=(1, 1, 24)).astype(np.float32),
            'embeddings.position_embeddings': rng.normal(size=(1, 18, 24)).astype(np.float32)}
  if architecture == 'ijepa':
    arrays = {'embeddings.position_embeddings': arrays['embeddings.position_embeddings'][:, 2:].copy()}
  rename = lambda name: None if architecture == 'ijepa' and name.endswith('cls_token') else name
  copy = variant(tmp_path, 'hf_mae', rename, arrays if architecture in ('ijepa', 'deit') else {},
                 model_type=architecture)
  weights = load.read(copy)
  assert weights.config.num_prefix_tokens == {'ijepa': 0, 'deit': 2}.get(architecture, 1)
  save.save(weights, tmp_path / 'copy', 'huggingface')
  ours, theirs = load_file(tmp_path / 'copy' / 'model.safetensors'), load_file(copy / 'model.safetensors')
  assert ours.keys() == theirs.keys() and all(ours[key].tobytes() == theirs[key].tobytes() for key in ours)
  assert json.loads((tmp_path / 'copy' / 'config.json').read_text())['model_type'] == architecture


def test_a_fine_tuned_backbone_is_written_as_a_classifier(tmp_path):
  weights = load.to_weights(load.load(FAMILIES['hf_mae'], num_classes=3))
  save.save(weights, tmp_path / 'copy', 'huggingface')
  written = json.loads((tmp_path / 'copy' / 'config.json').read_text())
  assert written['architectures'] == ['ViTForImageClassification'] and load.read(tmp_path / 'copy').config.num_classes == 3
  with pytest.raises(UserError, match="model.num_classes: the huggingface format can only hold None, got 3"):
    save.save(load.load(FAMILIES['hf_dinov3'], num_classes=3), tmp_path / 'other', 'huggingface')


@pytest.mark.parametrize('config, message', [
    (dict(model_type='swin', architectures=['SwinForImageClassification']), "'swin', SwinForImageClassification, which"),
    (dict(model_type='convnext', architectures=None), "'convnext', which vit_jax does not have"),
    (dict(hidden_act='silu'), "hidden_act: unknown 'silu'"),
])
def test_other_architectures_are_refused_by_name(config, message, tmp_path):
  with pytest.raises(UserError, match=message):
    load.read(variant(tmp_path, 'hf_vit', **config), strict=False)


@pytest.mark.parametrize('name, config', [('hf_dinov3', dict(mlp_bias=False)), ('hf_dinov3', dict(proj_bias=False))])
def test_options_that_vit_jax_does_not_have(name, config, tmp_path):
  with pytest.raises(UserError, match=f'{next(iter(config))}: its config.json says False'):
    load.read(variant(tmp_path, name, **config), strict=False)


def test_a_missing_gate_is_a_problem_and_no_other_model(tmp_path):
  copy = variant(tmp_path, 'hf_dinov3_gated', lambda name: None if 'gate_proj' in name else name)
  with pytest.raises(UserError, match='missing: layer.0.mlp.gate_proj.bias'):
    load.read(copy)
  assert load.read(copy, strict=False).config.mlp == 'swiglu'


@pytest.mark.parametrize('form', ['timm', 'google', 'big_vision'])
def test_other_formats_get_zeros_for_key_biases_and_no_mask_token(form, tmp_path):
  rng = np.random.default_rng(0)
  plain = load.read(MODELS['hf_vit'])
  config = weights_lib.with_fields(plain.config, dict(key_bias=False, mask_token=True, gelu='exact', norm_epsilon=1e-6))
  params = {path: rng.normal(size=shape).astype(np.float32) for path, shape in weights_lib.shapes(config).items()}
  weights = dataclasses.replace(plain, config=config, params=weights_lib.unflatten(params))
  path, images = tmp_path / ('model' if form == 'timm' else 'model.npz'), golden_files.vectors('hf_vit')[0]
  _, notes = save.save(weights, path, form, approximate=True)
  assert any('mask token: is not stored' in note for note in notes)
  back = load.read(path, trained_at=16)
  back = dataclasses.replace(back, config=weights_lib.with_fields(back.config, dict(gelu='exact', norm_epsilon=1e-6,
                                                                                    heads=3)))
  np.testing.assert_allclose(golden_files.logits(back, images), golden_files.logits(weights, images), rtol=1e-4, atol=1e-4)
