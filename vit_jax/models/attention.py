"""Multi-head self-attention over tokens (paper, appendix A)."""
from flax import nnx
import jax
import jax.numpy as jnp

from vit_jax.models import layers


def attend(query, key, value, *, dropout=0.0, rngs=None):
  """Scaled dot-product attention; scores and softmax are float32 whatever the inputs are.

  Args:
    query, key, value: (B, N, heads, head_dim), float32 or bfloat16.
    dropout: the fraction of attention weights that is zeroed.
    rngs: (B,) PRNG keys, or None for no dropout.

  Returns:
    (B, N, heads, head_dim), the type of `value`.
  """
  scale = query.shape[-1] ** -0.5
  scores = jnp.einsum('bqhd,bkhd->bhqk', query * scale, key, preferred_element_type=jnp.float32)
  weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
  weights = layers.dropout(weights, dropout, rngs)
  return jnp.einsum('bhqk,bkhd->bqhd', weights, value)


class SelfAttention(nnx.Module):
  """Query, key and value projections (width, heads, head_dim), attention, output projection."""

  def __init__(self, width: int, heads: int, *, dropout: float, dtype, rngs: nnx.Rngs):
    # Xavier uniform over the flattened (width, width) matrix, as in the authors' code.
    init = dict(kernel_init=nnx.initializers.xavier_uniform(), dtype=dtype, rngs=rngs)
    head = (heads, width // heads)
    self.query = nnx.LinearGeneral(width, head, **init)
    self.key = nnx.LinearGeneral(width, head, **init)
    self.value = nnx.LinearGeneral(width, head, **init)
    self.out = nnx.LinearGeneral(head, width, axis=(-2, -1), **init)
    self.dropout = dropout

  def __call__(self, x, rngs=None):
    """Maps tokens (B, N, width) to (B, N, width)."""
    x = attend(self.query(x), self.key(x), self.value(x), dropout=self.dropout, rngs=rngs)
    return self.out(x)
