"""BiT ResNets and hybrids: sizes, arithmetic against NumPy, and what the model says of its parameters."""
import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.test_multiply_adds import products
from vit_jax.base.errors import UserError
from vit_jax.models.base import Model, flatten
from vit_jax.models.bit import resnet
from vit_jax.models.bit.config import BiTConfig
from vit_jax.models.bit.model import BiT
from vit_jax.models.bit.shape import NUMERICS
from vit_jax.models.config import ViTConfig
from vit_jax.models.vit import VisionTransformer
from vit_jax.pretrained.formats.weights import abstract_model, shapes

TINY = dict(blocks=(1, 2), stem_width=8, groups=2, image_size=(24, 40), num_classes=5)
HYBRID = dict(resnet=(1, 2), resnet_width=32, patch_size=(2, 1), width=16, depth=2, heads=2, mlp_dim=24,
              image_size=(32, 24), num_classes=5)


def parameters(config):
  return sum(math.prod(shape) for shape in shapes(config).values())


@pytest.mark.parametrize('variant, expected', [  # 1000 classes; timm 1.0.31 counts the same for its resnetv2_*_bit
    ('R50x1', 25_549_352), ('R50x3', 217_319_080), ('R101x1', 44_541_480), ('R101x3', 387_934_888),
    ('R152x1', 60_185_128), ('R152x2', 236_335_208), ('R152x4', 936_533_224), ('R200x3', 568_633_000)])
def test_parameters_of_resnets(variant, expected):
  assert parameters(BiTConfig(variant=variant)) == expected


@pytest.mark.parametrize('variant, expected, at_384', [  # vision_transformer's models_test.py
    ('R+Ti/16', 6_337_704, 6_355_944), ('R26+S/32', 36_431_912, 36_468_392), ('R26+B/32', 101_383_976, 101_456_936),
    ('R50+B/16', 98_659_112, 98_950_952), ('R50+L/32', 328_994_856, 329_092_136)])
def test_parameters_of_hybrids(variant, expected, at_384):
  assert parameters(ViTConfig(variant=variant)) == expected
  assert parameters(ViTConfig(variant=variant, image_size=384)) == at_384


def test_variants():
  assert ViTConfig(variant='R50+B/16').resnet == (3, 4, 9)  # the last stage's units are in the third (section 4.1)
  assert ViTConfig(variant='R50+B/32').resnet == (3, 4, 6, 3)
  assert ViTConfig(variant='R+Ti/16').patch_pixels == (32, 32)
  assert ViTConfig(variant='R50+B/16', resnet=(1, 1)).patch_pixels == (8, 8)
  for name in ('R51+B/16', 'R50+B/8', 'R+B/32', 'R50+X/16'):
    with pytest.raises(UserError, match='model.variant'):
      ViTConfig(variant=name)
  for name in ('R51x1', 'R50', 'B/16'):
    with pytest.raises(UserError, match='model.variant'):
      BiTConfig(variant=name)
  with pytest.raises(UserError, match=r'data.image_size: \(224, 200\) is not divisible by the patch size \(16, 16\)'):
    _ = ViTConfig(variant='R50+B/16', image_size=(224, 200)).grid


@pytest.mark.parametrize('changes, key', [
    (dict(groups=3), 'model.groups'), (dict(stage_widths=(32,)), 'model.stage_widths'), (dict(blocks=(0,)), 'blocks'),
    (dict(numerics='tf'), 'model.numerics'), (dict(stage_widths=(30, 64)), 'model.stage_widths'),
    (dict(blocks=None), r"model: missing \['blocks'\]"), (dict(dtype='int8'), 'model.dtype'), (dict(num_classes=-1), 'num_classes'),
    (dict(numerics='bit_same', image_size=4), 'data.image_size')], ids=str)
def test_what_cannot_be_built(changes, key):
  with pytest.raises(UserError, match=key):
    BiTConfig(**{**TINY, **changes})
  with pytest.raises(UserError, match='model.resnet_'):
    ViTConfig(**{**HYBRID, 'resnet_width': 24})


