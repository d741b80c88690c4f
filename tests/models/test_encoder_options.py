"""Gated MLPs, rotary positions, projections and pools of today's ViTs against slow NumPy versions."""
import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.base.errors import UserError
from vit_jax.models import layers
from vit_jax.models.base import flatten
from vit_jax.models.config import ViTConfig
from vit_jax.models.mlp import Mlp
from vit_jax.models.positions.rotary import Rotary
from vit_jax.models.vit import VisionTransformer

TINY = dict(image_size=(12, 8), patch_size=4, width=16, depth=2, heads=2, mlp_dim=20, num_classes=4)
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(3, 12, 8, 3)).astype(np.float32)


def model(**fields):
  """A model whose parameters, biases and scales too, are all random."""
  built = VisionTransformer(ViTConfig(**{**TINY, **fields}), rngs=nnx.Rngs(0))
  state = nnx.state(built, nnx.Param)
  rng = np.random.default_rng(1)
  nnx.update(built, jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.3, jnp.float32), state))
  return built


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def gelu_tanh(x):
  return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def norm(x, scale, bias, epsilon=1e-6):
  mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
  return (x - mean) / np.sqrt(variance + epsilon) * scale + bias


@pytest.mark.parametrize('kind', ['gelu', 'swiglu', 'geglu'])
@pytest.mark.parametrize('hidden_norm', [False, True])
def test_mlp(kind, hidden_norm):
  mlp = Mlp(6, 10, kind=kind, hidden_norm=hidden_norm, gelu='tanh', dropout=0.0, dtype=jnp.float32, rngs=nnx.Rngs(0))
  params = {path: RNG.normal(size=leaf.shape) for path, leaf in flatten(nnx.to_pure_dict(nnx.state(mlp))).items()}
  for path, leaf in params.items():
    layer, name = path.split('/')
    getattr(getattr(mlp, layer), name)[...] = jnp.asarray(leaf, jnp.float32)
  x = RNG.normal(size=(2, 3, 6))
  dense = lambda layer, x: x @ params[f'{layer}/kernel'] + params[f'{layer}/bias']
  up = dense('up', x)
  expected = {'gelu': lambda: gelu_tanh(up), 'swiglu': lambda: dense('gate', x) * sigmoid(dense('gate', x)) * up,
              'geglu': lambda: gelu_tanh(dense('gate', x)) * up}[kind]()
  if hidden_norm:
    expected = norm(expected, params['norm/scale'], params['norm/bias'])
  np.testing.assert_allclose(mlp(jnp.asarray(x, jnp.float32)), dense('down', expected), rtol=1e-5, atol=1e-5)
  assert {path.split('/')[0] for path in params} == {'up', 'down', *(['gate'] if kind != 'gelu' else []),
                                                     *(['norm'] if hidden_norm else [])}


