"""Crops: which rectangle of an image the model sees, in training and in evaluation."""
import math

import numpy as np

from vit_jax.base.errors import UserError
from vit_jax.data.images.decode import Picture
from vit_jax.data.transforms.base import PictureTransform, Size, Transform, require
from vit_jax.data.transforms.resize import interpolate


def inception_crop(size: Size, area: tuple[float, float] = (0.05, 1.0),
                   aspect: tuple[float, float] = (3 / 4, 4 / 3)) -> PictureTransform:
  """Resize a random rectangle of the image to `size`: the crop of Szegedy et al. 2015, section 6.

  The sampling is that of TensorFlow's `sample_distorted_bounding_box`, with which the published ViT were trained
  (vision_transformer and big_vision, `inception_crop`): the aspect ratio is uniform, then the height is uniform among
  those for which the area fits. After 100 failed attempts the whole image is taken.

  The transform also takes a `Picture`, of which it decodes no more rows than the crop needs.

  Args:
    size: (rows, columns) to resize to.
    area: smallest and largest fraction of the image's area, 0 < smallest <= largest <= 1.
    aspect: smallest and largest width / height, both positive.
  """
  smallest, largest = area
  narrowest, widest = aspect
  require(0 < smallest <= largest <= 1, 'area', area, '0 < smallest <= largest <= 1')
  require(0 < narrowest <= widest, 'aspect', aspect, '0 < smallest <= largest')

  def transform(image: np.ndarray | Picture, rng: np.random.Generator) -> np.ndarray:
    rows, columns = image.shape[:2]
    for _ in range(100):
      ratio = narrowest + (widest - narrowest) * rng.random()
      shape = _crop_shape(rows, columns, ratio, smallest, largest, rng.random())
      if shape:
        return interpolate(_crop_anywhere(image, shape, rng), size)
    return interpolate(np.asarray(image), size)

  return transform


def central_crop(size: Size) -> Transform:
  """Crop `size` from the center; if the margin is odd, the extra pixel is below and on the right.

  The transform raises UserError for an image smaller than `size`.
  """

  def transform(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    del rng
    _require_room(image, size, 'central_crop')
    top, left = (image.shape[0] - size[0]) // 2, (image.shape[1] - size[1]) // 2
    return image[top:top + size[0], left:left + size[1]]

  return transform


def random_crop(size: Size) -> Transform:
  """Crop `size` at a uniformly random position; the transform raises UserError for an image smaller than `size`."""

  def transform(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    _require_room(image, size, 'random_crop')
    return _crop_anywhere(image, size, rng)

  return transform


def pad_crop(size: Size, padding: int, fill: str = 'zero') -> Transform:
  """Add `padding` pixels on each side, then crop `size` at random: the CIFAR augmentation.

  Args:
    size: (rows, columns) to crop.
    padding: pixels, 0 or more.
    fill: value of the added pixels: 'zero', or 'edge' for the nearest pixel of the image.
  """
  require(isinstance(padding, int) and padding >= 0, 'padding', padding, 'pixels, an int >= 0')
  require(fill in ('edge', 'zero'), 'fill', fill, "'edge' or 'zero'")

  def transform(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    rows, columns, channels = image.shape
    padded_shape = (rows + 2 * padding, columns + 2 * padding, channels)
    if fill == 'zero':
      padded = np.zeros(padded_shape, np.uint8)
      padded[padding:padding + rows, padding:padding + columns] = image
    else:  # Indexing, because np.pad takes ten times as long on small images.
      row = np.arange(-padding, rows + padding).clip(0, rows - 1)
      column = np.arange(-padding, columns + padding).clip(0, columns - 1)
      padded = image[row[:, None], column]
    _require_room(padded, size, f'pad_crop({padding})')
    return _crop_anywhere(padded, size, rng)

  return transform


def _crop_shape(rows: int, columns: int, ratio: float, smallest: float, largest: float, uniform: float) -> Size | None:
  """Return (rows, columns) of a rectangle with width / height = ratio, or None if none fits.

  Args:
    rows, columns: size of the image.
    ratio: width / height.
    smallest, largest: bounds of the area, as fractions of the image's.
    uniform: number in [0, 1) that selects the height.
  """
  total = rows * columns
  lowest = round(math.sqrt(smallest * total / ratio))
  highest = min(round(math.sqrt(largest * total / ratio)), rows, int((columns + 0.5) / ratio))
  lowest = min(lowest, highest)
  chosen = lowest + int(uniform * (highest - lowest + 1))
  # Rounding can miss the bounds by less than a pixel row: like TensorFlow, try the neighbors too.
  for height in (chosen, chosen + 1, chosen - 1):
    width = round(height * ratio)
    fits = 0 < height <= rows and 0 < width <= columns
    if fits and smallest * total <= height * width <= largest * total:
      return height, width
  return None


def _crop_anywhere(image: np.ndarray | Picture, size: Size, rng: np.random.Generator) -> np.ndarray:
  """Return the pixels of a rectangle of `size` at a uniformly random position."""
  rows, columns = size
  top = int(rng.random() * (image.shape[0] - rows + 1))  # Takes a third of the time of rng.integers.
  left = int(rng.random() * (image.shape[1] - columns + 1))
  if isinstance(image, Picture):
    return image.crop(top, left, rows, columns)
  return image[top:top + rows, left:left + columns]


def _require_room(image: np.ndarray, size: Size, operation: str) -> None:
  if image.shape[0] < size[0] or image.shape[1] < size[1]:
    raise UserError(f'{operation}: expected an image of at least (rows, columns) {size}, got {image.shape[:2]}. '
                    f"Put 'resize_small({max(size)})' before it.")
