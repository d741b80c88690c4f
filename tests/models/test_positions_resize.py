"""A model at another image size: the same numbers as weights resized when they are loaded, with gradients."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.base.errors import UserError
from vit_jax.models.config import ViTConfig
from vit_jax.models.mixer.config import MixerConfig
from vit_jax.models.mixer.mixer import Mixer
from vit_jax.models.positions.resize import at_image_size
from vit_jax.models.vit import VisionTransformer
from vit_jax.pretrained.adapt import Adaptation, adapt
from vit_jax.pretrained.formats.weights import Weights

SMALL = dict(width=16, depth=2, heads=2, mlp_dim=24, patch_size=4, image_size=(16, 24), channels=3, num_classes=None)


def model_of(**fields):
  return VisionTransformer(ViTConfig(**{**SMALL, **fields}), rngs=nnx.Rngs(0))


def pixels(size, channels=3):
  return jax.random.normal(jax.random.key(1), (2, *size, channels))


@pytest.mark.parametrize('fields', [
    {}, dict(position='learned2d', position_at='every'), dict(pool='gap', registers=2, unroll=True)], ids=str)
def test_positions_are_resized_as_when_weights_are_loaded(fields):
  model, size = model_of(**fields), (8, 12)
  small = at_image_size(model, size, 'objective.local_size')(model)
  weights = Weights(model.config, jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.Param))))
  adapted, _ = adapt(weights, Adaptation(image_size=size, method='bicubic'))
  other = model_of(**{**fields, 'image_size': size})
  nnx.update(other, nnx.state(nnx.merge(nnx.split(other)[0], jax.tree.map(jnp.asarray, adapted.params))))
  np.testing.assert_allclose(small(pixels(size)), other(pixels(size)), atol=2e-5)


@pytest.mark.parametrize('fields', [
    dict(position='sincos2d', rotary='dinov3'), dict(relative_position='mlp', rotary='eva')], ids=str)
def test_what_fits_any_grid_is_kept(fields):
  model = model_of(**fields)
  small = at_image_size(model, (8, 8), 'objective.local_size')(model)
  assert small(pixels((8, 8))).shape == (2, 16) and small.image_size == (8, 8)


def test_gradients_pass_through_also_for_unstacked_blocks():
  model = model_of(unroll=True)
  convert = at_image_size(model, (8, 8), 'objective.local_size')
  graphdef, _ = nnx.split(model, nnx.Param)
  params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
  target = jax.random.normal(jax.random.key(2), (2, 16))
  loss = lambda params: jnp.square(convert(nnx.merge(graphdef, params))(pixels((8, 8))) - target).sum()
  stacked = jax.jit(jax.grad(loss))(params)
  unstacked = model.stack(jax.jit(jax.grad(loss))(model.unstack(params)), params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3, rtol=1e-3), stacked, unstacked)
  grid = stacked['position']['grid']
  assert grid.shape == (4, 6, 16) and (np.abs(grid).max(axis=-1) > 0).all()
  bumped = jax.tree.map(jnp.copy, params)
  bumped['position']['grid'] = params['position']['grid'].at[1, 2, 3].add(1e-2)
  lowered = jax.tree.map(jnp.copy, params)
  lowered['position']['grid'] = params['position']['grid'].at[1, 2, 3].add(-1e-2)
  slope = (loss(bumped) - loss(lowered)) / 2e-2
  assert float(slope) == pytest.approx(float(grid[1, 2, 3]), rel=2e-2, abs=1e-3)


def test_its_own_size_is_the_model_itself():
  model = model_of()
  assert at_image_size(model, (16, 24), 'objective.local_size')(model) is model


def test_models_of_one_size_are_refused():
  for model in (model_of(relative_position='table'), model_of(position='none', relative_position='keys1d'),
                Mixer(MixerConfig(width=8, depth=1, patch_size=4, token_mlp_dim=4, channel_mlp_dim=8, image_size=(16, 24),
                                  num_classes=None), rngs=nnx.Rngs(0))):
    with pytest.raises(UserError, match='objective.local_size: this model takes images of one size, 16×24'):
      at_image_size(model, (8, 8), 'objective.local_size')
  with pytest.raises(UserError, match='objective.local_size: must be whole patches of 4×4 pixels, got 10×2'):
    at_image_size(model_of(), (10, 2), 'objective.local_size')
