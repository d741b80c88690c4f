"""The layers that every encoder block is made of, with randomness keyed by example.

A random stream is an array `rngs` of B typed PRNG keys, one per example of the batch, or None in evaluation. A mask
drawn from an example's own key is the same on one device and on many.
"""
from collections.abc import Callable
import functools
import math
import re
from typing import Any

from flax import nnx
import jax
from jax import Array
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
from jaxtyping import Float, Int, UInt32

from vit_jax.base.linear_map import Residuals, Tangents, linear_map
from vit_jax.models.base import ArrayLike, Images, Rngs, Tokens


def split(rngs: Rngs, n: int) -> list[Rngs]:
  """Split each key in n: return n arrays of one key per example, or n times None for None."""
  if rngs is None:
    return [None] * n
  return list(jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, n))(rngs), 1, 0))


def fold_in(rngs: Rngs, number: int | Int[Array, '']) -> Rngs:
  """Derive other keys from `rngs` and an integer; None stays None."""
  return None if rngs is None else jax.vmap(lambda key: jax.random.fold_in(key, number))(rngs)


def dropout(x: Float[Array, 'batch *shape features'], rate: float, rngs: Rngs) -> Float[Array, 'batch *shape features']:
  """Zero a fraction `rate` of x and scale the rest by 1 / (1 - rate); without keys, return x."""
  if rngs is None or rate == 0.0:
    return x
  keep = uniform(rngs, x.shape[1:]) >= jnp.uint32(round(rate * 2 ** 32))
  scaled = x.astype(jnp.float32) / (1.0 - rate)  # bfloat16 would divide by 0.8984 for a rate of 0.1
  return jnp.where(keep, scaled, 0.0).astype(x.dtype)


def uniform(rngs: Rngs, shape: tuple[int, ...]) -> UInt32[Array, 'batch ...']:
  """Draw (B, *shape) numbers whose high bits are uniform, each example's from its own key.

  Threefry gives a word to each row and to each column (the last axis) of an example, and an element combines its two:
  20 rounds of threefry per element would make B/16's step cost 1.7 times as much as without dropout on a TPU v5e, this
  makes it 1.065 times (experiments/benchmarks/tpu_step.md). Any three elements are exactly independent of each other;
  the hash separates the corners of rectangles, whose words cancel. It is lowbias32 without its last step, which leaves
  the upper half of the bits as they are (Chris Wellons, https://nullprogram.com/blog/2018/07/31).
  """
  *lead, columns = shape
  rows = math.prod(lead)
  words = jax.vmap(lambda key: jax.random.bits(key, (rows + columns,), jnp.uint32))(rngs)
  words = jax.lax.optimization_barrier(words)  # never recomputed per element
  bits = words[:, :rows].reshape(-1, *lead, 1) ^ words[:, rows:].reshape(-1, *[1] * len(lead), columns)
  bits = (bits ^ bits >> 16) * jnp.uint32(0x7feb352d)
  return (bits ^ bits >> 15) * jnp.uint32(0x846ca68b)


def drop_path(x: Float[Array, 'batch *shape'], rate: float | Float[Array, ''], rngs: Rngs,
              scale: bool = True) -> Float[Array, 'batch *shape']:
  """Zero whole examples of x (stochastic depth, arXiv 1603.09382); `rate` may be traced, 0.0 returns x.

  With `scale`, the others are divided by 1 - rate.
  """
  if rngs is None or (isinstance(rate, float) and rate == 0.0):
    return x
  keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate))(rngs)
  keep = keep.reshape(-1, *[1] * (x.ndim - 1))
  return jnp.where(keep, x / (1.0 - rate) if scale else x, jnp.zeros_like(x)).astype(x.dtype)


def einsum(product: str, a: Float[ArrayLike, '...'], b: Float[ArrayLike, '...']) -> Float[Array, '...']:
  """Return `jnp.einsum` of two arrays, with float32 sums and a float32 result whatever the inputs are."""
  return jnp.einsum(product, a, b, preferred_element_type=jnp.float32)


