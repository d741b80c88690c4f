"""Multi-head attention (paper, appendix A)."""
from flax import nnx
import jax
import jax.numpy as jnp

from vit_jax.models import layers


def attention_weights(query, key):
  """Softmax of scaled scores, float32 whatever the inputs are.

  Args:
    query: (B, Q, heads, head_dim).
    key: (B, K, heads, head_dim).

  Returns:
    (B, heads, Q, K) float32; rows sum to 1.
  """
  scores = jnp.einsum('bqhd,bkhd->bhqk', query * query.shape[-1] ** -0.5, key, preferred_element_type=jnp.float32)
  return jax.nn.softmax(scores, axis=-1)


class Attention(nnx.Module):
  """Query, key and value projections (width, heads, head_dim), attention, output projection."""

  def __init__(self, width: int, heads: int, *, dropout: float = 0.0, qk_norm: bool = False, qkv_bias: bool = True,
               norm_epsilon: float = 1e-6, dtype, rngs: nnx.Rngs):
    # Xavier uniform over the flattened (width, width) matrix, as in the authors' code.
    init = dict(kernel_init=nnx.initializers.xavier_uniform(), dtype=dtype, rngs=rngs)
    head = (heads, width // heads)
    self.query = nnx.LinearGeneral(width, head, use_bias=qkv_bias, **init)
    self.key = nnx.LinearGeneral(width, head, use_bias=qkv_bias, **init)
    self.value = nnx.LinearGeneral(width, head, use_bias=qkv_bias, **init)
    self.out = nnx.LinearGeneral(head, width, axis=(-2, -1), **init)
    norm = lambda: nnx.LayerNorm(head[1], epsilon=norm_epsilon, dtype=dtype, rngs=rngs) if qk_norm else None
    self.query_norm, self.key_norm = norm(), norm()
    self.dropout = dropout

  def __call__(self, x, asking=None, rngs=None):
    """Maps tokens (B, N, width), asked by themselves or by `asking` (B, Q, width), to (B, Q, width)."""
    weights = self.weights(x, asking).astype(x.dtype)
    weights = layers.dropout(weights, self.dropout, rngs)
    return self.out(jnp.einsum('bhqk,bkhd->bqhd', weights, self.value(x)))

  def weights(self, x, asking=None):
    """The softmax weights (B, heads, Q, N), float32."""
    query, key = self.query(x if asking is None else asking), self.key(x)
    if self.query_norm is not None:
      query, key = self.query_norm(query), self.key_norm(key)
    return attention_weights(query, key)
