"""Color operations on Pillow images of mode L or RGB; each returns a new image.

A `factor` blends: 0 gives the degenerate image named in the docstring, 1 the image itself, and more than 1 moves away
from the degenerate image. Results are truncated, not rounded, as in Pillow and TensorFlow.
"""
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from vit_jax.data.images.pillow import from_pillow, to_pillow
from vit_jax.data.transforms.base import Size, Transform, require


def autocontrast(image: Image.Image) -> Image.Image:
  """Stretch each channel's values to 0..255."""
  values = np.arange(256, dtype=np.float32)
  tables = []
  extrema: Any = image.getextrema()  # one pair, or one per channel
  for low, high in [extrema] if image.mode == 'L' else extrema:
    scale = np.float32(255) / np.float32(max(high - low, 1))
    tables += [values if high == low else np.clip(values * scale - low * scale, 0, 255)]
  return _look_up(image, *tables)


def brightness(image: Image.Image, factor: float) -> Image.Image:
  """Blend with black."""
  values = np.clip(np.arange(256, dtype=np.float32) * np.float32(factor), 0, 255)
  return _look_up(image, *[values] * len(image.getbands()))


def contrast(image: Image.Image, factor: float, gray: int | None = None) -> Image.Image:
  """Blend with one gray, 0..255; by default the mean luma of the image, rounded."""
  gray = int(_mean_luma(image) + 0.5) if gray is None else gray
  values = np.clip(gray + np.float32(factor) * (np.arange(256, dtype=np.float32) - gray), 0, 255)
  return _look_up(image, *[values] * len(image.getbands()))


def equalize(image: Image.Image) -> Image.Image:
  """Make each channel's histogram as flat as a monotonic map can."""
  return ImageOps.equalize(image)


def hue(image: Image.Image, turn: float) -> Image.Image:
  """Rotate the hue by `turn` of the color circle, -0.5..0.5; a grayscale image is unchanged."""
  if image.mode == 'L' or turn == 0:
    return image
  hues, saturation, value = image.convert('HSV').split()
  turned = (np.arange(256) + round(turn * 256)) % 256  # Pillow has 256 hues.
  return Image.merge('HSV', (hues.point(turned.tolist()), saturation, value)).convert('RGB')


def invert(image: Image.Image) -> Image.Image:
  """Replace each value by 255 minus it."""
  return ImageOps.invert(image)


def posterize(image: Image.Image, bits: int) -> Image.Image:
  """Keep the highest `bits`, 1..8, of each value."""
  return ImageOps.posterize(image, bits)


def saturation(image: Image.Image, factor: float) -> Image.Image:
  """Blend with the image's own luma (ITU-R BT.601); a grayscale image is unchanged."""
  return image if image.mode == 'L' else ImageEnhance.Color(image).enhance(factor)


def sharpness(image: Image.Image, factor: float) -> Image.Image:
  """Blend with the image smoothed by a 3x3 kernel of ones around a 5; the outermost pixels are not smoothed."""
  return Image.blend(image.filter(ImageFilter.SMOOTH), image, factor)


def solarize(image: Image.Image, threshold: int) -> Image.Image:
  """Invert the values at or above `threshold`, 0..256."""
  return ImageOps.solarize(image, threshold)


def solarize_add(image: Image.Image, addition: int) -> Image.Image:
  """Add `addition` to the values below 128; results are at most 255."""
  values = np.arange(256)
  values = np.where(values < 128, np.clip(values + addition, 0, 255), values)
  return _look_up(image, *[values] * len(image.getbands()))


def color_jitter(size: Size, brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0,
                 hue: float = 0.0) -> Transform:
  """Change brightness, contrast, saturation and hue at random, one after the other in random order.

  The ranges are those of torchvision's ColorJitter: each factor is uniform in 1 - x..1 + x, and at least 0.

  Args:
    size: not used.
    brightness, contrast, saturation: x of the blend with black, with the mean gray, with the luma; 0 or more.
    hue: the rotation of the hue is uniform in -hue..hue of the color circle, 0..0.5.
  """
  del size
  strengths = dict(brightness=brightness, contrast=contrast, saturation=saturation, hue=hue)
  for name, strength in strengths.items():
    limit, expected = (0.5, '0..0.5') if name == 'hue' else (float('inf'), 'at least 0')
    require(0 <= strength <= limit, name, strength, expected)
  names = [name for name, strength in strengths.items() if strength > 0]

  def transform(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if not names:
      return image
    changed = to_pillow(image)
    for name, draw in zip(rng.permutation(names), 2 * rng.random(len(names)) - 1, strict=True):
      change = strengths[name] * draw
      changed = _JITTER[name](changed, change if name == 'hue' else max(0.0, 1 + change))
    return from_pillow(changed)

  return transform


def _mean_luma(image: Image.Image) -> float:
  counts = np.array(image.convert('L').histogram())
  return counts @ np.arange(256) / counts.sum()


def _look_up(image: Image.Image, *tables: np.ndarray) -> Image.Image:
  """Map values by one table of 256 numbers, 0..255, per channel."""
  return image.point(np.concatenate(tables).astype(np.uint8).tolist())


# Inside color_jitter its arguments hide the functions of the same names.
_JITTER = {'brightness': brightness, 'contrast': contrast, 'hue': hue, 'saturation': saturation}