@pytest.mark.parametrize('config', [
    BiTConfig(**TINY), BiTConfig(**TINY, numerics='bit_same', representation_size=3),
    BiTConfig(**TINY, preactivation=False, numerics='vit'), BiTConfig(**{**TINY, 'image_size': 33, 'num_classes': None}),
    ViTConfig(**HYBRID, pool='gap'), ViTConfig(**{**HYBRID, 'resnet': (), 'patch_size': 2}, pool='gap')],
                         ids=['v2', 'same', 'v1', 'odd', 'hybrid', 'root'])
def test_multiply_adds_are_those_of_the_forward_pass(config):
  graphdef, params = nnx.split(abstract_model(config), nnx.Param)
  images = jax.ShapeDtypeStruct((1, *config.image_size, config.channels), jnp.float32)
  jaxpr = jax.make_jaxpr(lambda params, images: nnx.merge(graphdef, params)(images))(params, images)
  assert abstract_model(config).multiply_adds() == products(jaxpr.jaxpr)


def test_multiply_adds_of_the_paper():
  """6 · multiply-adds · images · epochs are the exaFLOPs of table 6: 50 for R50x1, 274 for R50x1+ViT-B/16."""
  exaflops = lambda config: 6 * abstract_model(config).multiply_adds() * 303e6 * 7 / 1e18
  assert round(exaflops(BiTConfig(variant='R50x1'))) == pytest.approx(50, rel=0.05)
  assert round(exaflops(ViTConfig(variant='R50+B/16'))) == pytest.approx(274, rel=0.01)


@pytest.mark.parametrize('name', NUMERICS)
def test_convolution(name):
  """The standardized convolution and the max-pool against loops over places."""
  numerics, rng = NUMERICS[name], np.random.default_rng(0)
  conv = resnet.StandardizedConv(3, 4, 3, 2, numerics=numerics, dtype=jnp.float32, rngs=nnx.Rngs(0))
  x = rng.normal(size=(1, 8, 7, 3)).astype(np.float32)
  kernel = np.asarray(conv.kernel[...], np.float64)
  kernel -= kernel.mean((0, 1, 2))
  deviation = kernel.std((0, 1, 2))
  inside = np.sqrt(deviation**2 + numerics.epsilon)
  kernel /= inside if numerics.epsilon_inside else deviation + numerics.epsilon
  # TensorFlow's 'same' pads 8 rows by (0, 1) and 7 columns by (1, 1), 'symmetric' both by (1, 1).
  rows, columns = ((0, 1) if numerics.padding == 'same' else (1, 1)), (1, 1)
  expected = places(x, rows, columns, 0.0, lambda window: np.einsum('rci,rcio->o', window, kernel))
  np.testing.assert_allclose(conv(x)[0], expected, atol=1e-5)
  fill = 0.0 if numerics.pool == 'zeros' else -np.inf
  rows, columns = {'same': ((0, 1), (1, 1)), 'valid': ((0, 0), (0, 0))}.get(numerics.pool, ((1, 1), (1, 1)))
  expected = places(x - 3, rows, columns, fill, lambda window: window.max((0, 1)))
  np.testing.assert_allclose(resnet.max_pool(jnp.asarray(x) - 3, numerics.pool)[0], expected, atol=1e-6)


def places(x, rows, columns, fill, function):
  """Return a function of every 3x3 window, 2 apart, of the padded first image."""
  padded = np.pad(x[0].astype(np.float64), (rows, columns, (0, 0)), constant_values=fill)
  return np.array([[function(padded[i:i + 3, j:j + 3]) for j in range(0, padded.shape[1] - 2, 2)]
                   for i in range(0, padded.shape[0] - 2, 2)])


def test_group_norm():
  norm = resnet.GroupNorm(6, groups=3, epsilon=1e-5)
  x = np.random.default_rng(0).normal(2, 3, size=(2, 4, 5, 6)).astype(np.float32)
  expected = np.stack([(group - group.mean()) / np.sqrt(group.var() + 1e-5)
                       for image in x for group in np.split(image, 3, axis=-1)])
  expected = np.concatenate(expected.reshape(2, 3, 4, 5, 2).transpose(1, 0, 2, 3, 4), axis=-1)
  np.testing.assert_allclose(norm(jnp.asarray(x)), expected, atol=1e-5)


