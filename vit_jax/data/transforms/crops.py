"""Image transforms on uint8 arrays.

A transform is a callable `(image, rng) -> image`; `image` is (H, W, C) uint8 with C = 1 or 3 and
is never written to, `rng` is the example's own `np.random.Generator`. An operation in TRANSFORMS
builds a transform from the config's image size, (rows, columns), and its own arguments; `spec`
chains them.

Two ways to resize. `resize` and `resize_small` antialias (Pillow): shrinking averages over every
source pixel. `inception_crop` does not: each pixel is interpolated from the nearest four, with pixel
centres at half, as `tf.image.resize` does by default and as the published ViT were trained. OpenCV
computes it in fixed point, one level from exact arithmetic at most.
"""

import math
from typing import Callable

import cv2
import numpy as np
from PIL import Image

from vit_jax.data.transforms.color import color_jitter
from vit_jax.data.images.decode import Picture
from vit_jax.data.transforms.erase import random_erasing
from vit_jax.data.images.pillow import from_pillow, to_pillow
from vit_jax.data.transforms.randaugment import randaugment, trivial_augment

cv2.setNumThreads(0)  # Threads are over images: a second kind within each only costs.

Size = tuple[int, int]
Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def inception_crop(size: Size, area=(0.05, 1.0), aspect=(3 / 4, 4 / 3)) -> Transform:
  """Resizes a random part of the image to `size`: the crop of Szegedy et al. 2015, section 6.

  The sampling is that of TensorFlow's `sample_distorted_bounding_box`, with which the published
  ViT were trained (vision_transformer and big_vision, `inception_crop`): the aspect ratio is
  uniform, then the height is uniform among those for which the area fits. After 100 failed
  attempts the whole image is taken.

  The transform takes a `Picture` as well, of which it decodes no more rows than the part needs.

  Args:
    size: (rows, columns) to resize to.
    area: smallest and largest part of the image's area, 0 < smallest <= largest <= 1.
    aspect: smallest and largest width / height, both positive.
  """
  smallest, largest = area
  narrowest, widest = aspect
  _require(0 < smallest <= largest <= 1, 'area', area, '0 < smallest <= largest <= 1')
  _require(0 < narrowest <= widest, 'aspect', aspect, '0 < narrowest <= widest')

  def transform(image, rng):
    rows, columns = image.shape[:2]
    for _ in range(100):
      ratio = narrowest + (widest - narrowest) * rng.random()
      shape = _crop_shape(rows, columns, ratio, smallest, largest, rng.random())
      if shape:
        return _interpolated(_part(image, *_place(rows, columns, shape, rng), *shape), size)
    return _interpolated(np.asarray(image), size)

  return transform


def flip(size: Size, p=0.5) -> Transform:
  """Mirrors left and right with probability `p`, 0..1."""
  del size
  _require(0 <= p <= 1, 'p', p, 'a probability, 0..1')
  # OpenCV mirrors 25 times as fast as a copy of image[:, ::-1], which is to come; it drops a single channel.
  return lambda image, rng: cv2.flip(image, 1).reshape(image.shape) if rng.random() < p else image


def resize(size: Size, interpolation='bilinear') -> Transform:
  """Resizes to `size`, whatever that does to the aspect ratio; 'bilinear' or 'bicubic'."""
  resampling = _resampling(interpolation)
  return lambda image, rng: _resized(image, size, resampling)


def resize_small(size: Size, smaller, interpolation='bilinear') -> Transform:
  """Resizes so that the smaller side has `smaller` pixels, keeping the aspect ratio.

  Args:
    size: not looked at.
    smaller: pixels, more than 0.
    interpolation: 'bilinear' or 'bicubic'.
  """
  del size
  _require(isinstance(smaller, int) and smaller > 0, 'smaller', smaller, 'pixels, an int > 0')
  resampling = _resampling(interpolation)

  def transform(image, rng):
    del rng
    rows, columns = image.shape[:2]
    scale = smaller / min(rows, columns)
    return _resized(image, (round(rows * scale), round(columns * scale)), resampling)

  return transform


def central_crop(size: Size) -> Transform:
  """Cuts `size` out of the middle; where the margin is odd, the extra pixel goes below and right.

  The transform raises ValueError for an image smaller than `size`.
  """

  def transform(image, rng):
    del rng
    _require_room(image, size, 'central_crop')
    top, left = (image.shape[0] - size[0]) // 2, (image.shape[1] - size[1]) // 2
    return image[top:top + size[0], left:left + size[1]]

  return transform


def random_crop(size: Size) -> Transform:
  """Cuts `size` out anywhere, uniformly; raises ValueError for an image smaller than `size`."""

  def transform(image, rng):
    _require_room(image, size, 'random_crop')
    return _crop_at_random(image, size, rng)

  return transform


def pad_crop(size: Size, padding, fill='zero') -> Transform:
  """Adds `padding` pixels on each side, then cuts `size` out anywhere: the CIFAR augmentation.

  Args:
    size: (rows, columns) to cut out.
    padding: pixels, 0 or more.
    fill: what the added pixels hold: 'zero', or 'edge' for the nearest pixel of the image.
  """
  _require(isinstance(padding, int) and padding >= 0, 'padding', padding, 'pixels, an int >= 0')
  _require(fill in ('edge', 'zero'), 'fill', fill, "'edge' or 'zero'")

  def transform(image, rng):
    rows, columns, channels = image.shape
    padded_shape = (rows + 2 * padding, columns + 2 * padding, channels)
    if fill == 'zero':
      padded = np.zeros(padded_shape, np.uint8)
      padded[padding:padding + rows, padding:padding + columns] = image
    else:  # Indexing, as np.pad takes ten times as long on small images.
      row = np.arange(-padding, rows + padding).clip(0, rows - 1)
      column = np.arange(-padding, columns + padding).clip(0, columns - 1)
      padded = image[row[:, None], column]
    _require_room(padded, size, f'pad_crop({padding})')
    return _crop_at_random(padded, size, rng)

  return transform


