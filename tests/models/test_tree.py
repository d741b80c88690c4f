"""What a model says about its parameters matches the parameters that it has."""
import ast
import dataclasses
import math
import pathlib
import re

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vit_jax
from vit_jax.base import sections
from vit_jax.base.errors import UserError
from vit_jax.models.base import flatten, path_of
from vit_jax.models.config import ViTConfig
from vit_jax.models.registry import MODELS
from vit_jax.models.vit import VisionTransformer
from vit_jax.models.vit_tree import ViTTree

TINY = dict(image_size=(8, 12), patch_size=4, width=16, depth=3, heads=2, mlp_dim=24, num_classes=5)
MODELS_OF_ALL_KINDS = [
    dict(), dict(unroll=True, representation_size=6), dict(pool='map', position='learned2d', registers=2),
    dict(pool='gap', position='sincos2d', qk_norm=True, layer_scale=0.1), dict(position=None, token_position=False),
    dict(relative_position='table'), dict(relative_position='keys1d', relative_position_shared=True),
    dict(pool='distilled', pre_norm=True, patch_bias=False, registers=2, register_position=True),
    dict(position_at='every'), dict(position_at='shared', position='learned2d'),
    dict(position_at='every', attention_kind='axial', pool='gap'), dict(attention_kind='local', attention_window=1),
    dict(pool='token_gap', mlp='swiglu', mlp_hidden_norm=True, rotary='dinov3', key_bias=False, mask_token=True),
    dict(pool='gap', projection_size=6)]


def model_and_params(**fields):
  """Return (abstract model, {path: shape})."""
  model = nnx.eval_shape(lambda: VisionTransformer(ViTConfig(**{**TINY, **fields}), rngs=nnx.Rngs(0)))
  return model, flatten(nnx.to_pure_dict(nnx.state(model, nnx.Param)))


@pytest.mark.parametrize('fields', MODELS_OF_ALL_KINDS, ids=str)
def test_the_tree_describes_the_parameters(fields):
  model, params = model_and_params(**fields)
  below = lambda path, subtrees: any(path.startswith(f'{subtree}/') for subtree in subtrees)
  assert params[model.stem].shape == (4, 4, 3, 16)
  heads = {'head', 'head_distilled'} if model.config.pool == 'distilled' else {'head'}
  assert {path.split('/')[0] for path in params if below(path, model.head_paths)} == heads
  assert any(below(path, model.hidden_head_paths) for path in params) == (model.config.representation_size is not None)
  sizes = dict(grid=(2, 3, 16), rows=(2, 8), columns=(3, 8), token=(16,), offsets=(3 * 5 + 3, 2), places=(13, 2, 8))
  layouts = dict(table='offsets', keys='places')
  assert model.positions == {path: layouts.get(name := path.split('/')[-1], name) for path in params
                             if re.search(r'(^|/)(position|relative)/', path)}
  for path, leaf in params.items():
    if path in model.positions:
      layers = (3,) if below(path, model.stacked) else ()
      assert leaf.shape == (*layers, *sizes[model.positions[path]])
    assert (model.layer_of(path) is None) == below(path, model.stacked)
    assert not below(path, model.stacked) or leaf.shape[0] == model.num_layers
    assert len(model.logical_axes(path, leaf.ndim)) == leaf.ndim
  layers = {path.split('/')[0]: model.layer_of(path) for path in params if not path.startswith('encoder/')}
  top = model.num_layers + 1
  names = ('norm', 'pool', 'pre_logits', 'projection', 'head', 'head_distilled')
  assert layers == {name: top if name in names else 0 for name in layers}


def test_no_layer_of_a_model_hides_what_its_tree_says():
  model, params = model_and_params(representation_size=6)
  tree = ViTTree(model.config)
  assert all(model.layer_of(path) == tree.layer_of(path) for path in params)
  for name in ('stacked', 'stem', 'head_paths', 'hidden_head_paths', 'positions', 'num_layers'):
    assert getattr(model, name) == getattr(tree, name)


@pytest.mark.parametrize('fields', MODELS_OF_ALL_KINDS, ids=str)
def test_logical_axes_have_the_sizes_of_the_config(fields):
  model, params = model_and_params(**fields)
  named = set()
  for path, leaf in params.items():
    for axis, size in zip(model.logical_axes(path, leaf.ndim), leaf.shape, strict=True):
      config = model.config
      features = config.representation_size or config.projection_size or config.pooled_size
      features = features if path.startswith('head') else 16
      assert axis is None or size == dict(width=features, heads=2, mlp_dim=24)[axis], path
      named.add(axis)
    assert model.logical_axes(f'opt_state/0/mu/{path}', leaf.ndim) == model.logical_axes(path, leaf.ndim)
  assert named == {None, 'width', 'heads', 'mlp_dim'}


