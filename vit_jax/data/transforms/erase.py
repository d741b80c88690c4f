"""Operations that cover rectangles of an image."""
import math

import numpy as np
from PIL import Image

from vit_jax.data.transforms.base import Size, Transform, require


def cutout(image: Image.Image, half: int, fill: int, rng: np.random.Generator) -> Image.Image:
  """Cover a square with `fill` (arXiv 1708.04552).

  Args:
    image: mode L or RGB.
    half: half the side of the square, in pixels. Its center is anywhere in the image, and the edges cut it off.
    fill: new value of the pixels, 0..255.
    rng: chooses the center.
  """
  row, column = (int(rng.random() * length) for length in (image.height, image.width))
  covered = image.copy()
  box = (max(0, column - half), max(0, row - half), min(image.width, column + half), min(image.height, row + half))
  if half > 0:
    covered.paste((fill,) * 3 if image.mode == 'RGB' else fill, box)
  return covered


def random_erasing(size: Size, probability: float = 0.5, area: tuple[float, float] = (0.02, 0.4),
                   aspect: tuple[float, float] = (0.3, 1 / 0.3), mode: str = 'pixel') -> Transform:
  """Cover a rectangle that is entirely within the image: Zhong et al. 2017 (arXiv 1708.04896), algorithm 1.

  Args:
    size: not used.
    probability: of covering anything, 0..1.
    area: smallest and largest fraction of the image's area, 0 < smallest <= largest <= 1; uniform.
    aspect: smallest and largest height / width, both positive; uniform.
    mode: new value of the pixels: 'pixel', random values per pixel (the paper's RE-R, its best), or 'zero', black
      (RE-0).
  """
  del size
  require(0 <= probability <= 1, 'probability', probability, '0..1')
  require(0 < area[0] <= area[1] <= 1, 'area', area, '0 < smallest <= largest <= 1')
  require(0 < aspect[0] <= aspect[1], 'aspect', aspect, '0 < smallest <= largest')
  require(mode in ('pixel', 'zero'), 'mode', mode, "'pixel' or 'zero'")

  def transform(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if rng.random() >= probability:
      return image
    rows, columns = image.shape[:2]
    for _ in range(100):  # The paper tries without limit.
      pixels, ratio = rows * columns * _uniform(area, rng), _uniform(aspect, rng)
      shape = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
      if 0 < shape[0] <= rows and 0 < shape[1] <= columns:
        return _cover(image, shape, mode, rng)
    return image

  return transform


def _cover(image: np.ndarray, shape: Size, mode: str, rng: np.random.Generator) -> np.ndarray:
  top, left = (int(rng.random() * (length - side + 1)) for length, side in zip(image.shape[:2], shape, strict=True))
  box = slice(top, top + shape[0]), slice(left, left + shape[1])
  covered = image.copy()
  covered[box] = 0 if mode == 'zero' else rng.integers(0, 256, covered[box].shape, np.uint8)
  return covered


def _uniform(bounds: tuple[float, float], rng: np.random.Generator) -> float:
  return bounds[0] + (bounds[1] - bounds[0]) * rng.random()
