"""Attention Rollout over images (paper, figures 6 and 14)."""
from collections.abc import Callable
from typing import Any

from flax import nnx
import jax
import numpy as np
from PIL import Image
from scipy import ndimage

from vit_jax.base.preprocessing import Normalization
from vit_jax.statistics import attention


def make_rollout(model: Any) -> Callable[[np.ndarray], np.ndarray]:
  """Return a compiled function from an image, (rows, columns, channels) uint8, to its map, (rows, columns) of patches.

  See `statistics.attention.rollout_map`. One image at a time: the weights of all layers, averaged over the heads, are
  in memory.

  Raises:
    UserError: when it is called, for a model without attention weights from all tokens to all.
  """
  graphdef, params = nnx.split(model)
  config = model.config
  normalize = Normalization(model.preprocessing.mean, model.preprocessing.std)

  @jax.jit
  def run(params: Any, image: jax.Array) -> jax.Array:
    mean = lambda weights: weights.mean(axis=1, keepdims=True)
    weights = nnx.merge(graphdef, params).attention_weights(normalize(image[None]), mean)
    return attention.rollout_map(attention.rollout(weights)[0], config.grid, config.num_prefix_tokens,
                                 config.class_token)

  return lambda image: np.asarray(run(params, image))


def overlay(image: np.ndarray, found: np.ndarray, patch_size: tuple[int, int]) -> np.ndarray:
  """Return an image whose pixels are as bright as they are attended to.

  As the authors describe it (github.com/google-research/vision_transformer, issue 27): the map is divided by its
  maximum, enlarged by Lanczos, blurred by a Gaussian of a patch's size, and scaled to 0..1.

  Args:
    image: (rows, columns, channels) uint8, 1 or 3 channels; of others the first three.
    found: (rows, columns) of patches.
    patch_size: (rows, columns) of a patch in pixels. Pixels that no patch covers are black.

  Returns:
    (rows, columns, 3) uint8.
  """
  rows, columns = (n * pixels for n, pixels in zip(found.shape, patch_size, strict=True))
  mask = Image.fromarray((found / max(found.max(), 1e-12)).astype(np.float32))
  mask = mask.resize((columns, rows), Image.Resampling.LANCZOS)
  blurred = ndimage.gaussian_filter(np.asarray(mask), patch_size)
  low, high = blurred.min(), blurred.max()
  alpha = (blurred - low) / max(high - low, 1e-12)
  covered = np.zeros((*image.shape[:2], 1), np.float32)
  covered[:rows, :columns, 0] = alpha
  return np.rint(to_rgb(image) * covered).astype(np.uint8)


def to_rgb(image: np.ndarray) -> np.ndarray:
  """Return (rows, columns, channels) uint8 as three channels: one is repeated, of more than three the first three."""
  if image.shape[-1] == 1:
    return np.repeat(image, 3, axis=-1)
  return np.pad(image[..., :3], [(0, 0), (0, 0), (0, max(3 - image.shape[-1], 0))])
