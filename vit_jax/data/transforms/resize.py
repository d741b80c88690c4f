"""Resizing, with and without antialiasing.

`resize` and `resize_small` antialias (Pillow): when shrinking, they average over all source pixels. `interpolate`,
which `crops.inception_crop` uses, does not: each pixel is interpolated from the nearest four, with pixel centers at
half, as `tf.image.resize` does by default and as the published ViT were trained. OpenCV computes it in fixed point, at
most one level from exact arithmetic.
"""
import cv2
import numpy as np
from PIL import Image

from vit_jax.base.choices import choose
from vit_jax.data.images.pillow import from_pillow, to_pillow
from vit_jax.data.transforms.base import Size, Transform, require


def resize(size: Size, interpolation: str = 'bilinear') -> Transform:
  """Resize to `size` whatever the aspect ratio; 'bilinear' or 'bicubic'."""
  resampling = choose(_INTERPOLATIONS, interpolation, 'interpolation')
  return lambda image, rng: _resize(image, size, resampling)


def resize_small(size: Size, smaller: int, interpolation: str = 'bilinear') -> Transform:
  """Resize so that the smaller side has `smaller` pixels; the aspect ratio is kept.

  Args:
    size: not used.
    smaller: pixels, more than 0.
    interpolation: 'bilinear' or 'bicubic'.
  """
  del size
  require(isinstance(smaller, int) and smaller > 0, 'smaller', smaller, 'pixels, an int > 0')
  resampling = choose(_INTERPOLATIONS, interpolation, 'interpolation')

  def transform(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    del rng
    rows, columns = image.shape[:2]
    scale = smaller / min(rows, columns)
    return _resize(image, (round(rows * scale), round(columns * scale)), resampling)

  return transform


def interpolate(pixels: np.ndarray, size: Size) -> np.ndarray:
  """Return a new array of `size`, bilinear without antialiasing."""
  if pixels.shape[:2] == size:
    return pixels.copy()  # A crop of a Picture is valid only until the next one.
  # OpenCV takes (width, height), and drops a single channel.
  return cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_LINEAR).reshape(*size, -1)


def _resize(image: np.ndarray, size: Size, resampling: Image.Resampling) -> np.ndarray:
  if image.shape[:2] == size:
    return image
  rows, columns = size
  # Pillow takes (width, height).
  return from_pillow(to_pillow(image).resize((columns, rows), resampling))


# As in Pillow and timm, bicubic is Keys' with a = -0.5.
_INTERPOLATIONS = {
    'bicubic': Image.Resampling.BICUBIC,
    'bilinear': Image.Resampling.BILINEAR,
}
