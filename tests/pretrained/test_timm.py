"""timm's architectures: its own outputs, names, shapes and facts, and the models that are refused by name.

`timm_architectures.json` lists what timm 1.0.31 builds for every architecture of its classes VisionTransformer,
VisionTransformerRelPos and Eva: (pattern of) names and shapes, heads, epsilon, activation and pooling.
"""
import functools
import json
import pathlib
import re
import shutil

from flax import nnx
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests import golden_files
from tests.golden_files import MODELS
from vit_jax.base.errors import UserError
from vit_jax.pretrained import load, save
from vit_jax.pretrained.files.tensors import Tensors
from vit_jax.pretrained.formats import weights as weights_lib
from vit_jax.pretrained.formats.timm import architectures, names, vit
from vit_jax.pretrained.formats.timm import config as config_lib

BACKBONES = ['timm_clip', 'timm_clip_quickgelu', 'timm_deit_distilled', 'timm_dinov2_swiglu', 'timm_dinov3', 'timm_eva02',
             'timm_registers_no_class', 'timm_relpos', 'timm_siglip_floor']
LIST = json.loads((pathlib.Path(__file__).parent / 'timm_architectures.json').read_text())
# What vit_jax does not have, by names.
REFUSED = re.compile(
    r'aimv2_|beit3_|eva02_enormous|eva02_.*_clip_|test_vit4$|vit_(so150m_patch16_reg4_map|dlittle|dwee|dpwee|pwee|intern300m)'
    r'|.*(_radio_|_rpn_|_xp_|_18x2_|_sapiens2|_pe_(core|lang|spatial)_|_rope_(\d|ape|mixed))')


@pytest.mark.parametrize('name', BACKBONES)
def test_features_and_pooled_tokens_are_timms(name):
  weights = golden_files.read(name)
  graphdef = nnx.graphdef(weights_lib.abstract_model(weights.config))
  with np.load(MODELS[name] / 'io.npz') as io:
    run = jax.jit(lambda params, images: [getattr(nnx.merge(graphdef, params), method)(images)
                                          for method in ('features', 'embed')])
    features, pooled = run(weights.params, io['images'])
    np.testing.assert_allclose(features, io['features'], rtol=0, atol=1e-5)
    np.testing.assert_allclose(pooled, io['pooled'], rtol=0, atol=1e-5)


@pytest.mark.parametrize('name', BACKBONES)
def test_written_again_a_file_has_the_same_bytes(name, tmp_path):
  weights = golden_files.read(name)
  save.save(weights, tmp_path / 'model', 'timm')
  ours, theirs = (load_file(folder / 'model.safetensors') for folder in (tmp_path / 'model', MODELS[name]))
  assert ours.keys() == theirs.keys()
  for key, array in theirs.items():
    np.testing.assert_array_equal(ours[key], array, err_msg=key, strict=True)
  assert load.read(tmp_path / 'model').config == weights.config


def file_of(name):
  """Return the open file of an architecture's published size: names and shapes, no arrays."""
  entry = LIST['architectures'][name]
  dims = entry['dims']

  def size(symbol):
    found = re.fullmatch(r'(\d*)([A-Z]?)', symbol)
    return int(found[1] or 1) * (dims[found[2]] if found[2] else 1)

  shapes = {}
  for array, pattern in LIST['patterns'][entry['pattern']].items():
    for i in range(entry['depth'] if array.startswith('blocks.') else 1):
      shapes[array.replace('blocks.0.', f'blocks.{i}.')] = tuple(map(size, pattern.split()))
  return Tensors(name, shapes, dict.fromkeys(shapes, 'float32'), lambda array: np.zeros(shapes[array], np.float32))


def fields_of(name):
  """Return the config fields that are read from an architecture's file, or raise the refusal."""
  entry, tensors = LIST['architectures'][name], file_of(name)
  pool = {} if 'rel' in name else dict(global_pool=entry['pool'])
  hub = dict(architecture=name, model_args={}, pretrained_cfg=dict(input_size=[3, entry['size'], entry['size']]), **pool)
  assert vit.TimmViT().matches(tensors, {'config.json': hub}), 'not recognized'
  config, found = config_lib.parse(tensors, hub), names.of_file(tensors)
  fields = vit._read_fields(tensors, config, found, [])
  fields.update(vit._read_positions(tensors, fields, config.image_size, None, []))
  return fields, tensors, found


