"""Relative positions against plain loops over pairs of tokens, and their way through attention."""
import itertools
import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import golden_files
from vit_jax.base.errors import UserError
from vit_jax.models import attention
from vit_jax.models.attention import Attention
from vit_jax.models.config import ViTConfig
from vit_jax.models.positions.relative import RELATIVES, Place
from vit_jax.models.vit import VisionTransformer

GRID, HEADS, WIDTH = (2, 3), 2, 8
PLACES = [Place(GRID, class_token, registers, HEADS, WIDTH // HEADS, 5)
          for class_token, registers in ((True, 0), (False, 0), (True, 2), (False, 1))]


def random(*shape, seed=0, scale=1.0):
  return scale * np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def make(name, place, seed=0):
  """Return relative positions with large random parameters."""
  graphdef, params = nnx.split(RELATIVES[name](place, rngs=nnx.Rngs(0)), nnx.Param)
  leaves = [random(*leaf.shape, seed=seed + i) for i, leaf in enumerate(jax.tree.leaves(params))]
  return nnx.merge(graphdef, jax.tree.unflatten(jax.tree.structure(params), list(map(jnp.asarray, leaves))))


def table_entry(place, query, key, table):
  """Return the bias of BEiT's and timm's tables for two tokens."""
  prefix = place.num_prefix
  if query >= prefix and key >= prefix:
    (i, j), (k, l) = (divmod(token - prefix, GRID[1]) for token in (query, key))
    return table[(i - k + GRID[0] - 1) * (2 * GRID[1] - 1) + j - l + GRID[1] - 1]
  of_class = [place.class_token and token == 0 for token in (query, key)]
  extra = {(True, True): -1, (True, False): -3, (False, True): -2}.get(tuple(of_class))
  is_register = any(token < prefix and not (place.class_token and token == 0) for token in (query, key))
  return table[extra] if extra is not None and not is_register else np.zeros(HEADS)


def mlp_entry(place, query, key, module, swin):
  prefix = place.num_prefix
  if query < prefix or key < prefix:
    return np.zeros(HEADS)
  (i, j), (k, l) = (divmod(token - prefix, GRID[1]) for token in (query, key))
  if swin:
    offset = np.array([8 * (i - k) / (GRID[0] - 1), 8 * (j - l) / (GRID[1] - 1)])
    offset = np.sign(offset) * np.log2(1 + abs(offset)) / math.log2(8)
  else:
    offset = np.sign([i - k, j - l]) * np.log(1 + np.abs([i - k, j - l]))
  hidden = np.maximum(offset @ np.asarray(module.up.kernel[...]) + np.asarray(module.up.bias[...]), 0)
  y = hidden @ np.asarray(module.down.kernel[...])
  return 16 / (1 + np.exp(-y)) if swin else y + np.asarray(module.down.bias[...])


def by_pairs(name, module, place, query):
  """Return what is added to the scores, computed pair by pair."""
  tokens = place.num_tokens
  bias = np.zeros((len(query), HEADS, tokens, tokens))
  for q, k in itertools.product(range(tokens), repeat=2):
    if name == 'keys1d':
      bias[:, :, q, k] = (query[:, :, q] * np.asarray(module.keys[...])[q - k + tokens - 1]).sum(axis=-1)
    elif name == 'table':
      bias[:, :, q, k] = table_entry(place, q, k, np.asarray(module.table[...]))
    else:
      bias[:, :, q, k] = mlp_entry(place, q, k, module, name == 'mlp_swin')
  return bias


@pytest.mark.parametrize('place', PLACES, ids=lambda place: f'class {place.class_token}, others {place.others}')
@pytest.mark.parametrize('name', sorted(RELATIVES))
def test_biases_equal_those_of_plain_loops(name, place):
  module, query = make(name, place), random(3, HEADS, place.num_tokens, WIDTH // HEADS, seed=9)
  expected = by_pairs(name, module, place, query)
  np.testing.assert_allclose(jnp.broadcast_to(module()(query), expected.shape), expected, atol=1e-5)
  first = jnp.broadcast_to(module()(query[:, :, :1]), expected[:, :, :1].shape)
  np.testing.assert_allclose(first, expected[:, :, :1], atol=1e-5)


@pytest.mark.parametrize('class_token', [0, 1])
@pytest.mark.parametrize('name', ['table', 'mlp', 'mlp_swin'])
def test_biases_equal_those_of_timm(name, class_token):
  arrays = golden_files.arrays_of(golden_files.GOLDEN / 'relative_bias.npz')
  theirs = {path.partition('/')[2]: x for path, x in arrays.items() if path.startswith(f'{name}_{class_token}/')}
  module = RELATIVES[name](Place((2, 3), bool(class_token), 0, 2, 4, 5), rngs=nnx.Rngs(0))
  if name == 'table':
    module.table[...] = theirs['relative_position_bias_table']
  else:
    for ours, layer in (('up', 'mlp.fc1'), ('down', 'mlp.fc2')):
      getattr(module, ours).kernel[...] = theirs[f'{layer}.weight'].T
      if f'{layer}.bias' in theirs:
        getattr(module, ours).bias[...] = theirs[f'{layer}.bias']
  bias = module()(np.zeros((1, 2, 6 + class_token, 4), np.float32))
  np.testing.assert_allclose(bias, theirs['bias'], atol=1e-5)


@pytest.mark.parametrize('examples', [1, 3], ids=['one bias', 'a bias per example'])
@pytest.mark.parametrize('queries', [5, 1])
def test_attend_with_a_bias_and_its_gradient_equal_the_textbook_form(queries, examples):
  query, key, value = random(3, 2, queries, 4), random(3, 2, 5, 4, seed=1), random(3, 2, 5, 4, seed=2)
  bias, weight = random(examples, 2, queries, 5, seed=3, scale=3), random(3, 2, queries, 4, seed=4)

  def textbook(query, key, value, bias):
    weights = jax.nn.softmax(jnp.einsum('bhqd,bhkd->bhqk', query, key) + bias)
    return jnp.einsum('bhqk,bhkd->bhqd', weights, value)

  scores = np.einsum('bhqd,bhkd->bhqk', query, key, dtype=np.float64) + bias
  weights = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
  np.testing.assert_allclose(attention.attend(query, key, value, bias), weights @ value, atol=2e-6)
  np.testing.assert_allclose(attention.attention_weights(query, key, bias), weights, atol=1e-6)
  gradients = lambda function: jax.grad(
      lambda *x: (function(*x) * weight).sum(), argnums=(0, 1, 2, 3))(query, key, value, bias)
  for ours, expected in zip(gradients(attention.attend), gradients(textbook), strict=True):
    np.testing.assert_allclose(ours, expected, atol=3e-6)
  by_score = gradients(textbook)[3]
  assert by_score.shape == bias.shape and np.abs(by_score).max() > 0.1


def test_in_bfloat16_the_gradient_of_the_bias_stays_float32():
  query, key, value = (jnp.asarray(random(3, 2, 5, 4, seed=seed), jnp.bfloat16) for seed in range(3))
  bias = random(1, 2, 5, 5, seed=3)
  loss = lambda bias, *x: (attention.attend(*x, bias).astype(jnp.float32) ** 2).sum()
  ours = jax.grad(loss)(bias, query, key, value)
  exact = jax.grad(loss)(bias, *(x.astype(jnp.float32) for x in (query, key, value)))
  assert ours.dtype == jnp.float32
  np.testing.assert_allclose(ours, exact, atol=0.03 * np.abs(exact).max())


@pytest.mark.parametrize('name', sorted(RELATIVES))
def test_every_way_through_attention_adds_the_bias(name):
  """All queries, the first alone, dropout and the weights themselves."""
  place = PLACES[0]
  layer = Attention(WIDTH, HEADS, dtype=jnp.float32, dropout=1e-6, rngs=nnx.Rngs(0))
  layer.key.bias[...] = jnp.asarray(random(HEADS, WIDTH // HEADS, seed=5))
  module, x = make(name, place), jnp.asarray(random(2, place.num_tokens, WIDTH, seed=6))
  query, key, value = (np.einsum('bnd,dhk->bhnk', x, p.kernel[...]) + np.asarray(p.bias[...])[:, None]
                       for p in (layer.query, layer.key, layer.value))
  query = query / 2
  scores = np.einsum('bhqd,bhkd->bhqk', query, key) + by_pairs(name, module, place, query)
  weights = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
  expected = np.einsum('bhqk,bhkd,hdw->bqw', weights, value, layer.out.kernel[...])
  np.testing.assert_allclose(layer.weights(x, relative=module()), weights, atol=1e-5)
  np.testing.assert_allclose(layer(x, relative=module()), expected, atol=1e-4)
  np.testing.assert_allclose(layer(x, x[:, :1], relative=module()), expected[:, :1], atol=1e-4)
  keys = jax.random.split(jax.random.key(0), 2)
  np.testing.assert_allclose(layer(x, None, keys, module()), expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('name, fields', [
    ('keys1d', dict()), ('table', dict(unroll=True, remat='full')), ('mlp', dict(relative_position_shared=True)),
    ('table', dict(relative_position_shared=True, pool='gap', registers=1, qk_norm=True))], ids=str)
def test_a_model_computes_its_class_token_and_gradient_by_any_way(name, fields):
  """The first token alone equals the first of all; scanned, unrolled and recomputed blocks give one gradient."""
  shape = dict(image_size=(8, 12), patch_size=4, width=WIDTH, depth=2, heads=HEADS, mlp_dim=16, num_classes=5)
  config = ViTConfig(**shape, **fields, relative_position=name, relative_position_dim=5)
  graphdef, params = nnx.split(VisionTransformer(config, rngs=nnx.Rngs(0)), nnx.Param)
  leaves = [jnp.asarray(random(*leaf.shape, seed=i, scale=0.5)) for i, leaf in enumerate(jax.tree.leaves(params))]
  params = jax.tree.unflatten(jax.tree.structure(params), leaves)
  images = random(2, 8, 12, 3)

  def first(params, graphdef, first_only):
    model = nnx.merge(graphdef, params)
    return model.encoder(model.tokens(images), first_only=first_only)[:, 0]

  gradient = jax.jit(jax.value_and_grad(lambda *x: jnp.sin(first(*x)).sum()), static_argnums=(1, 2))
  value, ours = gradient(params, graphdef, True)
  plain = nnx.split(nnx.eval_shape(lambda: VisionTransformer(
      ViTConfig(**{**shape, **fields, 'unroll': False, 'remat': None}, relative_position=name,
                relative_position_dim=5), rngs=nnx.Rngs(0))), nnx.Param)[0]
  expected_value, expected = gradient(params, plain, False)
  np.testing.assert_allclose(value, expected_value, atol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), ours, expected)
  for path, leaf in jax.tree_util.tree_leaves_with_path(ours):
    if 'relative' in jax.tree_util.keystr(path):
      assert np.abs(leaf).max() > 1e-4
  weights = nnx.merge(graphdef, params).attention_weights(images)
  np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-5)


def test_errors_name_the_keys():
  shape = dict(image_size=8, patch_size=4, width=WIDTH, depth=1, heads=HEADS, mlp_dim=16)
  with pytest.raises(UserError, match="model.relative_position: unknown 'tables'.*keys1d"):
    VisionTransformer(ViTConfig(**shape, relative_position='tables'), rngs=nnx.Rngs(0))
  with pytest.raises(UserError, match="model.relative_position: 'table' needs model.attention='xla', got 'cudnn'"):
    VisionTransformer(ViTConfig(**shape, relative_position='table', attention='cudnn', dtype='bfloat16'),
                      rngs=nnx.Rngs(0))
