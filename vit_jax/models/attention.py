"""Multi-head attention (paper, appendix A)."""
from flax import nnx
import jax
import jax.numpy as jnp

from vit_jax.choices import choose
from vit_jax.models import layers


def attention_weights(query, key):
  """Softmax of scaled scores, float32 whatever the inputs are.

  Args:
    query: (B, heads, Q, head_dim).
    key: (B, heads, K, head_dim).

  Returns:
    (B, heads, Q, K) float32; rows sum to 1.
  """
  scores = jnp.einsum('bhqd,bhkd->bhqk', query * query.shape[-1] ** -0.5, key, preferred_element_type=jnp.float32)
  return jax.nn.softmax(scores, axis=-1)


@jax.custom_vjp
def attend(query, key, value):
  """Softmax of scores, times values: `attention_weights` without the scale, and their product.

  The weights are never normalised: the output is, which has fewer elements, and the gradient starts from the output
  (Dao et al., arXiv 2205.14135, appendix B.2).  Exponentials and their sums are float32; the exponentials are rounded
  to the type of the values for the product, and kept so for the gradient.

  Args:
    query: (B, heads, Q, head_dim), already scaled.
    key: (B, heads, K, head_dim).
    value: (B, heads, K, head_dim).

  Returns:
    (B, heads, Q, head_dim) of the type of the values.
  """
  return _attend(query, key, value)[0]


def cudnn_attend(query, key, value):
  """`attend` by cuDNN's fused kernel, which keeps nothing of Q x K elements: for GPUs, in bfloat16 or float16."""
  query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
  output = jax.nn.dot_product_attention(query, key, value, scale=1.0, implementation='cudnn')
  return jnp.swapaxes(output, 1, 2)


def check(name, dtype, dropout):
  """Raises ValueError unless attention `name` of `ATTENTIONS` can run here, with this dtype and dropout on its weights."""
  choose(ATTENTIONS, name, 'attention')
  if name == 'cudnn' and (dropout or dtype == 'float32' or jax.default_backend() != 'gpu'):
    raise ValueError("attention='cudnn' needs a GPU, dtype='bfloat16' or 'float16' and attention_dropout=0.0; got "
                     f"{jax.default_backend()}, dtype={dtype!r}, attention_dropout={dropout}; 'xla' takes all")


def _attend(query, key, value):
  scores = jnp.einsum('bhqd,bhkd->bhqk', query, key, preferred_element_type=jnp.float32)
  exponentials = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
  total = exponentials.sum(axis=-1, keepdims=True)
  # Written once, beside their sum: without this TPU's compiler computes them anew in every product.
  exponentials, total = jax.lax.optimization_barrier((exponentials.astype(value.dtype), total))
  output = jnp.einsum('bhqk,bhkd->bhqd', exponentials, value, preferred_element_type=jnp.float32) / total
  output = output.astype(value.dtype)
  return output, (query, key, value, exponentials, total, output)


def _attend_gradient(saved, gradient):
  query, key, value, exponentials, total, output = saved
  gradient = (gradient / total).astype(gradient.dtype)
  shared = (gradient.astype(jnp.float32) * output.astype(jnp.float32)).sum(axis=-1, keepdims=True)
  by_weight = jnp.einsum('bhqd,bhkd->bhqk', gradient, value, preferred_element_type=jnp.float32)
  by_score = (exponentials.astype(jnp.float32) * (by_weight - shared)).astype(gradient.dtype)
  return (jnp.einsum('bhqk,bhkd->bhqd', by_score, key), jnp.einsum('bhqk,bhqd->bhkd', by_score, query),
          jnp.einsum('bhqk,bhqd->bhkd', exponentials, gradient))


attend.defvjp(_attend, _attend_gradient)


class Attention(nnx.Module):
  """Query, key and value projections (width, heads, head_dim), attention, output projection."""

  def __init__(self, width: int, heads: int, *, dropout: float = 0.0, kind: str = 'xla', qk_norm: bool = False,
               qkv_bias: bool = True, norm_epsilon: float = 1e-6, dtype, rngs: nnx.Rngs):
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
    self.attend = ATTENTIONS[kind]

  def __call__(self, x, asking=None, rngs=None):
    """Maps tokens (B, N, width), asked by themselves or by `asking` (B, Q, width), to (B, Q, width)."""
    query, key = self._asked(x, asking)
    value = layers.dense(self.value, x, 'bnd,dhk->bhnk')
    if self.dropout and rngs is not None:
      weights = layers.dropout(attention_weights(query, key).astype(value.dtype), self.dropout, rngs)
      output = jnp.einsum('bhqk,bhkd->bhqd', weights, value)
    else:
      output = self.attend(query * query.shape[-1] ** -0.5, key, value)
    return layers.dense(self.out, output, 'bhnk,hkd->bnd')

  def weights(self, x, asking=None):
    """The softmax weights (B, heads, Q, N), float32."""
    return attention_weights(*self._asked(x, asking))

  def _asked(self, x, asking):
    """Queries and keys, (B, heads, Q or N, head_dim)."""
    query = layers.dense(self.query, x if asking is None else asking, 'bnd,dhk->bhnk')
    key = layers.dense(self.key, x, 'bnd,dhk->bhnk')
    if self.query_norm is not None:
      query, key = layers.layer_norm(self.query_norm, query), layers.layer_norm(self.key_norm, key)
    return query, key


ATTENTIONS = {
    'cudnn': cudnn_attend,
    'xla': attend,
}