def test_matrix_axes_are_those_of_the_kernels_of_blocks():
  model, params = model_and_params(pool='map', mlp='swiglu')
  matrices = {path: model.matrix_axes(path) for path in params}
  found = {path for path, axes in matrices.items() if axes is not None}
  assert found == {path for path in params if re.fullmatch('encoder/blocks/.*/kernel', path)} and len(found) == 7
  for path in found:
    inputs, outputs = matrices[path]
    assert sorted((0, *inputs, *outputs)) == list(range(params[path].ndim)), path  # axis 0 is the layers'
    size = lambda axes, path=path: math.prod(params[path].shape[axis] for axis in axes)
    assert (size(inputs), size(outputs)) == {'up': (16, 24), 'gate': (16, 24), 'down': (24, 16)}.get(path.split('/')[-2], (16, 16))


@pytest.mark.parametrize('unroll', [False, True])
def test_stack_undoes_unstack(unroll):
  _, params = model_and_params(unroll=unroll)
  rng = np.random.default_rng(0)
  params = {path: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32) for path, leaf in params.items()}
  tree = {}
  for path, leaf in params.items():
    *names, last = path.split('/')
    node = tree
    for name in names:
      node = node.setdefault(name, {})
    node[last] = leaf
  model = ViTTree(ViTConfig(**TINY, unroll=unroll))
  unstacked = model.unstack(tree)
  tuples = {path_of(path) for path, leaf in jax.tree_util.tree_leaves_with_path(
      unstacked, is_leaf=lambda x: isinstance(x, tuple)) if isinstance(leaf, tuple)}
  assert tuples == ({path for path in params if re.fullmatch('encoder/blocks/.*/kernel', path)} if unroll else set())
  jax.tree.map(np.testing.assert_array_equal, model.stack(unstacked, tree), tree)


def test_multiply_adds_of_another_image_size():
  tree = ViTTree(ViTConfig(variant='B/16'))
  assert tree.multiply_adds() == tree.multiply_adds(224) == tree.multiply_adds((224, 224))
  at_384 = dataclasses.replace(tree.config, image_size=384)
  assert tree.multiply_adds(384) == ViTTree(at_384).multiply_adds() > 3 * tree.multiply_adds()
  # torchvision's numbers of multiply-adds for vit_b_16, at 224 and (SWAG weights) at 384.
  assert tree.multiply_adds() == pytest.approx(17.564e9, rel=0.005)
  assert tree.multiply_adds(384) == pytest.approx(55.484e9, rel=0.005)
  assert tree.multiply_adds(100) == tree.multiply_adds(96)  # whole patches only
  with pytest.raises(UserError, match='data.image_size: .* is smaller than a patch'):
    tree.multiply_adds(15)


SMALLEST = dict(bit='R26x1', mixer='B/32', vit='Ti/16')


@pytest.mark.parametrize('kind', sorted(MODELS))
def test_every_model_is_built_from_its_config(kind):
  config = sections.read(MODELS[kind].Config, dict(kind=kind, variant=SMALLEST[kind]), 'model')
  model = nnx.eval_shape(lambda: MODELS[kind](config, rngs=nnx.Rngs(0)))
  assert model.config == config and model.image_size == (224, 224) and model.channels == 3 and model.num_classes == 1000


# "Off" has one spelling inside.


@pytest.mark.parametrize('key, spelling', [
    ('representation_size', 0), ('representation_size', None), ('position', 'none'), ('remat', 'none')])
def test_off_is_none_however_it_is_spelled(key, spelling):
  assert getattr(ViTConfig(**TINY, **{key: spelling}), key) is None
  read = sections.read(ViTConfig, dict(variant='Ti/16', **{key: spelling}), 'model')
  assert getattr(read, key) is None


def test_a_representation_size_of_zero_makes_no_hidden_layer():
  zero, none, six = (model_and_params(representation_size=size) for size in (0, None, 6))
  assert zero[1].keys() == none[1].keys() == six[1].keys() - {'pre_logits/kernel', 'pre_logits/bias'}
  assert zero[1]['head/kernel'].shape == (16, 5) and six[1]['head/kernel'].shape == (6, 5)


def test_parameter_names_are_in_models_and_weight_formats_only():
  package = pathlib.Path(vit_jax.__file__).parent
  names = re.compile(r'\b(encoder/blocks|patch_embed|pre_logits/|position/(grid|rows|columns|token))')
  found = []
  for path in package.rglob('*.py'):
    if str(path.relative_to(package)).startswith(('models/', 'pretrained/formats/')):
      continue
    tree = ast.parse(path.read_text())
    docstrings = {ast.get_docstring(node, clean=False) for node in ast.walk(tree)
                  if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))}
    found += [f'{path}:{node.lineno}' for node in ast.walk(tree) if isinstance(node, ast.Constant)
              and isinstance(node.value, str) and node.value not in docstrings and names.search(node.value)]
  assert not found