def rounded_einsum(product: str, a: Float[ArrayLike, '...'], b: Float[ArrayLike, '...']) -> Float[Array, '...']:
  """Return `einsum` rounded to the type of `a`.

  On a GPU the product itself gives that type: cuBLAS sums in float32 and rounds once, where XLA would write a float32
  result to memory and read it again. TPUs fuse the rounding, and on CPUs only float32 products are fast.
  """
  if on_gpu():
    return jnp.einsum(product, a, b, preferred_element_type=a.dtype)
  return einsum(product, a, b).astype(a.dtype)


def on_gpu() -> bool:
  """Return whether programs are compiled for GPUs."""
  return jax.default_backend() == 'gpu'


def affine(product: str, x: Float[ArrayLike, '...'], kernel: Float[Array, '...'],
           bias: Float[Array, '...'] | None) -> Float[Array, '...']:
  """Return an einsum of x and a kernel, plus a bias: products of x's type, sums in float32, rounded once to x's type.

  So are the gradients: that of x has x's type, those of kernel and bias are float32 sums, never rounded. A product with
  a float32 result is also one that XLA has a fast kernel for on CPUs (experiments/benchmarks/cpu.md). On GPUs the bias
  too is rounded to x's type, so that cuBLAS can add it (as PyTorch's autocast does).

  Args:
    product: an einsum such as 'bnd,df->bnf', without an axis that only one of the two has and the output lacks.
    x: tokens.
    kernel: float32, rounded to x's type for the product.
    bias: float32, broadcast to the output; or None.
  """
  return checkpoint_name(_affine(product, x, kernel, bias), DENSE)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _affine(product: str, x: ArrayLike, kernel: Array, bias: Array | None) -> Array:
  kernel = kernel.astype(x.dtype)
  if bias is None:
    return rounded_einsum(product, x, kernel)
  if on_gpu():
    return rounded_einsum(product, x, kernel) + bias.astype(x.dtype)
  return (einsum(product, x, kernel) + bias).astype(x.dtype)


