"""Principal components of the first layer's filters (paper, figure 7, left)."""
from typing import Any

from flax import nnx
import numpy as np

from vit_jax.models.base import flatten

COUNT = 28  # as many as the paper shows


def components(model: Any, count: int = COUNT) -> np.ndarray:
  """Return the principal components of the filters that are applied to the pixels.

  Filters are the patch embedding's, or those of the first convolution of a ResNet. They are centered: the mean filter
  is subtracted; the paper does not say whether that was done. The largest weight of a component is positive, as its
  sign means nothing.

  Args:
    model: any model.
    count: at most so many; there are no more than filters - 1 and weights per filter.

  Returns:
    (count, rows, columns, channels) float32 of norm 1, the component with the largest variance first.
  """
  kernel = np.asarray(flatten(nnx.to_pure_dict(nnx.state(model, nnx.Param)))[model.stem], np.float64)
  filters = kernel.reshape(-1, kernel.shape[-1]).T
  centered = filters - filters.mean(axis=0)
  found = np.linalg.svd(centered, full_matrices=False)[2][:min(count, len(filters) - 1)]
  largest = np.take_along_axis(found, np.abs(found).argmax(axis=1, keepdims=True), axis=1)
  return (found * np.sign(largest)).reshape(-1, *kernel.shape[:-1]).astype(np.float32)


def to_pictures(found: np.ndarray) -> np.ndarray:
  """Return components as pictures, each scaled to 0..1 by itself: (count, rows, columns, 3).

  Args:
    found: (count, rows, columns, channels); one channel is shown as gray, two as red and green, of more than three the
      first three.
  """
  low, high = (reduce(found, axis=(1, 2, 3), keepdims=True) for reduce in (np.min, np.max))
  scaled = (found - low) / np.maximum(high - low, 1e-12)
  channels = found.shape[-1]
  if channels == 1:
    return np.repeat(scaled, 3, axis=-1)
  return np.pad(scaled[..., :3], [(0, 0), (0, 0), (0, 0), (0, max(3 - channels, 0))])