def written_shapes(config):
  """Return {name: shape} of the file that a model would be written to, first block only."""
  table, sizes = names.of_config(config).table(), {}
  for path, shape in weights_lib.shapes(config).items():
    if path.startswith('position/') or path == 'prefix_position':
      sizes.setdefault('pos_embed', []).append(int(np.prod(shape[:-1])))
      continue
    leaf = table[path]
    theirs = leaf.layout.shape(shape[1:] if '{i}' in leaf.name else shape)
    sizes[leaf.name.format(i=0)] = (leaf.part[1] * theirs[0], *theirs[1:])
  if 'pos_embed' in sizes:
    sizes['pos_embed'] = (1, sum(sizes['pos_embed']), config.width)
  return sizes


@pytest.mark.parametrize('name', [name for name in LIST['architectures'] if not REFUSED.match(name)])
def test_facts_of_an_architecture(name):
  entry, (fields, _, _) = LIST['architectures'][name], fields_of(name)
  activation = fields['gelu'] if fields['mlp'] == 'gelu' else 'silu'
  pool = 'distilled' if '_distilled_' in name else {'avg': 'gap'}.get(entry['pool'], entry['pool'])
  assert (fields['heads'], fields['norm_epsilon'], activation, fields['pool']) == (
      entry['dims']['H'], entry['eps'], entry['act'], pool)
  assert fields['image_size'] == (entry['size'],) * 2 or name.startswith('flexivit')


@functools.cache
def of_each_pattern():
  """Return the first architecture of every pattern of names that vit_jax reads."""
  found = {}
  for name, entry in LIST['architectures'].items():
    if not REFUSED.match(name):
      found.setdefault(entry['pattern'], name)
  return sorted(found.values())


@pytest.mark.parametrize('name', of_each_pattern())
def test_names_and_shapes_that_are_written_are_those_of_the_published_file(name):
  fields, tensors, found = fields_of(name)
  config = weights_lib.read_config(fields)
  vit._refuse_other_blocks(tensors, fields, found.table(), name)
  assert written_shapes(config) == {
      array: shape for array, shape in tensors.shapes.items() if not re.match(r'blocks\.[1-9]', array)}


@pytest.mark.parametrize('name', [name for name in LIST['architectures'] if REFUSED.match(name)])
def test_other_architectures_are_refused(name):
  def read():
    fields, tensors, found = fields_of(name)
    vit._refuse_other_blocks(tensors, fields, found.table(), name)
  with pytest.raises(UserError, match=f'{name}: '):
    read()


@pytest.mark.parametrize('architecture', ['swin_tiny_patch4_window7_224', 'convnext_base', 'vitamin_base_224',
                                          'maxvit_tiny_tf_224'])
@pytest.mark.parametrize('strict', [True, False])
def test_a_model_of_another_kind_is_named(architecture, strict, tmp_path):
  shutil.copytree(MODELS['timm_token'], tmp_path / 'model')
  (tmp_path / 'model' / 'config.json').write_text(json.dumps(dict(architecture=architecture, num_classes=7)))
  kind = architecture.split('_')[0]
  with pytest.raises(UserError, match=f"this is a {kind} model .*'{architecture}'.* vit_jax does not have"):
    load.read(tmp_path / 'model', strict=strict)


def test_a_block_with_other_arrays_is_never_another_model(tmp_path):
  shutil.copytree(MODELS['timm_token'], tmp_path / 'model')
  arrays = load_file(tmp_path / 'model' / 'model.safetensors')
  del arrays['blocks.0.norm1.bias'], arrays['blocks.1.norm1.bias']
  save_file(arrays, tmp_path / 'model' / 'model.safetensors')
  with pytest.raises(UserError, match='lacks blocks.0.norm1.bias'):
    load.read(tmp_path / 'model', strict=False)


def test_names_of_architectures():
  ours = [name for name in LIST['architectures'] if not architectures.is_ours(name)]
  assert not ours
  assert not any(map(architectures.is_ours, ('vitamin_base', 'swin_tiny', 'davit_tiny', 'evaluator', 'deital')))
