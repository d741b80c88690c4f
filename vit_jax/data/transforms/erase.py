"""Rectangles of an image that are covered."""

import math

import numpy as np
from PIL import Image


def cutout(image: Image.Image, half: int, fill: int, rng: np.random.Generator) -> Image.Image:
  """Covers a square of 2 · `half` pixels (arXiv 1708.04552) centred anywhere, cut off at the edges, with `fill`."""
  row, column = (int(rng.random() * length) for length in (image.height, image.width))
  covered = image.copy()
  box = (max(0, column - half), max(0, row - half), min(image.width, column + half), min(image.height, row + half))
  if half > 0:
    covered.paste((fill,) * 3 if image.mode == 'RGB' else fill, box)
  return covered


def random_erasing(size, probability=0.5, area=(0.02, 0.4), aspect=(0.3, 1 / 0.3), mode='pixel'):
  """Covers a rectangle that lies wholly within the image: Zhong et al. 2017 (arXiv 1708.04896), algorithm 1.

  Args:
    size: not looked at.
    probability: of covering anything, 0..1.
    area: smallest and largest part of the image's area, 0 < smallest <= largest <= 1; uniform.
    aspect: smallest and largest height / width, both positive; uniform.
    mode: what covers it: 'pixel', random values for each pixel (the paper's RE-R, its best), or 'zero', black (RE-0).
  """
  del size
  _check(probability, area, aspect, mode)

  def transform(image, rng):
    if rng.random() >= probability:
      return image
    rows, columns = image.shape[:2]
    for _ in range(100):  # the paper tries for ever
      pixels, ratio = rows * columns * _uniform(area, rng), _uniform(aspect, rng)
      shape = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
      if 0 < shape[0] <= rows and 0 < shape[1] <= columns:
        return _covered(image, shape, mode, rng)
    return image

  return transform


def _check(probability, area, aspect, mode):
  if not 0 <= probability <= 1:
    raise ValueError(f'expected probability to be 0..1, got {probability!r}')
  if not 0 < area[0] <= area[1] <= 1:
    raise ValueError(f'expected area to be 0 < smallest <= largest <= 1, got {area!r}')
  if not 0 < aspect[0] <= aspect[1]:
    raise ValueError(f'expected aspect to be 0 < smallest <= largest, got {aspect!r}')
  if mode not in ('pixel', 'zero'):
    raise ValueError(f"expected mode to be 'pixel' or 'zero', got {mode!r}")


def _covered(image, shape, mode, rng):
  top, left = (int(rng.random() * (length - side + 1)) for length, side in zip(image.shape, shape))
  box = slice(top, top + shape[0]), slice(left, left + shape[1])
  covered = image.copy()
  covered[box] = 0 if mode == 'zero' else rng.integers(0, 256, covered[box].shape, np.uint8)
  return covered


def _uniform(bounds, rng):
  return bounds[0] + (bounds[1] - bounds[0]) * rng.random()
