"""A model's multiply-adds against the matrix products of its forward pass."""
import math

from flax import nnx
import jax
from jax.extend import core
import jax.numpy as jnp
import pytest

from vit_jax.models.config import ViTConfig
from vit_jax.models.vit import VisionTransformer


def products(jaxpr):
  """Return the multiply-adds of all matrix products of a jaxpr; loops count once per iteration."""
  total = 0
  for line in jaxpr.eqns:
    if line.primitive.name == 'dot_general':
      (contracted, _), _ = line.params['dimension_numbers']
      total += line.outvars[0].aval.size * math.prod(line.invars[0].aval.shape[axis] for axis in contracted)
    elif line.primitive.name == 'conv_general_dilated':
      kernel = line.invars[1].aval
      total += line.outvars[0].aval.size * kernel.size // line.outvars[0].aval.shape[-1]
    for inner in core.jaxprs_in_params(line.params):
      total += line.params.get('length', 1) * products(inner)
  return total


@pytest.mark.parametrize('fields', [
    dict(), dict(pool='gap', registers=3), dict(pool='map', image_size=(8, 24)),
    dict(representation_size=5, patch_size=2), dict(pool='map', mlp='swiglu', mlp_hidden_norm=True, projection_size=5),
    dict(pool='token_gap', mlp='geglu', rotary='dinov3', num_classes=None, representation_size=3),
    dict(pool='gap', class_token=True, num_classes=None), dict(relative_position='keys1d'),
    dict(relative_position='mlp', relative_position_dim=6, registers=1),
    dict(relative_position='mlp_swin', relative_position_shared=True), dict(pool='distilled', image_size=(18, 17)),
    dict(attention_kind='axial', pool='gap', image_size=(8, 24)), dict(attention_kind='local', attention_window=1),
    dict(attention_kind='local', attention_window=9, registers=2, pool='map')], ids=str)
def test_multiply_adds_are_those_of_the_forward_pass(fields):
  shape = dict(width=16, depth=3, heads=2, mlp_dim=24, patch_size=4, image_size=16, num_classes=7, channels=1)
  config = ViTConfig(**{**shape, **fields})
  model = nnx.eval_shape(lambda: VisionTransformer(config, rngs=nnx.Rngs(0)))
  graphdef, params = nnx.split(model, nnx.Param)
  images = jax.ShapeDtypeStruct((1, *model.image_size, 1), jnp.float32)

  def classify(params, images):
    model = nnx.merge(graphdef, params)
    model.pool.first_only = False  # otherwise the last block skips the tokens that the pool does not read
    return model(images)

  jaxpr = jax.make_jaxpr(classify)(params, images)
  assert model.multiply_adds() == products(jaxpr.jaxpr)
