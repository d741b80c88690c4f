"""What the golden outputs do not cover: features, embed, attention weights, stochastic depth, 2-D positions."""
import itertools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models import layers
from vit_jax.models.config import ViTConfig
from vit_jax.models.positions import embeddings
from vit_jax.models.vit import VisionTransformer

IMAGES = np.random.default_rng(0).normal(size=(5, 12, 8, 3)).astype(np.float32)


def model(**fields):
  config = ViTConfig(image_size=(12, 8), patch_size=4, width=12, depth=3, heads=2, mlp_dim=20, num_classes=4, **fields)
  return VisionTransformer(config, rngs=nnx.Rngs(0))


@pytest.mark.parametrize('fields', [{}, dict(pool='gap', registers=2), dict(pool='map', qk_norm=True, layer_scale=0.5)])
def test_features_after_each_layer(fields):
  net = model(**fields)
  np.testing.assert_array_equal(net.features(IMAGES, layer=0), net.tokens(IMAGES))
  np.testing.assert_allclose(net.features(IMAGES), net.norm(net.features(IMAGES, layer=3)), atol=1e-6)
  block = nnx.merge(*_split_block(net, 1))
  np.testing.assert_allclose(net.features(IMAGES, layer=2), block(net.features(IMAGES, layer=1)), atol=1e-5)
  with pytest.raises(ValueError, match='layer: expected 0..3, got 4'):
    net.features(IMAGES, layer=4)


def _split_block(net, number):
  graphdef, stacked = nnx.split(net.encoder.blocks)
  return graphdef, jax.tree.map(lambda leaf: leaf[number], stacked)


def test_attention_weights_are_the_softmax_of_each_block():
  net = model(registers=1)
  weights = np.asarray(net.attention_weights(IMAGES))
  assert weights.shape == (3, 5, 2, 8, 8)  # class token, register, 3 × 2 patches
  np.testing.assert_allclose(weights.sum(axis=-1), 1.0, rtol=1e-6)
  block = nnx.merge(*_split_block(net, 2))
  x = np.asarray(block.attention_norm(net.features(IMAGES, layer=2)))
  query, key = (np.einsum('bnd,dhe->bhne', x, np.asarray(part.kernel[...])) + np.asarray(part.bias[...])[:, None]
                for part in (block.attention.query, block.attention.key))
  scores = np.einsum('bhqe,bhke->bhqk', query, key) / np.sqrt(6)
  expected = np.exp(scores - scores.max(axis=-1, keepdims=True))
  np.testing.assert_allclose(weights[2], expected / expected.sum(axis=-1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize('fields', [{}, dict(position_at='shared', relative_position='table')])
def test_reduced_attention_weights_and_collected_tokens(fields):
  """The weights of one block at a time, and all layers in one pass, are those of the calls that return them whole."""
  net = model(**fields)
  reduced = net.attention_weights(IMAGES, lambda weights: dict(mean=weights.mean(axis=1), first=weights[:, 0, 0]))
  weights = net.attention_weights(IMAGES)
  np.testing.assert_allclose(reduced['mean'], weights.mean(axis=2), rtol=1e-6)
  np.testing.assert_array_equal(reduced['first'], weights[:, :, 0, 0])
  last, before = net.encoder.collect(net.tokens(IMAGES), lambda block, x: x)
  for layer, tokens in enumerate([*before, last]):
    np.testing.assert_allclose(tokens, net.features(IMAGES, layer=layer), atol=1e-6)


def test_stochastic_depth_drops_whole_examples_at_its_rate():
  x = jnp.ones((4000, 2, 3))
  keys = jax.random.split(jax.random.key(0), 4000)
  dropped = np.asarray(layers.drop_path(x, 0.25, keys))
  assert set(np.unique(dropped.reshape(4000, -1).std(axis=1))) == {0.0}  # whole examples
  assert abs((dropped[:, 0, 0] == 0).mean() - 0.25) < 0.03 and abs(dropped.mean() - 1.0) < 0.03
  np.testing.assert_array_equal(layers.drop_path(x, 0.25, keys)[7], layers.drop_path(x[7:8], 0.25, keys[7:8])[0])


def test_stochastic_depth_rises_linearly_from_zero():
  keys = jax.random.split(jax.random.key(1), 400)
  images = np.repeat(IMAGES[:1], 400, axis=0)
  net = model(stochastic_depth=0.5)
  after = [np.asarray(net.encoder(net.tokens(images), keys, layer)) for layer in range(4)]
  skipped = [np.mean([np.array_equal(a, b) for a, b in zip(x, y, strict=True)]) for x, y in itertools.pairwise(after)]
  # Both branches of a block are dropped with probability rate²; the rates are 0, 0.25 and 0.5.
  np.testing.assert_allclose(skipped, [0.0, 0.25 ** 2, 0.5 ** 2], atol=0.05)


def test_learned_2d_positions_are_a_table_of_columns_and_one_of_rows():
  table = embeddings.Learned2D((3, 5), 8, class_token=True, rngs=nnx.Rngs(0))
  grid, token = table()
  assert grid.shape == (3, 5, 8) and token.shape == (8,)
  for row in range(3):
    for column in range(5):
      expected = np.concatenate([table.columns[...][column], table.rows[...][row]])
      np.testing.assert_array_equal(grid[row, column], expected)


def test_one_channel_equals_replicated_color():
  gray, color = model(channels=1), model()
  color.patch_embed.kernel = nnx.Param(jnp.repeat(gray.patch_embed.kernel[...], 3, axis=2) / 3)
  images = IMAGES[..., :1]
  np.testing.assert_allclose(gray.tokens(images), color.tokens(np.repeat(images, 3, axis=-1)), atol=1e-5)


@pytest.mark.parametrize('fields', [
    {}, dict(representation_size=5), dict(pool='gap', norm_after_pool=True), dict(pool='map', dtype='bfloat16')],
    ids=str)
def test_embed_returns_what_the_head_reads(fields):
  net = model(**fields)
  net.head.kernel[...] = jnp.asarray(np.random.default_rng(1).normal(size=net.head.kernel.shape), jnp.float32)
  embedding = net.embed(IMAGES)
  assert embedding.shape == (5, fields.get('representation_size', 12)) and embedding.dtype == jnp.float32
  np.testing.assert_allclose(embedding @ net.head.kernel[...] + net.head.bias[...], net(IMAGES), atol=1e-5)
  if not fields:  # the class token
    np.testing.assert_allclose(embedding, net.features(IMAGES)[:, 0], atol=1e-5)