def affine(size: Size, degrees=0, shift=0, scale=0) -> Transform:
  """Turns, moves and zooms at random in one bilinear resampling; what comes in at the edges is black.

  Args:
    size: not looked at: the image keeps its own.
    degrees: the angle is uniform in -degrees..degrees, 0..180.
    shift: the move is uniform in -shift..shift of the rows and of the columns, 0..1.
    scale: the magnification is uniform in 1 - scale..1 + scale, 0 <= scale < 1.
  """
  del size
  _require(0 <= degrees <= 180, 'degrees', degrees, '0..180')
  _require(0 <= shift <= 1, 'shift', shift, 'a part of the image, 0..1')
  _require(0 <= scale < 1, 'scale', scale, '0 <= scale < 1')

  def transform(image, rng):
    turn, down, right, zoom = 2 * rng.random(4) - 1
    rows, columns = image.shape[:2]
    cosine, sine = (f(math.radians(degrees * turn)) / (1 + scale * zoom) for f in (math.cos, math.sin))
    # Pillow wants the way back, from a point (x, y) of the result to one of the image.
    x, y = columns / 2 + shift * right * columns, rows / 2 + shift * down * rows
    back = (cosine, -sine, columns / 2 - cosine * x + sine * y, sine, cosine, rows / 2 - sine * x - cosine * y)
    return from_pillow(to_pillow(image).transform(
        (columns, rows), Image.Transform.AFFINE, back, Image.Resampling.BILINEAR))

  return transform


def _crop_shape(rows, columns, ratio, smallest, largest, uniform) -> Size | None:
  """Returns the (rows, columns) of a part with width / height = ratio, None where none fits.

  Args:
    rows, columns: the image's size.
    ratio: width / height.
    smallest, largest: bounds of the area, as parts of the image's.
    uniform: a number in [0, 1) that picks the height.
  """
  total = rows * columns
  lowest = round(math.sqrt(smallest * total / ratio))
  highest = min(round(math.sqrt(largest * total / ratio)), rows, int((columns + 0.5) / ratio))
  lowest = min(lowest, highest)
  height = lowest + int(uniform * (highest - lowest + 1))
  # Rounding can leave the bounds by less than a pixel row: TensorFlow tries the neighbours too.
  for height in (height, height + 1, height - 1):
    width = round(height * ratio)
    fits = 0 < height <= rows and 0 < width <= columns
    if fits and smallest * total <= height * width <= largest * total:
      return height, width
  return None


def _place(rows: int, columns: int, size: Size, rng: np.random.Generator) -> tuple[int, int]:
  """(top, left) of a part of `size`, uniformly."""
  top = int(rng.random() * (rows - size[0] + 1))  # A third of rng.integers' time.
  return top, int(rng.random() * (columns - size[1] + 1))


def _part(image: np.ndarray | Picture, top: int, left: int, rows: int, columns: int) -> np.ndarray:
  if isinstance(image, Picture):
    return image.part(top, left, rows, columns)
  return image[top:top + rows, left:left + columns]


def _crop_at_random(image: np.ndarray, size: Size, rng: np.random.Generator) -> np.ndarray:
  return _part(image, *_place(*image.shape[:2], size, rng), *size)


def _resampling(interpolation: str) -> Image.Resampling:
  choices = ' or '.join(map(repr, sorted(_INTERPOLATIONS)))
  _require(interpolation in _INTERPOLATIONS, 'interpolation', interpolation, choices)
  return _INTERPOLATIONS[interpolation]


def _resized(image: np.ndarray, size: Size, resampling=Image.Resampling.BILINEAR) -> np.ndarray:
  if image.shape[:2] == size:
    return image
  rows, columns = size
  # Pillow counts (width, height).
  return from_pillow(to_pillow(image).resize((columns, rows), resampling))


def _interpolated(pixels: np.ndarray, size: Size) -> np.ndarray:
  """A new array of `size`, bilinear without antialiasing."""
  if pixels.shape[:2] == size:
    return pixels.copy()  # A part of a Picture does not last.
  # OpenCV counts (width, height), and drops a single channel.
  return cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_LINEAR).reshape(*size, -1)


def _require(valid: bool, name: str, value, expected: str) -> None:
  if not valid:
    raise ValueError(f'expected {name} to be {expected}, got {value!r}')


def _require_room(image: np.ndarray, size: Size, operation: str) -> None:
  if image.shape[0] < size[0] or image.shape[1] < size[1]:
    raise ValueError(
        f'{operation} to (rows, columns) {size} needs an image at least as large, got '
        f"{image.shape[:2]}. Put 'resize_small({max(size)})' before it.")


# As in Pillow and timm, bicubic is Keys' with a = -0.5.
_INTERPOLATIONS = {
    'bicubic': Image.Resampling.BICUBIC,
    'bilinear': Image.Resampling.BILINEAR,
}

TRANSFORMS = {
    'affine': affine,
    'central_crop': central_crop,
    'color_jitter': color_jitter,
    'flip': flip,
    'inception_crop': inception_crop,
    'pad_crop': pad_crop,
    'randaugment': randaugment,
    'random_crop': random_crop,
    'random_erasing': random_erasing,
    'resize': resize,
    'resize_small': resize_small,
    'trivial_augment': trivial_augment,
}

# Operations that take a Picture; any other gets its pixels.
DECODE_PARTS = frozenset({'inception_crop'})
