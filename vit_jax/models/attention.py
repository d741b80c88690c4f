"""Multi-head attention (paper, appendix A)."""
from flax import nnx
import jax
import jax.numpy as jnp

from vit_jax.base.choices import choose
from vit_jax.base.errors import UserError
from vit_jax.models import layers


def attention_weights(query, key):
  """Softmax of scores, float32 whatever the inputs are.

  Args:
    query: (B, heads, Q, head_dim), already scaled.
    key: (B, heads, K, head_dim).

  Returns:
    (B, heads, Q, K) float32; rows sum to 1.
  """
  return jax.nn.softmax(layers.einsum('bhqd,bhkd->bhqk', query, key), axis=-1)


@jax.custom_vjp
def attend(query, key, value):
  """The product of `attention_weights` and values.

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
  choose(ATTENTIONS, name, 'model.attention')
  if name == 'cudnn' and (dropout or dtype == 'float32' or jax.default_backend() != 'gpu'):
    raise UserError("model.attention: 'cudnn' needs a GPU, dtype='bfloat16' or 'float16' and attention_dropout=0.0; got "
                     f"{jax.default_backend()}, dtype={dtype!r}, attention_dropout={dropout}; 'xla' takes all")


def _attend(query, key, value):
  scores = layers.einsum('bhqd,bhkd->bhqk', query, key)
  exponentials = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
  total = exponentials.sum(axis=-1, keepdims=True)
  # Written once, beside their sum: without this TPU's compiler computes them anew in every product.
  exponentials, total = jax.lax.optimization_barrier((exponentials.astype(value.dtype), total))
  output = layers.einsum('bhqk,bhkd->bhqd', exponentials, value) / total
  output = output.astype(value.dtype)
  return output, (query, key, value, exponentials, total, output)


def _attend_gradient(saved, gradient):
  query, key, value, exponentials, total, output = saved
  gradient = (gradient / total).astype(gradient.dtype)
  shared = (gradient.astype(jnp.float32) * output.astype(jnp.float32)).sum(axis=-1, keepdims=True)
  by_weight = layers.einsum('bhqd,bhkd->bhqk', gradient, value)
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
    """Maps tokens (B, N, width), asked by themselves or by a few others, (B, Q, width), to (B, N or Q, width)."""
    dropout = self.dropout and rngs is not None
    if asking is not None and self.key_norm is None and not dropout:
      output = self._ask(x, asking)
    else:
      query, key = self._asked(x, asking)
      query, value = query * query.shape[-1] ** -0.5, _heads(self.value, x)
      output = self._with_dropout(query, key, value, rngs) if dropout else self.attend(query, key, value)
    return layers.affine('bhnk,hkd->bnd', output, self.out.kernel[...], self.out.bias[...])

  def weights(self, x, asking=None):
    """The softmax weights (B, heads, Q, N), float32."""
    query, key = self._asked(x, asking)
    return attention_weights(query * query.shape[-1] ** -0.5, key)

  def _ask(self, x, asking):
    """What few queries get, (B, heads, Q, head_dim), without keys and values: q · (W x) = (q W) · x.

    To a key's bias a softmax is blind; the value's is added once, as weights sum to 1.
    """
    query = _heads(self.query, asking)
    query = layers.affine('bhqk,dhk->bhqd', query * query.shape[-1] ** -0.5, _kernel(self.key), None)
    batch, heads, asked, width = query.shape
    tokens = x.astype(query.dtype)[:, None]
    # With tokens for keys and values, every head is but another query.
    output = attend(query.reshape(batch, 1, heads * asked, width), tokens, tokens).reshape(query.shape)
    bias = None if self.value.bias is None else self.value.bias[...][:, None]
    return layers.affine('bhqd,dhk->bhqk', output, _kernel(self.value), bias)

  def _with_dropout(self, query, key, value, rngs):
    """`attend` where weights are dropped, so that they no longer sum to 1."""
    weights = layers.dropout(attention_weights(query, key).astype(value.dtype), self.dropout, rngs)
    return layers.einsum('bhqk,bhkd->bhqd', weights, value).astype(value.dtype)

  def _asked(self, x, asking):
    """Queries and keys, (B, heads, Q or N, head_dim)."""
    query = _heads(self.query, x if asking is None else asking)
    key = _heads(self.key, x)
    if self.query_norm is not None:
      query, key = layers.layer_norm(self.query_norm, query), layers.layer_norm(self.key_norm, key)
    return query, key


def joined(kernel):
  """A projection's kernel, (…, width, heads, head_dim), in the form that it is multiplied in.

  That is as it is, or (…, width, heads * head_dim): a TPU pads the features of a head to 128 lanes or pairs heads of 64;
  H/14's of 80 would be three eighths padding.
  """
  head_dim = kernel.shape[-1]
  return kernel if head_dim % 64 == 0 else kernel.reshape(*kernel.shape[:-2], -1)


def _heads(linear, x):
  """What a projection makes of tokens x, (B, N, width): (B, heads, N, head_dim)."""
  x, kernel = x.astype(linear.dtype), joined(_kernel(linear))
  bias = None if linear.bias is None else linear.bias[...]
  if kernel.ndim == 3:
    return layers.affine('bnd,dhk->bhnk', x, kernel, None if bias is None else bias[:, None])
  y = layers.affine('bnd,df->bnf', x, kernel, None if bias is None else bias.reshape(-1))
  return y.swapaxes(1, 2).reshape(-1, *linear.out_features, x.shape[1]).swapaxes(2, 3)


def _kernel(linear):
  """A projection's kernel, (width, heads, head_dim), whether `joined` or not."""
  return linear.kernel[...].reshape(-1, *linear.out_features)


ATTENTIONS = {
    'cudnn': cudnn_attend,
    'xla': attend,
}
