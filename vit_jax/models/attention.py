"""Multi-head attention (paper, appendix A)."""
from collections.abc import Callable
import functools
from typing import Any

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from vit_jax.base.choices import choose
from vit_jax.base.errors import UserError
from vit_jax.base.linear_map import Residuals, Tangents, linear_map
from vit_jax.models import layers
from vit_jax.models.base import ArrayLike, Rngs, Tokens
from vit_jax.models.positions.relative import Bias, Scores
from vit_jax.models.positions.rotary import Rotary

Queries = Float[ArrayLike, 'batch heads queries head_dim']
Keys = Float[ArrayLike, 'batch heads keys head_dim']
Output = Float[Array, 'batch heads queries head_dim']
Weights = Float[Array, 'batch heads queries keys']


def attention_weights(query: Queries, key: Keys, bias: Bias | None = None) -> Weights:
  """Return the softmax of the scores, float32 whatever the inputs are; rows sum to 1.

  Args:
    query: already scaled.
    key: keys.
    bias: added to the scores.
  """
  return jax.nn.softmax(_scores(query, key, bias), axis=-1)


@jax.custom_jvp
def attend(query: Queries, key: Keys, value: Keys, bias: Bias | None = None) -> Output:
  """Return the product of `attention_weights` and values, of the type of the values.

  The output is normalized instead of the weights, as it has fewer elements, and the gradient starts from the output
  (Dao et al., arXiv 2205.14135, appendix B.2). Exponentials and their sums are float32; the exponentials are rounded to
  the type of the values for the product, and kept in it for the gradient.

  Args:
    query: already scaled.
    key: keys.
    value: values.
    bias: added to the scores, float32; the same for all examples if its first axis is 1.
  """
  return _attend(query, key, value, bias)[0]


def cudnn_attend(query: Queries, key: Keys, value: Keys) -> Output:
  """Return what `attend` does without a bias, by cuDNN's fused kernel, which keeps nothing of Q x K elements.

  For GPUs, in bfloat16 or float16.
  """
  lengths = query.shape[2], key.shape[2]
  # The kernel takes (batch, tokens, heads, head_dim); jax has its gradient for even numbers of tokens only.
  query, key, value = (jnp.swapaxes(_pad_to_even(x), 1, 2) for x in (query, key, value))
  padded = any(length % 2 for length in lengths)
  of_queries, of_keys = (jnp.full(len(query), length, jnp.int32) if padded else None for length in lengths)
  output = jax.nn.dot_product_attention(query, key, value, scale=1.0, implementation='cudnn',
                                        query_seq_lengths=of_queries, key_value_seq_lengths=of_keys)
  return jnp.swapaxes(output[:, :lengths[0]], 1, 2)


def _pad_to_even(x: Keys) -> Array:
  return jnp.pad(x, [(0, 0), (0, 0), (0, x.shape[2] % 2), (0, 0)])


def check(name: str, dtype: str, dropout: float) -> None:
  """Raise UserError unless attention `name` of `ATTENTIONS` can run here, with this dtype and this dropout rate."""
  choose(ATTENTIONS, name, 'model.attention')
  if name == 'cudnn' and (dropout or dtype == 'float32' or not layers.on_gpu()):
    raise UserError("model.attention: 'cudnn' needs a GPU, dtype='bfloat16' or 'float16' and attention_dropout=0.0; "
                    f"got {jax.default_backend()}, dtype={dtype!r}, attention_dropout={dropout}. Use 'xla'")


def _scores(query: Queries, key: Keys, bias: Bias | None) -> Weights:
  scores = layers.einsum('bhqd,bhkd->bhqk', query, key)
  return scores if bias is None else scores + bias


def _attend(query: Queries, key: Keys, value: Keys, bias: Bias | None = None) -> tuple[Output, Residuals]:
  scores = _scores(query, key, bias)
  exponentials = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
  total = exponentials.sum(axis=-1, keepdims=True)
  # Written once, together with their sum: otherwise TPU's compiler recomputes them in every product.
  exponentials, total = jax.lax.optimization_barrier((exponentials.astype(value.dtype), total))
  output = layers.einsum('bhqk,bhkd->bhqd', exponentials, value) / total
  output = output.astype(value.dtype)
  return output, (query, key, value, exponentials, total, output)


@functools.partial(attend.defjvp, symbolic_zeros=True)
def _attend_tangent(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Output, Array]:
  output, saved = _attend(*primals)
  bias = primals[3]
  pull = functools.partial(_attend_gradient, bias is not None and len(bias) == 1)
  return output, linear_map(_push, pull, saved, tangents)