def rotated(x, grid, prefix, base, kind, reference=None):
  """Rotate (tokens, head_dim), pair by pair, as complex numbers."""
  head_dim = x.shape[-1]
  n = head_dim // 4
  out = np.array(x, np.float64)
  for token in range(prefix, len(x)):
    place = divmod(token - prefix, grid[1])
    for pair in range(head_dim // 2):
      axis, k = divmod(pair, n)
      if kind == 'dinov3':
        coordinate = 2 * math.pi * ((place[axis] + 0.5) / grid[axis] * 2 - 1)
        first, second = pair, pair + head_dim // 2
      else:
        coordinate = place[axis] * (reference[axis] / grid[axis] if reference else 1)
        first, second = 2 * pair, 2 * pair + 1
      turned = complex(x[token, first], x[token, second]) * np.exp(1j * coordinate / base ** (k / n))
      out[token, first], out[token, second] = turned.real, turned.imag
  return out


@pytest.mark.parametrize('kind, base, reference', [('dinov3', 100.0, None), ('eva', 1e4, None), ('eva', 1e4, (4, 5))])
@pytest.mark.parametrize('prefix', [0, 3])
def test_rotary_turns_pairs_of_features(kind, base, reference, prefix):
  x = RNG.normal(size=(2, 2, prefix + 6, 8)).astype(np.float32)
  ours = Rotary(kind, (2, 3), prefix, 8, base, reference)(jnp.asarray(x))
  for batch in range(2):
    for head in range(2):
      expected = rotated(x[batch, head], (2, 3), prefix, base, kind, reference)
      np.testing.assert_allclose(ours[batch, head], expected, rtol=0, atol=2e-6)
  assert Rotary(kind, (2, 3), prefix, 8, base, reference)(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16


def test_scores_depend_on_offsets_only():
  rotary = Rotary('eva', (4, 4), 0, 8, 1e4)
  query, key = (jnp.broadcast_to(jnp.asarray(RNG.normal(size=8), jnp.float32), (1, 1, 16, 8)) for _ in range(2))
  scores = np.einsum('qd,kd->qk', rotary(query)[0, 0], rotary(key)[0, 0]).reshape(4, 4, 4, 4)
  np.testing.assert_allclose(scores[0, 0, 1, 2], scores[2, 1, 3, 3], rtol=1e-5)
  assert abs(scores[0, 0, 1, 2] - scores[0, 0, 2, 1]) > 1e-3


@pytest.mark.parametrize('fields', [dict(rotary='dinov3', registers=2), dict(rotary='eva', pool='gap', class_token=False)],
                         ids=str)
def test_attention_weights_of_rotary_models(fields):
  """The first block's weights, from rotated projections; the class token's row is that of the pooled model too."""
  built = model(position=None, qkv_bias=True, key_bias=False, **fields)
  block = jax.tree.map(lambda leaf: np.asarray(leaf[0], np.float64), nnx.to_pure_dict(nnx.state(built.encoder.blocks)))
  tokens = norm(np.asarray(built.tokens(IMAGES), np.float64), **block['attention_norm'])
  assert 'bias' not in block['attention']['key']
  prefix, kind = built.config.num_prefix_tokens, fields['rotary']
  query = np.einsum('bnd,dhk->bhnk', tokens, block['attention']['query']['kernel'])
  query += block['attention']['query']['bias'][:, None]
  key = np.einsum('bnd,dhk->bhnk', tokens, block['attention']['key']['kernel'])
  turn = lambda x: np.stack([[rotated(head, (3, 2), prefix, 100.0, kind) for head in image] for image in x])
  scores = np.einsum('bhqd,bhkd->bhqk', turn(query), turn(key)) / math.sqrt(8)
  expected = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
  np.testing.assert_allclose(built.attention_weights(IMAGES)[0], expected, rtol=1e-4, atol=1e-6)
  if built.pool.first_only:  # the last block may compute the class token alone
    np.testing.assert_allclose(built.embed(IMAGES), built.features(IMAGES)[:, 0], rtol=1e-4, atol=1e-5)


def test_pool_of_class_token_and_patch_mean():
  built = model(pool='token_gap', registers=2, representation_size=6)
  tokens = np.asarray(built.features(IMAGES))
  pooled = np.concatenate([tokens[:, 0], tokens[:, 3:].mean(axis=1)], axis=1)
  hidden = np.tanh(pooled @ built.pre_logits.kernel[...] + built.pre_logits.bias[...])
  np.testing.assert_allclose(built.embed(IMAGES), hidden, rtol=1e-4, atol=1e-5)
  assert model(pool='token_gap').head.kernel.shape == (32, 4)


def test_projection_is_linear_and_what_the_head_reads():
  built = model(pool='gap', projection_size=5, norm_after_pool=True)
  pooled = np.asarray(layers.layer_norm(built.norm, built.features(IMAGES).mean(axis=1)))
  embedded = pooled @ built.projection.kernel[...]
  np.testing.assert_allclose(built.embed(IMAGES), embedded, rtol=1e-4, atol=1e-5)
  logits = embedded @ built.head.kernel[...] + built.head.bias[...]
  np.testing.assert_allclose(built(IMAGES), logits, rtol=1e-4, atol=1e-5)
  assert built.projection.bias is None


def test_mask_token_does_not_change_what_a_model_computes():
  with_token, without = model(mask_token=True), model()
  assert with_token.mask_token.shape == (16,) and with_token.layer_of('mask_token') == 0
  nnx.update(without, jax.tree.map(lambda leaf: leaf, nnx.State({
      name: value for name, value in nnx.state(with_token, nnx.Param).items() if name != 'mask_token'})))
  np.testing.assert_array_equal(with_token(IMAGES), without(IMAGES))


@pytest.mark.parametrize('fields, message', [
    (dict(mlp='relu'), "model.mlp: unknown 'relu'; choose from"),
    (dict(rotary='rope'), "model.rotary: unknown 'rope'; choose from"),
    (dict(rotary='eva', heads=8), 'model.rotary: .* multiple of 4'),
    (dict(rotary_grid=16, rotary='dinov3'), 'model.rotary_grid: '),
    (dict(rotary_grid=(4, -1), rotary='eva'), 'model.rotary_grid: '),
    (dict(rotary_base=0.0), 'model.rotary_base: '),
    (dict(projection_size=3, representation_size=4), 'model.projection_size: '),
    (dict(pool='token_gap', norm_after_pool=True), 'model.norm_after_pool: '),
    (dict(pool='token_gap', class_token=False), 'model.class_token: '),
])
def test_options_that_do_not_fit(fields, message):
  with pytest.raises(UserError, match=message):
    VisionTransformer(ViTConfig(**{**TINY, **fields}), rngs=nnx.Rngs(0))
