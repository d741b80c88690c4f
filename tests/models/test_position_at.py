"""Position embeddings at the stem, in every block, and shared between blocks (paper, table 8)."""
import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.base.errors import UserError
from vit_jax.models.config import ViTConfig
from vit_jax.models.positions import embeddings
from vit_jax.models.vit import VisionTransformer

TINY = ViTConfig(image_size=(8, 12), patch_size=4, width=8, depth=3, heads=2, mlp_dim=12, num_classes=5, registers=2)


def model(**fields):
  """Return a model with large random parameters."""
  graphdef, params = nnx.split(VisionTransformer(dataclasses.replace(TINY, **fields), rngs=nnx.Rngs(0)), nnx.Param)
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape, scale=0.5), jnp.float32), params)
  return nnx.merge(graphdef, params)


def images():
  return np.random.default_rng(1).normal(size=(2, 8, 12, 3)).astype(np.float32)


def own_positions(grid, token):
  """Return what is added to class token, registers and patches, by hand."""
  rows = [np.asarray(token), np.zeros(8), np.zeros(8), *np.asarray(grid).reshape(-1, 8)]
  return np.stack(rows).astype(np.float32)


@pytest.mark.parametrize('at', ['every', 'shared'])
def test_positions_are_added_to_the_input_of_each_block(at):
  """Block by block, with what is added taken from the tables by hand."""
  found = model(position_at=at)
  assert not jax.tree.leaves(nnx.state(found.position, nnx.Param))
  bare = model(position=None)  # of the same blocks
  blocks = nnx.state(found.encoder.blocks)
  graphdef, plain = nnx.split(bare.encoder.blocks)
  x = found.tokens(images())
  np.testing.assert_array_equal(found.features(images(), 0), x)
  for number in range(3):
    own = jax.tree.map(lambda leaf, number=number: leaf[number], nnx.to_pure_dict(blocks))
    table = own.pop('position') if at == 'every' else nnx.to_pure_dict(nnx.state(found.encoder.position))
    block = jax.tree.map(lambda leaf, number=number: leaf[number], plain)
    nnx.replace_by_pure_dict(block, own)
    x = nnx.merge(graphdef, block)(x + own_positions(table['grid'], table['token']))
    np.testing.assert_allclose(found.features(images(), number + 1), x, atol=1e-4)


def test_the_stem_adds_them_once():
  found = model()
  position = nnx.to_pure_dict(nnx.state(found.position))
  bare = VisionTransformer(dataclasses.replace(TINY, position=None), rngs=nnx.Rngs(0))
  values, state = nnx.to_pure_dict(nnx.state(found, nnx.Param)), nnx.state(bare, nnx.Param)
  del values['position']
  nnx.replace_by_pure_dict(state, values)
  nnx.update(bare, state)
  expected = bare.tokens(images()) + own_positions(position['grid'], position['token'])
  np.testing.assert_allclose(found.tokens(images()), expected, atol=1e-6)


@pytest.mark.parametrize('fields', [
    dict(position='sincos2d'), dict(position='learned2d', token_position=False), dict(pool='gap')], ids=str)
@pytest.mark.parametrize('at', ['every', 'shared'])
def test_any_embedding_can_be_added_to_every_block(at, fields):
  found = model(position_at=at, **fields)
  differs = model(position_at='stem', **fields)
  assert np.abs(np.asarray(found(images()) - differs(images()))).max() > 1e-3
  assert found.attention_weights(images()).shape[0] == 3
  config = found.config
  assert embeddings.per_token(embeddings.make(config, at, nnx.Rngs(0)), config).shape == (config.num_tokens, 8)


def test_unknown_place():
  with pytest.raises(UserError, match=r"model.position_at: unknown 'all'; .*every.*shared.*stem"):
    model(position_at='all')
