"""Image files with changed pixels, as BMP: the pixels after a header, so it costs little."""
from collections.abc import Callable
import io

import numpy as np

from vit_jax.data.images import decode
from vit_jax.data.images.pillow import to_pillow


def to_bmp(pixels: np.ndarray) -> bytes:
  """Return the content of an image file with these pixels, (H, W, 1 or 3) uint8."""
  buffer = io.BytesIO()
  to_pillow(pixels).save(buffer, 'BMP')
  return buffer.getvalue()


def change(encoded: bytes, channels: int, function: Callable[[np.ndarray], np.ndarray]) -> bytes:
  """Return an image with changed pixels; one that cannot be decoded as it is, so that whoever decodes it names it.

  Args:
    encoded: content of an image file.
    channels: 1 (grayscale) or 3 (color).
    function: (H, W, channels) uint8 → the same of any height and width.
  """
  try:
    return to_bmp(function(decode.decode(encoded, channels)))
  except decode.DecodeError:
    return encoded
