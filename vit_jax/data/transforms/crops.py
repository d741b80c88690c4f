"""Crops: which rectangle of an image the model sees, in training and in evaluation."""
import math

import numpy as np

from vit_jax.base.errors import UserError
from vit_jax.data.images.decode import Picture
from vit_jax.data.transforms.base import PictureTransform, Size, Transform, require, require_pixels
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


def central_crop(size: Size, rule: str = 'strict', fill: int | tuple[int, ...] = 0) -> Transform:
  """Crop `size` from the center.

  Args:
    size: (rows, columns) to crop.
    rule: where an odd margin goes, and what happens to an image smaller than `size`:
      'strict': the extra pixel is cut off below and on the right; the transform raises UserError for a smaller image.
      'torchvision': as torchvision's `CenterCrop` and timm do it: half of the margin is rounded to even; a smaller
        image is padded, with the extra pixel below and on the right.
      'huggingface': as transformers' Pillow backend does it: the extra pixel of a margin is cut off below and on the
        right; a smaller image is padded, with the extra pixel above and on the left.
    fill: grey level 0..255 of added pixels, or one per channel.
  """
  require(rule in _CROP_RULES, 'rule', rule, ' or '.join(map(repr, _CROP_RULES)))
  levels = fill if isinstance(fill, tuple) else (fill,)
  require(all(isinstance(level, int) and 0 <= level <= 255 for level in levels), 'fill', fill, 'grey levels, 0..255')
  half_margin, half_padding = _CROP_RULES[rule]

  def transform(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    del rng
    if rule == 'strict':
      _require_room(image, size, 'central_crop')
    missing = [max(side - found, 0) for side, found in zip(size, image.shape[:2], strict=True)]
    if any(missing):
      image = _pad(image, [half_padding(pixels) for pixels in missing], missing, fill)
    top, left = (half_margin(found - side) for side, found in zip(size, image.shape[:2], strict=True))
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
    require_pixels(*padded_shape[:2])
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


def _pad(image: np.ndarray, before: list[int], total: list[int], fill: int | tuple[int, ...]) -> np.ndarray:
  """Return the image with `total` (rows, columns) more, `before` of them above and on the left."""
  rows, columns, channels = image.shape
  require(isinstance(fill, int) or len(fill) == channels, 'fill', fill, f'one grey level, or {channels}')
  padded = np.empty((rows + total[0], columns + total[1], channels), np.uint8)
  padded[...] = fill
  padded[before[0]:before[0] + rows, before[1]:before[1] + columns] = image
  return padded


def _require_room(image: np.ndarray, size: Size, operation: str) -> None:
  if image.shape[0] < size[0] or image.shape[1] < size[1]:
    raise UserError(f'{operation}: expected an image of at least (rows, columns) {size}, got {image.shape[:2]}. '
                    f"Put 'resize_small({max(size)})' before it.")


# Half of a margin that is cut off, half of the pixels that are added: what goes above and on the left of them.
_CROP_RULES = {
    'strict': (lambda pixels: pixels // 2, lambda pixels: pixels // 2),
    'torchvision': (lambda pixels: round(pixels / 2), lambda pixels: pixels // 2),
    'huggingface': (lambda pixels: pixels // 2, lambda pixels: (pixels + 1) // 2),
}
