"""Operations on the colours of Pillow images, mode L or RGB: each returns a new image.

A `factor` blends: 0 gives the degenerate image that is named, 1 the image itself, more than 1 leads
away from the degenerate one. Results are cut off below, not rounded, as Pillow's and TensorFlow's.
"""

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from vit_jax.data.images.pillow import from_pillow, to_pillow


def autocontrast(image: Image.Image) -> Image.Image:
  """Stretches each channel's values to 0..255."""
  extrema = [image.getextrema()] if image.mode == 'L' else image.getextrema()
  values = np.arange(256, dtype=np.float32)
  tables = []
  for low, high in extrema:
    scale = np.float32(255) / np.float32(max(high - low, 1))
    tables += [values if high == low else np.clip(values * scale - low * scale, 0, 255)]
  return _looked_up(image, *tables)


def brightness(image: Image.Image, factor: float) -> Image.Image:
  """Blends with black."""
  values = np.clip(np.arange(256, dtype=np.float32) * np.float32(factor), 0, 255)
  return _looked_up(image, *[values] * len(image.getbands()))


def contrast(image: Image.Image, factor: float, grey: int | None = None) -> Image.Image:
  """Blends with one grey, 0..255: by default the mean luma of the image, rounded."""
  grey = int(_mean_luma(image) + 0.5) if grey is None else grey
  values = np.clip(grey + np.float32(factor) * (np.arange(256, dtype=np.float32) - grey), 0, 255)
  return _looked_up(image, *[values] * len(image.getbands()))


def equalize(image: Image.Image) -> Image.Image:
  """Makes each channel's histogram as flat as a monotonic map can."""
  return ImageOps.equalize(image)


def hue(image: Image.Image, turn: float) -> Image.Image:
  """Turns the hue by `turn` of the colour circle, -0.5..0.5; a grey image keeps its pixels."""
  if image.mode == 'L' or turn == 0:
    return image
  hues, saturation, value = image.convert('HSV').split()
  turned = (np.arange(256) + round(turn * 256)) % 256  # Pillow has 256 hues.
  return Image.merge('HSV', (hues.point(turned.tolist()), saturation, value)).convert('RGB')


def invert(image: Image.Image) -> Image.Image:
  """255 minus each value."""
  return ImageOps.invert(image)


def posterize(image: Image.Image, bits: int) -> Image.Image:
  """Keeps the highest bits, 1..8, of each value."""
  return ImageOps.posterize(image, bits)


def saturation(image: Image.Image, factor: float) -> Image.Image:
  """Blends with the image's own luma (ITU-R BT.601); a grey image keeps its pixels."""
  return image if image.mode == 'L' else ImageEnhance.Color(image).enhance(factor)


def sharpness(image: Image.Image, factor: float) -> Image.Image:
  """Blends with the image smoothed by the 3x3 kernel of ones around a 5; the outermost pixels stay as they are."""
  return Image.blend(image.filter(ImageFilter.SMOOTH), image, factor)


def solarize(image: Image.Image, threshold: int) -> Image.Image:
  """Inverts the values at or above `threshold`, 0..256."""
  return ImageOps.solarize(image, threshold)


def solarize_add(image: Image.Image, addition: int) -> Image.Image:
  """Adds to the values below 128, up to 255."""
  values = np.arange(256)
  values = np.where(values < 128, np.clip(values + addition, 0, 255), values)
  return _looked_up(image, *[values] * len(image.getbands()))


def color_jitter(size, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0):
  """Changes colours at random, one after the other in random order.

  The ranges are those of torchvision's ColorJitter: each factor is uniform in 1 - x..1 + x, not below 0.

  Args:
    size: not looked at.
    brightness, contrast, saturation: x of the blend with black, with the mean grey, with the luma, 0 or more.
    hue: the turn of the hue is uniform in -hue..hue of the colour circle, 0..0.5.
  """
  del size
  strengths = dict(brightness=brightness, contrast=contrast, saturation=saturation, hue=hue)
  for name, strength in strengths.items():
    if not 0 <= strength <= (0.5 if name == 'hue' else float('inf')):
      raise ValueError(f"expected {name} to be {'0..0.5' if name == 'hue' else 'at least 0'}, got {strength!r}")
  names = [name for name, strength in strengths.items() if strength > 0]

  def transform(image, rng):
    if not names:
      return image
    changed = to_pillow(image)
    for name, draw in zip(rng.permutation(names), 2 * rng.random(len(names)) - 1):
      change = strengths[name] * draw
      changed = _JITTERED[name](changed, change if name == 'hue' else max(0.0, 1 + change))
    return from_pillow(changed)

  return transform


def _mean_luma(image: Image.Image) -> float:
  counts = np.array(image.convert('L').histogram())
  return counts @ np.arange(256) / counts.sum()


def _looked_up(image: Image.Image, *tables: np.ndarray) -> Image.Image:
  """Maps values by a table of 256 numbers, 0..255, for each channel."""
  return image.point(np.concatenate(tables).astype(np.uint8).tolist())


# The functions, where color_jitter's arguments take their names.
_JITTERED = {'brightness': brightness, 'contrast': contrast, 'hue': hue, 'saturation': saturation}