def _push(saved: Residuals, tangents: Tangents) -> Array:
  """Return the tangent of the output, in forward mode: that of P V is P dV + P (dS - sum(P dS)) V."""
  query, key, value, exponentials, total, output = saved
  of_query, of_key, of_value, of_bias = tangents
  weights, parts = exponentials.astype(jnp.float32) / total, []
  scores = [] if of_query is None else [layers.einsum('bhqd,bhkd->bhqk', of_query, key)]
  scores += [] if of_key is None else [layers.einsum('bhqd,bhkd->bhqk', query, of_key)]
  scores += [] if of_bias is None else [of_bias]
  if scores:
    of_weights = weights * sum(scores)
    of_weights -= weights * of_weights.sum(axis=-1, keepdims=True)
    parts.append(layers.einsum('bhqk,bhkd->bhqd', of_weights, value.astype(jnp.float32)))
  if of_value is not None:
    parts.append(layers.einsum('bhqk,bhkd->bhqd', weights, of_value.astype(jnp.float32)))
  return sum(parts, jnp.zeros((), jnp.float32)).astype(output.dtype)


def _attend_gradient(shared_bias: bool, saved: Residuals, gradient: ArrayLike) -> Tangents:
  """Return the gradients of query, key, value and bias, which may be the same for all examples."""
  query, key, value, exponentials, total, output = saved
  gradient = (gradient / total).astype(gradient.dtype)
  shared = (gradient.astype(jnp.float32) * output.astype(jnp.float32)).sum(axis=-1, keepdims=True)
  by_weight = layers.einsum('bhqd,bhkd->bhqk', gradient, value)
  by_score = (exponentials.astype(jnp.float32) * (by_weight - shared)).astype(gradient.dtype)
  by_bias = by_score.astype(jnp.float32)
  by_bias = by_bias.sum(axis=0, keepdims=True) if shared_bias else by_bias
  return (jnp.einsum('bhqk,bhkd->bhqd', by_score, key), jnp.einsum('bhqk,bhqd->bhkd', by_score, query),
          jnp.einsum('bhqk,bhqd->bhkd', exponentials, gradient), by_bias)