@functools.partial(_affine.defjvp, symbolic_zeros=True)
def _affine_tangent(product: str, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
  x, kernel, bias = primals
  output = _affine(product, x, kernel, bias)

  def push(saved: Residuals, tangents: Tangents) -> Array:
    x, kernel = saved
    of_x, of_kernel, of_bias = tangents
    # Not rounded: forward mode is for tools, not for training.
    parts = [] if of_x is None else [einsum(product, of_x, kernel.astype(x.dtype))]
    parts += [] if of_kernel is None else [einsum(product, x.astype(jnp.float32), of_kernel)]
    parts += [] if of_bias is None else [of_bias]
    return jnp.broadcast_to(sum(parts), output.shape).astype(output.dtype)

  pull = functools.partial(_affine_gradient, product, None if bias is None else bias.shape)
  return output, linear_map(push, pull, (x, kernel), tangents)


def _affine_gradient(product: str, bias: tuple[int, ...] | None, saved: Residuals, gradient: ArrayLike) -> Tangents:
  """Return the gradients of x, kernel and bias, given the shape of the bias."""
  x, kernel = saved
  axes = re.fullmatch('(.+),(.+)->(.+)', product)
  assert axes, product
  if on_gpu():
    # Otherwise XLA writes a float32 copy of it, for the sum of the bias.
    gradient = jax.lax.optimization_barrier(gradient)
  of_x, of_kernel, of_y = axes.groups()
  by_x = rounded_einsum(f'{of_y},{of_kernel}->{of_x}', gradient, kernel.astype(x.dtype))
  by_kernel = einsum(f'{of_x},{of_y}->{of_kernel}', x, gradient)
  return by_x, by_kernel, None if bias is None else _sum_to(gradient.astype(jnp.float32), bias)


def _sum_to(x: ArrayLike, shape: tuple[int, ...]) -> Array:
  """Sum over the axes that broadcasting `shape` to x's shape adds or repeats."""
  lead = x.ndim - len(shape)
  axes = tuple(range(lead)) + tuple(lead + i for i, size in enumerate(shape) if size == 1)
  return x.sum(axis=axes).reshape(shape)


def make_head(features: int, num_classes: int | None, bias: float, rngs: nnx.Rngs) -> nnx.Linear | None:
  """Return the layer from a representation to the logits, float32 and zero at first but for the bias.

  Args:
    features: of the representation.
    num_classes: number of logits; None: no layer.
    bias: initial.
    rngs: parameter stream.
  """
  if num_classes is None:
    return None
  return nnx.Linear(features, num_classes, kernel_init=nnx.initializers.zeros,
                    bias_init=nnx.initializers.constant(bias), rngs=rngs)


def value_of(param: nnx.Param | None) -> Array | None:
  """Return the array of a parameter that a layer may lack."""
  return None if param is None else param[...]


def dense(linear: nnx.Linear | nnx.LinearGeneral, x: Float[Array, 'batch tokens features']) -> Tokens:
  """Apply a dense layer to tokens, by `affine`."""
  kernel = linear.kernel[...].reshape(x.shape[-1], -1)
  bias = value_of(linear.bias)
  return affine('bnd,df->bnf', x.astype(linear.dtype), kernel, None if bias is None else bias.reshape(-1))


def embed_patches(convolution: nnx.Conv, images: Images) -> Tokens:
  """Apply a convolution that moves by its own size; return its outputs row by row, as tokens.

  Pixels beyond the last whole patch are ignored. Computed as a product of patches and kernel: TPUs take three times as
  long for a convolution over 3 channels.
  """
  kernel = convolution.kernel[...]
  height, width, channels, features = kernel.shape
  batch, rows, columns, _ = images.shape
  x = images[:, :rows - rows % height, :columns - columns % width]
  x = x.reshape(batch, rows // height, height, columns // width, width, channels).transpose(0, 1, 3, 2, 4, 5)
  x = x.reshape(batch, -1, height * width * channels).astype(convolution.dtype)
  # Behind a barrier: otherwise TPU's compiler transposes the patches for the kernel's gradient.
  kernel = jax.lax.optimization_barrier(kernel.reshape(-1, features))
  return affine('bnp,pf->bnf', x, kernel, value_of(convolution.bias))


def layer_norm(norm: nnx.LayerNorm, x: Float[Array, '*shape width']) -> Float[Array, '*shape width']:
  """Apply a LayerNorm to the last axis, computed in float32 and rounded once."""
  assert norm.scale is not None and norm.bias is not None
  x = x.astype(jnp.float32)
  mean = x.mean(axis=-1, keepdims=True)
  variance = jnp.maximum((x * x).mean(axis=-1, keepdims=True) - mean * mean, 0.0)
  y = (x - mean) * jax.lax.rsqrt(variance + norm.epsilon) * norm.scale[...] + norm.bias[...]
  return y.astype(norm.dtype)


def gelu_tanh(x: Float[Array, '*shape']) -> Float[Array, '*shape']:
  """Return the tanh approximation of GELU: official and big_vision weights."""
  return _activation(jax.nn.gelu, on_gpu())(x)


def gelu_exact(x: Float[Array, '*shape']) -> Float[Array, '*shape']:
  """Return GELU by the error function: timm and Hugging Face weights."""
  return _activation(_gelu_exact, on_gpu())(x)


def gelu_quick(x: Float[Array, '*shape']) -> Float[Array, '*shape']:
  """Return x · sigmoid(1.702 x), the sigmoid approximation of GELU (arXiv 1606.08415, section 2): OpenAI's CLIP."""
  return _activation(_gelu_quick, on_gpu())(x)


def silu(x: Float[Array, '*shape']) -> Float[Array, '*shape']:
  """Return x · sigmoid(x): the gate of SwiGLU."""
  return _activation(jax.nn.silu, on_gpu())(x)


def _gelu_exact(x: Array) -> Array:
  return jax.nn.gelu(x, approximate=False)


def _gelu_quick(x: Array) -> Array:
  return x * jax.nn.sigmoid(1.702 * x)


@functools.cache  # one function per form, so that jax recognizes it and compiles eager calls once
def _activation(function: Callable[[Array], Array], prevent_cse: bool) -> Callable[[Array], Array]:
  """Return an activation that is computed in float32 and keeps only its input for the gradient, nothing in float32.

  The barriers of `prevent_cse` cost TPUs 6 %; without them XLA keeps a float32 tanh on GPUs.
  """
  return jax.checkpoint(lambda x: function(x.astype(jnp.float32)).astype(x.dtype), prevent_cse=prevent_cse)


# The checkpoint name of what `affine` returns, for rematerialization policies.
DENSE = 'dense'

GELUS: dict[str, Callable[[Array], Array]] = {
    'exact': gelu_exact,
    'quick': gelu_quick,
    'tanh': gelu_tanh,
}
