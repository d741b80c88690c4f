"""Attention that normalizes its output against the textbook form that normalizes weights; class token alone."""
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models import attention
from vit_jax.models.config import ViTConfig
from vit_jax.models.vit import VisionTransformer


def tokens(*shape, seed=0, scale=1.0):
  return scale * np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def plain(query, key, value):
  scores = jnp.einsum('bhqd,bhkd->bhqk', query, key)
  return jnp.einsum('bhqk,bhkd->bhqd', jax.nn.softmax(scores), value)


def in_numpy(query, key, value):
  scores = np.einsum('bhqd,bhkd->bhqk', *(np.asarray(x, np.float64) for x in (query, key)))
  weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
  return np.einsum('bhqk,bhkd->bhqd', weights / weights.sum(axis=-1, keepdims=True), np.asarray(value, np.float64))


@pytest.fixture(scope='module', params=[7, 1], ids=['all queries', 'one query'])
def inputs(request):
  return tokens(2, 3, request.param, 4, scale=2), tokens(2, 3, 7, 4, seed=1), tokens(2, 3, 7, 4, seed=2)


def test_attend_is_softmax_times_values(inputs):
  np.testing.assert_allclose(attention.attend(*inputs), in_numpy(*inputs), atol=2e-6)


def test_scores_in_the_hundreds_do_not_overflow():
  query, key, value = tokens(1, 1, 5, 4, scale=300), tokens(1, 1, 5, 4, seed=1), tokens(1, 1, 5, 4, seed=2)
  np.testing.assert_allclose(attention.attend(query, key, value), in_numpy(query, key, value), atol=1e-4)


def test_the_gradient_equals_that_of_the_textbook_form(inputs):
  weight = tokens(*inputs[0].shape, seed=3)
  gradients = lambda function: jax.grad(lambda *x: (function(*x) * weight).sum(), argnums=(0, 1, 2))(*inputs)
  for ours, expected in zip(gradients(attention.attend), gradients(plain), strict=True):
    np.testing.assert_allclose(ours, expected, atol=3e-6)


def test_bfloat16_differs_only_by_rounding():
  inputs = [jnp.asarray(tokens(2, 3, 7, 4, seed=seed), jnp.bfloat16) for seed in range(3)]
  output = attention.attend(*inputs)
  assert output.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.asarray(output, np.float64), in_numpy(*inputs), atol=2e-2)
  loss = lambda function, *x: (function(*x).astype(jnp.float32) ** 2).sum()
  ours = jax.grad(lambda *x: loss(attention.attend, *x), argnums=(0, 1, 2))(*inputs)
  exact = jax.grad(lambda *x: loss(plain, *x), argnums=(0, 1, 2))(*(x.astype(jnp.float32) for x in inputs))
  for a, b in zip(ours, exact, strict=True):
    assert a.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(a, np.float32), b, atol=0.03 * np.abs(b).max())


@pytest.mark.parametrize('queries, keys', [(7, 7), (8, 8), (1, 7), (8, 7)])
def test_what_cudnn_is_asked_for_equals_attend(queries, keys, monkeypatch):
  """Its kernel needs a GPU; XLA's of the same signature stands in for it."""
  called, original = [], jax.nn.dot_product_attention

  def stand_in(query, key, value, *, implementation, **options):
    called.append((implementation, query.shape[1], key.shape[1]))
    return original(query, key, value, implementation='xla', **options)

  monkeypatch.setattr(jax.nn, 'dot_product_attention', stand_in)
  inputs = [tokens(2, 3, length, 4, seed=seed) for seed, length in enumerate((queries, keys, keys))]
  weight = tokens(2, 3, queries, 4, seed=3)

  def output_and_gradients(function):
    loss = lambda *x: (function(*x) * weight).sum()
    return [function(*inputs), *jax.grad(loss, argnums=(0, 1, 2))(*inputs)]

  results = map(output_and_gradients, (attention.cudnn_attend, attention.attend))
  for ours, expected in zip(*results, strict=True):
    np.testing.assert_allclose(ours, expected, atol=3e-6)
  assert {(kind, a % 2, b % 2) for kind, a, b in called} == {('cudnn', 0, 0)}


@pytest.mark.parametrize('fields', [dict(), dict(width=128), dict(qkv_bias=False), dict(qk_norm=True)], ids=str)
def test_the_class_token_alone_equals_the_class_token_of_all(fields):
  shape = dict(image_size=8, patch_size=4, width=12, depth=2, heads=2, mlp_dim=16, num_classes=5)
  graphdef, params = nnx.split(VisionTransformer(ViTConfig(**{**shape, **fields}), rngs=nnx.Rngs(0)), nnx.Param)
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape, scale=0.3), jnp.float32), params)
  x = jnp.asarray(tokens(2, 5, {**shape, **fields}['width']))

  def loss(params, first_only):
    first = nnx.merge(graphdef, params).encoder(x, first_only=first_only)[:, 0]
    return jnp.sin(first).sum(), first

  gradient = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
  (kept_gradient, kept), (gradient_of_all, of_all) = gradient(params, True), gradient(params, False)
  np.testing.assert_allclose(kept, of_all, atol=1e-5)
  for ours, expected in zip(jax.tree.leaves(kept_gradient), jax.tree.leaves(gradient_of_all), strict=True):
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_tokens_that_the_pool_does_not_read_are_not_computed():
  def flops(first_only):
    config = ViTConfig(image_size=32, patch_size=4, width=16, depth=2, heads=2, mlp_dim=64, unroll=True)
    encoder = VisionTransformer(config, rngs=nnx.Rngs(0)).encoder
    run = jax.jit(lambda x: encoder(x, first_only=first_only))
    return run.lower(jnp.zeros((1, 65, 16))).compile().cost_analysis()['flops']

  assert flops(True) < 0.75 * flops(False)