def test_outputs_and_features():
  model = BiT(BiTConfig(**TINY), rngs=nnx.Rngs(0))
  assert isinstance(model, Model)
  images = jax.random.normal(jax.random.key(0), (2, 24, 40, 3))
  assert model(images).shape == (2, 5) and model.config.grid == (3, 5)
  features = model.features(images)
  assert features.shape == (2, 15, 64)
  np.testing.assert_allclose(model.embed(images), features.mean(axis=1), rtol=1e-6)
  assert [model.features(images, layer).shape for layer in range(3)] == [(2, 60, 8), (2, 60, 32), (2, 15, 64)]
  with pytest.raises(UserError, match=r'layer: expected a number of stages, 0..2, got 3'):
    model.features(images, 3)
  with pytest.raises(UserError, match="attention_weights: a model of kind 'bit' has no attention"):
    model.attention_weights(images)
  with pytest.raises(UserError, match='images: expected shape'):
    model(images[..., :2])


@pytest.mark.slow
@pytest.mark.parametrize('remat', ['dots', 'full'])
def test_remat_keeps_gradients(remat):
  images = jax.random.normal(jax.random.key(0), (2, 24, 40, 3))

  def gradient(remat):
    graphdef, params = nnx.split(BiT(BiTConfig(**TINY, remat=remat), rngs=nnx.Rngs(0)), nnx.Param)
    return jax.jit(jax.grad(lambda params: jnp.square(nnx.merge(graphdef, params).embed(images)).sum()))(params)

  for one, other in zip(jax.tree.leaves(gradient(None)), jax.tree.leaves(gradient(remat)), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def test_bfloat16():
  model = BiT(BiTConfig(**TINY, dtype='bfloat16'), rngs=nnx.Rngs(0))
  images = jax.random.normal(jax.random.key(0), (2, 24, 40, 3))
  assert model.features(images).dtype == jnp.bfloat16 and model(images).dtype == jnp.float32
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def test_parameter_tree():
  tree = abstract_model(BiTConfig(**TINY))
  layers = {path: tree.layer_of(path) for path in shapes(tree.config)}
  assert tree.num_layers == 2 and tree.positions == {} and tree.stacked == ()
  assert layers['resnet/conv_root/kernel'] == 0 and layers['resnet/block2/unit01/conv_proj/kernel'] == 2
  assert layers['norm/scale'] == layers['head/bias'] == 3
  assert tree.matrix_axes('resnet/block2/unit02/conv2/kernel') == ((0, 1, 2), (3,))
  assert tree.matrix_axes('resnet/conv_root/kernel') is None and tree.matrix_axes('head/kernel') is None
  assert tree.logical_axes('0/mu/resnet/block1/unit01/conv3/kernel', 4) == (None, None, 'mlp_dim', 'width')
  assert tree.logical_axes('resnet/block1/unit01/norm1/scale', 1) == (None,)
  assert flatten(nnx.to_pure_dict(nnx.state(tree, nnx.Param)))[tree.stem].shape == (7, 7, 3, 8)
  hybrid = abstract_model(ViTConfig(**HYBRID))
  assert hybrid.stem == 'resnet/conv_root/kernel' and hybrid.patch_kernel == 'patch_embed/kernel'
  assert shapes(hybrid.config)[hybrid.patch_kernel] == (2, 1, 256, 16)
  assert hybrid.layer_of('resnet/block2/unit01/conv1/kernel') == 0
  assert hybrid.logical_axes('resnet/block2/unit01/conv1/kernel', 4) == (None, None, 'width', 'mlp_dim')


def test_hybrid_reads_the_feature_map():
  config = ViTConfig(**HYBRID)
  model = VisionTransformer(config, rngs=nnx.Rngs(0))
  images = jax.random.normal(jax.random.key(0), (2, 32, 24, 3))
  assert config.grid == (2, 3) and model.features(images).shape == (2, 7, 16)
  assert model.attention_weights(images).shape == (2, 2, 2, 7, 7)
  patches = model.resnet(images).reshape(2, 2, 2, 3, 1, -1).transpose(0, 1, 3, 2, 4, 5).reshape(2, 6, -1)
  expected = patches @ model.patch_embed.kernel[...].reshape(-1, 16) + model.position.grid[...].reshape(6, 16)
  np.testing.assert_allclose(model.tokens(images)[:, 1:], expected, atol=1e-5)
