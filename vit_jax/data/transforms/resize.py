"""Resizing, with and without antialiasing.

`resize`, `resize_small` and `resize_ratio` antialias (Pillow): when shrinking, they average over all source pixels.
`interpolate`, which `crops.inception_crop` uses, does not: each pixel is interpolated from the nearest four, with pixel
centers at half, as `tf.image.resize` does by default and as the published ViT were trained. OpenCV computes it in fixed
point, at most one level from exact arithmetic.
"""
import cv2
import numpy as np
from PIL import Image

from vit_jax.base.choices import choose
from vit_jax.data.images.pillow import from_pillow, to_pillow
from vit_jax.data.transforms.base import Size, Transform, require, require_pixels


def resize(size: Size, interpolation: str = 'bilinear', to: Size | None = None) -> Transform:
  """Resize whatever the aspect ratio.

  Args:
    size: (rows, columns) of the result, unless `to` is given.
    interpolation: a filter of Pillow's: 'bilinear', 'bicubic', 'box', 'hamming', 'lanczos' or 'nearest'.
    to: (rows, columns) of the result if a crop follows; None is the image size.
  """
  resampling = choose(_INTERPOLATIONS, interpolation, 'interpolation')
  target = size if to is None else _check_pixels(to, 'to')
  return lambda image, rng: _resize(image, target, resampling)


def resize_small(size: Size, smaller: int, interpolation: str = 'bilinear', rounding: str = 'nearest') -> Transform:
  """Resize so that the smaller side has `smaller` pixels; the aspect ratio is kept.

  Args:
    size: not used.
    smaller: pixels, more than 0.
    interpolation: as for `resize`.
    rounding: of the longer side: 'nearest' as in big_vision, or 'down' as in torchvision's `Resize`, timm and Hugging
      Face.
  """
  del size
  require(isinstance(smaller, int) and smaller > 0, 'smaller', smaller, 'pixels, an int > 0')
  require(rounding in ('nearest', 'down'), 'rounding', rounding, "'nearest' or 'down'")
  resampling = choose(_INTERPOLATIONS, interpolation, 'interpolation')

  def transform(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    del rng
    shortest = min(image.shape[:2])
    if rounding == 'down':
      # In this order: torchvision/transforms/functional.py, _compute_resized_output_size.
      rows, columns = (int(smaller * side / shortest) for side in image.shape[:2])
    else:
      rows, columns = (round(side * (smaller / shortest)) for side in image.shape[:2])
    return _resize(image, (rows, columns), resampling)

  return transform


def resize_ratio(size: Size, to: Size, interpolation: str = 'bilinear', fit: str = 'cover') -> Transform:
  """Resize to cover a rectangle, or to fit into it; the aspect ratio is kept (timm's `ResizeKeepRatio`).

  Args:
    size: not used.
    to: (rows, columns) of the rectangle.
    interpolation: as for `resize`.
    fit: 'cover' leaves no part of the rectangle empty, 'inside' cuts nothing off.
  """
  del size
  rectangle = _check_pixels(to, 'to')
  require(fit in ('cover', 'inside'), 'fit', fit, "'cover' or 'inside'")
  resampling, select = choose(_INTERPOLATIONS, interpolation, 'interpolation'), min if fit == 'cover' else max

  def transform(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    del rng
    ratio = select(side / target for side, target in zip(image.shape[:2], rectangle, strict=True))
    rows, columns = (max(round(side / ratio), 1) for side in image.shape[:2])
    return _resize(image, (rows, columns), resampling)

  return transform


def interpolate(pixels: np.ndarray, size: Size) -> np.ndarray:
  """Return a new array of `size`, bilinear without antialiasing."""
  if pixels.shape[:2] == size:
    return pixels.copy()  # A crop of a Picture is valid only until the next one.
  # OpenCV takes (width, height), and drops a single channel.
  return cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_LINEAR).reshape(*size, -1)


def _check_pixels(value: Size, name: str) -> Size:
  valid = isinstance(value, tuple) and len(value) == 2 and all(isinstance(side, int) and side > 0 for side in value)
  require(valid, name, value, '(rows, columns), two positive ints')
  return value


def _resize(image: np.ndarray, size: Size, resampling: Image.Resampling) -> np.ndarray:
  if image.shape[:2] == size:
    return image
  rows, columns = size
  if rows * columns > image.shape[0] * image.shape[1]:
    require_pixels(rows, columns)
  # Pillow takes (width, height).
  return from_pillow(to_pillow(image).resize((columns, rows), resampling))


# Pillow's names of its filters, in lower case. Its bicubic is Keys' with a = -0.5.
_INTERPOLATIONS = {name: Image.Resampling[name.upper()]
                   for name in ('bicubic', 'bilinear', 'box', 'hamming', 'lanczos', 'nearest')}
