"""The MLP-Mixer: what it computes, and what it says about its parameters."""
import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import golden_files
from tests.models.test_multiply_adds import products
from vit_jax.base.errors import UserError
from vit_jax.models.base import flatten
from vit_jax.models.mixer.config import MixerConfig
from vit_jax.models.mixer.mixer import Mixer
from vit_jax.pretrained.load import build

TINY = dict(image_size=(8, 12), patch_size=4, width=16, depth=3, token_mlp_dim=10, channel_mlp_dim=24, num_classes=5)
IMAGES = np.random.default_rng(0).normal(size=(3, 8, 12, 3)).astype(np.float32)


def model(**fields):
  return Mixer(MixerConfig(**{**TINY, **fields}), rngs=nnx.Rngs(0))


def test_a_block_is_two_mlps_in_numpy():
  """Equation 1 of the paper, one patch and one feature after the other."""
  net = model(depth=1, gelu='exact')
  x = np.asarray(net.tokens(IMAGES), np.float64)
  block = jax.tree.map(lambda leaf: np.asarray(leaf[0], np.float64), nnx.to_pure_dict(nnx.state(net.encoder.blocks)))
  gelu = np.vectorize(lambda x: x * 0.5 * (1.0 + math.erf(x / math.sqrt(2.0))))

  def norm(x, weights):
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6) * weights['scale'] + weights['bias']

  def mlp(vector, weights):
    hidden = gelu(vector @ weights['up']['kernel'] + weights['up']['bias'])
    return hidden @ weights['down']['kernel'] + weights['down']['bias']

  y = norm(x, block['token_norm'])
  for feature in range(16):
    for image in range(3):
      x[image, :, feature] += mlp(y[image, :, feature], block['token_mixing'])
  y = norm(x, block['channel_norm'])
  for patch in range(6):
    x[:, patch] += mlp(y[:, patch], block['channel_mixing'])
  np.testing.assert_allclose(net.features(IMAGES, layer=1), x, atol=1e-5)


def test_features_and_pooled_features_of_timm():
  with np.load(golden_files.MODELS['timm_mixer'] / 'io.npz') as io:
    net = build(golden_files.read('timm_mixer'))
    np.testing.assert_allclose(net.features(io['images']), io['features'], rtol=0, atol=1e-5)
    np.testing.assert_allclose(net.embed(io['images']), io['pooled'], rtol=0, atol=1e-5)


def test_the_forms_of_the_stack_compute_the_same():
  expected = model()(IMAGES), model().features(IMAGES, layer=2)
  for fields in (dict(unroll=True), dict(remat='full')):
    np.testing.assert_allclose(model(**fields)(IMAGES), expected[0], atol=1e-6)
    np.testing.assert_allclose(model(**fields).features(IMAGES, layer=2), expected[1], atol=1e-6)
  assert model(dtype='bfloat16')(IMAGES).dtype == jnp.float32


def test_stochastic_depth_does_not_scale_what_it_keeps():
  """As in the authors' code: an output is that of evaluation, or the input."""
  net = model(depth=2, stochastic_depth=0.5)
  x, keys = net.features(IMAGES, layer=1), jax.random.split(jax.random.key(0), 3)
  block = nnx.merge(nnx.graphdef(net.encoder.blocks), jax.tree.map(lambda leaf: leaf[1], nnx.state(net.encoder.blocks)))
  block.channel_mixing.down.kernel[...] *= 0.0  # leaves the mixing of patches
  outcomes = set()
  for seed in range(8):
    y = block(x, jax.vmap(lambda key, seed=seed: jax.random.fold_in(key, seed))(keys), 0.5)
    for i, (kept, dropped) in enumerate(zip(block(x), x, strict=True)):
      same = [np.allclose(y[i], kept, atol=1e-6), np.allclose(y[i], dropped, atol=1e-6)]
      assert sum(same) == 1
      outcomes.add(same.index(True))
  assert outcomes == {0, 1}


def test_what_it_lacks_is_an_error():
  net = model()
  with pytest.raises(UserError, match="attention_weights: a model of kind 'mixer' has no attention"):
    net.attention_weights(IMAGES)
  with pytest.raises(UserError, match=r'images: expected shape \(B, 8, 12, 3\)'):
    net(IMAGES[:, :, :8])
  with pytest.raises(UserError, match='layer: expected 0..3, got 4'):
    net.features(IMAGES, layer=4)


@pytest.mark.parametrize('fields, message', [
    (dict(token_mlp_dim=None), r"model: missing \['token_mlp_dim'\]"),
    (dict(variant='Ti/16'), "model.variant: unknown 'Ti/16'; .*'B', 'L'"),
    (dict(patch_size=5), 'data.image_size: .* not divisible by the patch size'),
    (dict(channel_mlp_dim=0), 'model.channel_mlp_dim: must be at least 1'),
    (dict(stochastic_depth=1.0), r'model.stochastic_depth: must be in \[0, 1\)'),
    (dict(dtype='int8'), "model.dtype: unknown 'int8'"),
    (dict(gelu='relu'), "model.gelu: unknown 'relu'"),
    (dict(remat='some'), "model.remat: unknown 'some'"),
])
def test_bad_configs(fields, message):
  with pytest.raises(UserError, match=message):
    model(**fields)


# The parameter tree.


def test_the_tree_describes_the_parameters():
  net = model(unroll=True)
  params = nnx.to_pure_dict(nnx.state(net, nnx.Param))
  sizes = dict(width=16, mlp_dim=(10, 24))
  for path, leaf in flatten(params).items():
    stacked = path.startswith('encoder/blocks/')
    assert (net.layer_of(path) is None) == stacked and (not stacked or leaf.shape[0] == net.num_layers == 3)
    axes = net.logical_axes(f'0/mu/{path}', leaf.ndim)
    assert all(axis is None or size in np.atleast_1d(sizes[axis]) for axis, size in zip(axes, leaf.shape, strict=True))
    kernel = stacked and path.endswith('/kernel')
    assert net.matrix_axes(path) == (((1,), (2,)) if kernel else None)
    assert not kernel or 'mlp_dim' in axes
  assert {path.split('/')[0]: net.layer_of(path) for path in flatten(params) if not path.startswith('encoder')} == dict(
      patch_embed=0, norm=4, head=4)
  assert not net.positions and flatten(params)[net.stem].shape == (4, 4, 3, 16)
  jax.tree.map(np.testing.assert_array_equal, net.stack(net.unstack(params), params), params)


@pytest.mark.parametrize('fields', [dict(), dict(image_size=16, num_classes=None), dict(patch_size=2, channels=1)], ids=str)
def test_multiply_adds_are_those_of_the_forward_pass(fields):
  net = nnx.eval_shape(lambda: model(**fields))
  graphdef, params = nnx.split(net, nnx.Param)
  images = jax.ShapeDtypeStruct((1, *net.image_size, net.channels), jnp.float32)
  jaxpr = jax.make_jaxpr(lambda params, images: nnx.merge(graphdef, params)(images))(params, images)
  assert net.multiply_adds() == products(jaxpr.jaxpr)


def test_multiply_adds_of_published_models():
  """timm's numbers for mixer_b16_224, mixer_b32_224 and mixer_l16_224 (results/model_metadata-in1k.csv)."""
  for variant, millions in (('B/16', 12_610), ('B/32', 3_240), ('L/16', 44_600)):
    net = nnx.eval_shape(lambda variant=variant: Mixer(MixerConfig(variant=variant), rngs=nnx.Rngs(0)))
    assert net.multiply_adds() == pytest.approx(millions * 1e6, rel=0.01)
