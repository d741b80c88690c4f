"""Axial and local attention against full attention with a mask, in NumPy."""
import itertools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.base.errors import UserError
from vit_jax.models.attention import Attention
from vit_jax.models.attention_kinds import ColumnAttention, LocalAttention, RowAttention
from vit_jax.models.config import ViTConfig
from vit_jax.models.vit import VisionTransformer

GRID, WIDTH, HEADS = (3, 4), 8, 2


def tokens(count, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=(2, count, WIDTH)), jnp.float32)


def place(token, prefix):
  return divmod(token - prefix, GRID[1])


def near(query, key, prefix, window):
  """Return whether a token attends to another."""
  if query < prefix or key < prefix:
    return True
  (i, j), (k, l) = place(query, prefix), place(key, prefix)
  return abs(i - k) <= window and abs(j - l) <= window


KINDS = {
    'rows': (RowAttention, dict(grid=GRID), 0, lambda q, k: place(q, 0)[0] == place(k, 0)[0]),
    'columns': (ColumnAttention, dict(grid=GRID), 0, lambda q, k: place(q, 0)[1] == place(k, 0)[1]),
    **{f'window {window}, {prefix} before': (
        LocalAttention, dict(grid=GRID, num_prefix=prefix, window=window), prefix,
        lambda q, k, prefix=prefix, window=window: near(q, k, prefix, window))
       for window, prefix in ((1, 0), (1, 2), (2, 1), (5, 1))},
}


@pytest.fixture(params=KINDS, name='case')
def _case(request):
  """Return (layer, the same layer of full attention, x, mask, gradients)."""
  cls, options, prefix, seen = KINDS[request.param]
  layer = cls(WIDTH, HEADS, **options, dropout=1e-6, qk_norm=True, dtype=jnp.float32, rngs=nnx.Rngs(0))
  count = prefix + GRID[0] * GRID[1]
  mask = np.zeros((count, count), bool)
  for query, key in itertools.product(range(count), repeat=2):
    mask[query, key] = seen(query, key)
  return layer, tokens(count), mask


def masked(layer, x, mask):
  """Return (weights, outputs) of full attention with a mask, in float64."""
  heads = lambda p: np.einsum('bnd,dhk->bhnk', x, p.kernel[...], dtype=np.float64)
  norm = lambda y: (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
  query, key, value = norm(heads(layer.query)), norm(heads(layer.key)), heads(layer.value)
  scores = np.where(mask, np.exp(np.einsum('bhqd,bhkd->bhqk', query, key) / 2), 0)
  weights = scores / scores.sum(axis=-1, keepdims=True)
  return weights, np.einsum('bhqk,bhkd,hdw->bqw', weights, value, layer.out.kernel[...])


def test_outputs_equal_those_of_masked_full_attention(case):
  layer, x, mask = case
  weights, expected = masked(layer, x, mask)
  np.testing.assert_allclose(layer(x), expected, atol=1e-5)
  keys = jax.random.split(jax.random.key(0), 2)
  np.testing.assert_allclose(layer(x, None, keys), expected, atol=1e-4)
  if isinstance(layer, LocalAttention):
    np.testing.assert_allclose(layer.weights(x), weights, atol=1e-6)
    np.testing.assert_allclose(layer(x, x[:, :1]), Attention.__call__(layer, x, x[:, :1]), atol=0)


def test_gradients_equal_those_of_masked_full_attention(case):
  layer, x, mask = case
  graphdef, params = nnx.split(layer, nnx.Param)
  target = tokens(x.shape[1], seed=1)

  def textbook(params, x):
    layer = nnx.merge(graphdef, params)
    query, key = layer._project_qk(x, None)  # noqa: SLF001
    scores = jnp.where(mask, jnp.einsum('bhqd,bhkd->bhqk', query / 2, key), -jnp.inf)
    value = jnp.einsum('bnd,dhk->bhnk', x, layer.value.kernel[...]) + layer.value.bias[...][:, None]
    y = jnp.einsum('bhqk,bhkd,hdw->bqw', jax.nn.softmax(scores), value, layer.out.kernel[...])
    return ((y + layer.out.bias[...]) * target).sum()

  ours = jax.jit(jax.grad(lambda params, x: (nnx.merge(graphdef, params)(x) * target).sum(), argnums=(0, 1)))
  expected = jax.jit(jax.grad(textbook, argnums=(0, 1)))
  for a, b in zip(*(jax.tree.leaves(function(params, x)) for function in (ours, expected)), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5)


def test_dropout_on_the_weights_is_each_examples_own():
  """An example's mask depends on its key alone, and rows have different masks."""
  layer = RowAttention(WIDTH, HEADS, grid=GRID, dropout=0.5, dtype=jnp.float32, rngs=nnx.Rngs(0))
  x, keys = jnp.tile(tokens(4)[:1], (2, 3, 1)), jax.random.split(jax.random.key(0), 2)
  both = layer(x, None, keys)
  np.testing.assert_allclose(both[1:], layer(x[1:], None, keys[1:]), atol=1e-6)
  for a, b in ((both[0], both[1]), (both[0, :4], both[0, 4:8])):
    assert np.abs(np.asarray(a - b)).max() > 1e-3


def test_an_axial_block_is_rows_then_columns():
  config = ViTConfig(image_size=(12, 16), patch_size=4, width=WIDTH, depth=1, heads=HEADS, mlp_dim=12, pool='gap',
                     attention_kind='axial')
  model = VisionTransformer(config, rngs=nnx.Rngs(0))
  graphdef, state = nnx.split(model.encoder.blocks)
  block = nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf[0], state))
  x = tokens(12)
  for half in (block.rows, block.columns):
    norm = lambda y: (y - y.mean(-1, keepdims=True)) / jnp.sqrt(y.var(-1, keepdims=True) + 1e-6)
    x += half.attention(norm(x))
    x += half.mlp(norm(x))
  np.testing.assert_allclose(model.encoder(tokens(12)), x, atol=1e-5)
  with pytest.raises(UserError, match="model.attention_kind: 'axial' has no attention weights"):
    model.attention_weights(np.zeros((1, 12, 16, 3), np.float32))


@pytest.mark.parametrize('fields, message', [
    (dict(attention_kind='rows'), "model.attention_kind: unknown 'rows'"),
    (dict(attention_kind='axial'), "model.attention_kind: 'axial' takes patches only; use model.pool='gap'"),
    (dict(attention_kind='axial', pool='gap', rotary='dinov3'), "model.rotary: 'dinov3' needs model.attention_kind='full'"),
    (dict(attention_kind='axial', pool='gap', registers=1), 'model.registers=0; got 1 tokens'),
    (dict(attention_kind='local', relative_position='mlp'),
     "model.relative_position: 'mlp' needs model.attention_kind='full', got 'local'"),
    (dict(attention_kind='local', attention='cudnn'), "model.attention_kind: 'local' needs model.attention='xla'"),
    (dict(attention_kind='local', attention_window=0), 'model.attention_window: must be at least 1, got 0')], ids=str)
def test_errors_name_the_keys(fields, message):
  with pytest.raises(UserError, match=message):
    VisionTransformer(ViTConfig(variant='Ti/16', **fields), rngs=nnx.Rngs(0))
