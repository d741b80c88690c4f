"""Geometric operations: flips and affine maps.

`flip` and `affine` build transforms. The others map Pillow images of mode L or RGB for `randaugment`: nearest neighbor,
the size is kept, and pixels from outside the image are `fill`. Their coordinates count pixels from the center of the
upper left one, as in `tensorflow_addons.image.transform`; a coordinate halfway between two pixels may go to either.
"""
import math

import cv2
import numpy as np
from PIL import Image

from vit_jax.data.images.pillow import from_pillow, to_pillow
from vit_jax.data.transforms.base import Size, Transform, require

Matrix = tuple[float, float, float, float, float, float]


def flip(size: Size, p: float = 0.5) -> Transform:
  """Mirror left and right with probability `p`, 0..1."""
  del size
  require(0 <= p <= 1, 'p', p, 'a probability, 0..1')
  # OpenCV is 25 times as fast as copying image[:, ::-1], which would be needed later; it drops a single channel.
  return lambda image, rng: cv2.flip(image, 1).reshape(image.shape) if rng.random() < p else image


def affine(size: Size, degrees: float = 0, shift: float = 0, scale: float = 0) -> Transform:
  """Rotate, shift and zoom at random in one bilinear resampling; pixels from outside the image are black.

  Args:
    size: not used: the image keeps its size.
    degrees: the angle is uniform in -degrees..degrees, 0..180.
    shift: the shift is uniform in -shift..shift of the rows and of the columns, 0..1.
    scale: the magnification is uniform in 1 - scale..1 + scale, 0 <= scale < 1.
  """
  del size
  require(0 <= degrees <= 180, 'degrees', degrees, '0..180')
  require(0 <= shift <= 1, 'shift', shift, 'a fraction of the image, 0..1')
  require(0 <= scale < 1, 'scale', scale, '0 <= scale < 1')

  def transform(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    turn, down, right, zoom = 2 * rng.random(4) - 1
    rows, columns = image.shape[:2]
    cosine, sine = (f(math.radians(degrees * turn)) / (1 + scale * zoom) for f in (math.cos, math.sin))
    # Pillow takes the inverse, from a point (x, y) of the result to one of the image.
    x, y = columns / 2 + shift * right * columns, rows / 2 + shift * down * rows
    inverse = (cosine, -sine, columns / 2 - cosine * x + sine * y, sine, cosine, rows / 2 - sine * x - cosine * y)
    return from_pillow(to_pillow(image).transform(
        (columns, rows), Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR))

  return transform


def rotate(image: Image.Image, degrees: float, fill: int) -> Image.Image:
  """Rotate counterclockwise about the image's center."""
  x, y = (image.width - 1) / 2, (image.height - 1) / 2
  cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
  inverse = (cosine, -sine, x - cosine * x + sine * y, sine, cosine, y - sine * x - cosine * y)
  return _warp(image, inverse, fill)


def shear_x(image: Image.Image, slope: float, fill: int) -> Image.Image:
  """Shift row i to the left by `slope * i` pixels; the top row stays."""
  return _warp(image, (1, slope, 0, 0, 1, 0), fill)


def shear_y(image: Image.Image, slope: float, fill: int) -> Image.Image:
  """Shift column j up by `slope * j` pixels; the left column stays."""
  return _warp(image, (1, 0, 0, slope, 1, 0), fill)


def translate_x(image: Image.Image, pixels: float, fill: int) -> Image.Image:
  """Shift the image to the left."""
  return _warp(image, (1, 0, pixels, 0, 1, 0), fill)


def translate_y(image: Image.Image, pixels: float, fill: int) -> Image.Image:
  """Shift the image up."""
  return _warp(image, (1, 0, 0, 0, 1, pixels), fill)


def _warp(image: Image.Image, inverse: Matrix, fill: int) -> Image.Image:
  """Take pixel (x, y) from (a x + b y + c, d x + e y + f)."""
  a, b, c, d, e, f = inverse
  # Pillow's coordinates start at the corner of the pixel.
  corner = (a, b, c + (1 - a - b) / 2, d, e, f + (1 - d - e) / 2)
  fillcolor = (fill,) * len(image.getbands())
  return image.transform(image.size, Image.Transform.AFFINE, corner, Image.Resampling.NEAREST,
                         fillcolor=fillcolor if len(fillcolor) > 1 else fill)
