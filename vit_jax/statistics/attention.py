"""Statistics of attention weights: how far they reach, how evenly they spread, and where the information comes from.

Weights are (..., heads, queries, keys), NumPy or jax, and rows sum to 1. Tokens are `prefix` tokens (class token,
distillation token, registers), then patches, row by row. All functions can be compiled.
"""
import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from vit_jax.base.errors import UserError

ArrayLike = Array | np.ndarray
Weights = Float[ArrayLike, '*batch heads queries keys']
PerHead = Float[Array, '*batch heads']

_PRECISION = jax.lax.Precision.HIGHEST  # a TPU would round the factors of a product to bfloat16


def mean_distance(weights: Weights, grid: tuple[int, int], patch_size: tuple[int, int], prefix: int = 0) -> PerHead:
  """Return how far patches attend, in pixels: the mean attention distance (paper, figure 11).

  For every patch, the distances to all patches are weighted with the attention that they get; this is averaged over
  the patches. The distance of two patches is that of their centers.

  Rows and columns of the prefix are left out, and the other weights are not rescaled: attention to the class token
  counts as distance 0. That is what the code of "Do Vision Transformers See Like Convolutional Neural Networks?" (arXiv
  2108.08810) does; the paper does not say it.

  Args:
    weights: float32; queries and keys are all tokens.
    grid: (rows, columns) of patches.
    patch_size: (rows, columns) of a patch in pixels.
    prefix: number of tokens before the patches.

  Returns:
    From 0 to the diagonal of the image.

  Raises:
    UserError: weights that are not of `prefix` tokens and a grid.
  """
  patches = grid[0] * grid[1]
  if weights.shape[-2:] != (prefix + patches, prefix + patches):
    raise UserError(f'weights: expected those of {prefix} tokens and {grid[0]}×{grid[1]} patches, '
                    f'(..., {prefix + patches}, {prefix + patches}); got {weights.shape}')
  between = jnp.asarray(distances(grid, patch_size))
  among_patches = jnp.asarray(weights)[..., prefix:, prefix:]
  return jnp.einsum('...qk,qk->...', among_patches, between, precision=_PRECISION) / patches


def distances(grid: tuple[int, int], patch_size: tuple[int, int]) -> Float[np.ndarray, 'patches patches']:
  """Return the Euclidean distances between the centers of all patches in pixels, float32.

  Args:
    grid: (rows, columns) of patches.
    patch_size: (rows, columns) of a patch in pixels.
  """
  row, column = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
  rows, columns = (pixels * (axis[:, None] - axis) for pixels, axis in zip(patch_size, (row, column), strict=True))
  return np.hypot(rows, columns).astype(np.float32)


def entropy(weights: Weights) -> PerHead:
  """Return the mean over the queries of -Σ w log w over the keys, in nats.

  Returns:
    From 0, where every query attends to one key, to log(keys), where all attend to all alike.
  """
  return jax.scipy.special.entr(jnp.asarray(weights)).sum(axis=-1).mean(axis=-1)


def rollout(weights: Float[ArrayLike, 'layers *batch heads tokens tokens']) -> Float[Array, '*batch tokens tokens']:
  """Return which input tokens every output token is made of: Attention Rollout (arXiv 2005.00928, section 3).

  The weights of each layer are averaged over the heads; the identity is added for the residual connection; rows are
  scaled to sum to 1; the layers are multiplied, the last one on the left. So the paper made figures 6 and 14
  (appendix D.8, and the authors' answer that the identity is added).

  Args:
    weights: of all layers, the first layer first.

  Returns:
    Rows (output tokens) sum to 1 over columns (input tokens).
  """
  averaged = jnp.asarray(weights).mean(axis=-3)
  tokens = averaged.shape[-1]

  def multiply(product: Array, layer: Array) -> tuple[Array, None]:
    layer += jnp.eye(tokens, dtype=layer.dtype)
    layer /= layer.sum(axis=-1, keepdims=True)
    return jnp.matmul(layer, product, precision=_PRECISION), None

  start = jnp.broadcast_to(jnp.eye(tokens, dtype=averaged.dtype), averaged.shape[1:])
  return jax.lax.scan(multiply, start, averaged)[0]


def rollout_map(rolled: Float[ArrayLike, '*batch tokens tokens'], grid: tuple[int, int], prefix: int = 0,
                class_token: bool = True) -> Float[Array, '*batch rows columns']:
  """Return how much of the class token comes from each patch, as a grid.

  Args:
    rolled: of `rollout`.
    grid: (rows, columns) of patches.
    prefix: number of tokens before the patches.
    class_token: whether the first token is one; without it, the mean over all patches' rows is taken, as they are what
      the pooling reads.

  Returns:
    Shares, not scaled: their sum is 1 minus what comes from the prefix.
  """
  rolled = jnp.asarray(rolled)
  row = rolled[..., 0, :] if class_token else rolled[..., prefix:, :].mean(axis=-2)
  return row[..., prefix:].reshape(*rolled.shape[:-2], *grid)
