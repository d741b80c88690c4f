"""Conversion between arrays and Pillow images."""
import numpy as np
from PIL import Image


def to_pillow(image: np.ndarray) -> Image.Image:
  """Return (H, W, 1 or 3) uint8 as a Pillow image of mode L or RGB."""
  return Image.fromarray(image[:, :, 0] if image.shape[-1] == 1 else image)


def from_pillow(image: Image.Image) -> np.ndarray:
  """Return a Pillow image of mode L or RGB as (H, W, 1 or 3) uint8."""
  pixels = np.asarray(image)
  return pixels[:, :, None] if pixels.ndim == 2 else pixels