class Attention(nnx.Module):
  """Query, key and value projections (width, heads, head_dim), attention, output projection."""

  def __init__(self, width: int, heads: int, *, dropout: float = 0.0, kind: str = 'xla', qk_norm: bool = False,
               qkv_bias: bool = True, key_bias: bool = True, rotary: Rotary | None = None, norm_epsilon: float = 1e-6,
               dtype: DTypeLike, rngs: nnx.Rngs):
    # Xavier uniform over the flattened (width, width) matrix, as in the authors' code.
    init: dict[str, Any] = dict(kernel_init=nnx.initializers.xavier_uniform(), dtype=dtype, rngs=rngs)
    head = (heads, width // heads)
    self.query = nnx.LinearGeneral(width, head, use_bias=qkv_bias, **init)
    self.key = nnx.LinearGeneral(width, head, use_bias=qkv_bias and key_bias, **init)
    self.value = nnx.LinearGeneral(width, head, use_bias=qkv_bias, **init)
    self.out = nnx.LinearGeneral(head, width, axis=(-2, -1), **init)
    norm = lambda: nnx.LayerNorm(head[1], epsilon=norm_epsilon, dtype=dtype, rngs=rngs) if qk_norm else None
    self.query_norm, self.key_norm = norm(), norm()
    self.dropout = dropout
    self.rotary = rotary
    self.kind = kind

  def __call__(self, x: Tokens, queries: Float[Array, 'batch queries width'] | None = None,
               rngs: Rngs = None, relative: Scores | None = None) -> Float[Array, 'batch queries width']:
    """Compute self-attention over `x`, or cross-attention from a few `queries` to `x`.

    Args:
      x: tokens.
      queries: tokens to attend from; None: x.
      rngs: one PRNG key per example in training, None in evaluation.
      relative: scaled queries → what is added to their scores; see `positions.relative`.
    """
    dropout = self.dropout and rngs is not None
    if queries is not None and self.key_norm is None and self.rotary is None and not dropout:
      output = self._attend_few_queries(x, queries, relative)
    else:
      query, key = self._project_qk(x, queries)
      query, value = query * query.shape[-1] ** -0.5, _heads(self.value, x)
      bias = None if relative is None else relative(query)
      output = self._mix(query, key, value, bias, rngs if dropout else None)
    return layers.affine('bhnk,hkd->bnd', output, self.out.kernel[...], layers.value_of(self.out.bias))

  def weights(self, x: Tokens, queries: Float[Array, 'batch queries width'] | None = None,
              relative: Scores | None = None) -> Weights:
    """Return the attention weights from `queries` (None: x) to `x`, float32; arguments as for calls."""
    query, key = self._project_qk(x, queries)
    query *= query.shape[-1] ** -0.5
    return attention_weights(query, key, None if relative is None else relative(query))

  def _attend_few_queries(self, x: Tokens, queries: Float[Array, 'batch queries width'],
                          relative: Scores | None) -> Output:
    """Attend from few queries without computing keys and values: q · (W x) = (q W) · x.

    The key bias shifts all scores of a query equally, so softmax cancels it; the value bias is added once, as weights
    sum to 1.
    """
    query = _heads(self.query, queries)
    query *= query.shape[-1] ** -0.5
    bias = None if relative is None else relative(query)
    query = layers.affine('bhqk,dhk->bhqd', query, _kernel(self.key), None)
    batch, heads, num_queries, width = query.shape
    tokens = x.astype(query.dtype)[:, None]
    # With tokens as keys and values, every head is just another query.
    if bias is not None:
      bias = bias.reshape(len(bias), 1, heads * num_queries, -1)
    output = attend(query.reshape(batch, 1, heads * num_queries, width), tokens, tokens, bias).reshape(query.shape)
    bias = layers.value_of(self.value.bias)
    return layers.affine('bhqd,dhk->bhqk', output, _kernel(self.value), None if bias is None else bias[:, None])

  def _mix(self, query: Queries, key: Keys, value: Keys, bias: Bias | None, rngs: Rngs) -> Output:
    """Return what `attend` does; with keys, after dropout on the weights, so that they no longer sum to 1."""
    if rngs is None:
      attend = ATTENTIONS[self.kind]
      return attend(query, key, value) if bias is None else attend(query, key, value, bias)
    weights = layers.dropout(attention_weights(query, key, bias).astype(value.dtype), self.dropout, rngs)
    return layers.einsum('bhqk,bhkd->bhqd', weights, value).astype(value.dtype)

  def _project_qk(self, x: Tokens, queries: Float[Array, 'batch queries width'] | None) -> tuple[
      Float[Array, 'batch heads queries head_dim'], Float[Array, 'batch heads tokens head_dim']]:
    """Return queries and keys per head, layer-normalized and rotated if the model does so.

    Queries that are not `x` are for tokens before the patches, which are not rotated.
    """
    query = _heads(self.query, x if queries is None else queries)
    key = _heads(self.key, x)
    if self.query_norm is not None and self.key_norm is not None:
      query, key = layers.layer_norm(self.query_norm, query), layers.layer_norm(self.key_norm, key)
    if self.rotary is not None:
      query, key = query if queries is not None else self.rotary(query), self.rotary(key)
    return query, key


def fuse_heads(kernel: Float[Array, '*layers width heads head_dim']) -> Float[Array, '...']:
  """Return a projection's kernel in the form that it is multiplied in: as it is, or (…, width, heads * head_dim).

  A TPU pads the features of a head to 128 lanes or pairs heads of 64; H/14's 80 features would be three eighths
  padding.
  """
  head_dim = kernel.shape[-1]
  return kernel if head_dim % 64 == 0 else kernel.reshape(*kernel.shape[:-2], -1)


def _heads(linear: nnx.LinearGeneral, x: Tokens) -> Float[Array, 'batch heads tokens head_dim']:
  """Project tokens to heads."""
  x, kernel = x.astype(linear.dtype), fuse_heads(_kernel(linear))
  bias = layers.value_of(linear.bias)
  if kernel.ndim == 3:
    return layers.affine('bnd,dhk->bhnk', x, kernel, None if bias is None else bias[:, None])
  y = layers.affine('bnd,df->bnf', x, kernel, None if bias is None else bias.reshape(-1))
  return y.swapaxes(1, 2).reshape(-1, *linear.out_features, x.shape[1]).swapaxes(2, 3)


def _kernel(linear: nnx.LinearGeneral) -> Float[Array, 'width heads head_dim']:
  """Return a projection's kernel in its natural shape, whether an unrolled step has fused its heads or not."""
  return linear.kernel[...].reshape(-1, *linear.out_features)


ATTENTIONS: dict[str, Callable[..., Array]] = {
    'cudnn': cudnn_attend,
    'xla': attend,
}
