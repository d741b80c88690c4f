"""Encoded image bytes to a uint8 array."""

import io

import numpy as np
from PIL import Image


def decode(encoded: bytes, channels: int) -> np.ndarray:
  """Decodes a PNG, JPEG, GIF (first frame), WebP, BMP or TIFF image.

  Whatever is stored becomes the channels asked for: palettes are looked up, greyscale is repeated,
  colour is weighted to greyscale (ITU-R 601), CMYK is converted, 16-bit values are scaled to
  0..255, and alpha is dropped, as TensorFlow's decoders do. An orientation noted in EXIF is not
  applied, again like TensorFlow, in whose pipelines the published models were trained.

  Args:
    encoded: the bytes of the file.
    channels: 1 or 3.

  Returns:
    (H, W, channels) uint8, 0..255; it may be read-only.

  Raises:
    ValueError: the bytes are no image that can be read, or `channels` is neither 1 nor 3.
  """
  if channels not in (1, 3):
    raise ValueError(f'Expected channels to be 1 (greyscale) or 3 (colour), got {channels!r}.')
  try:
    with Image.open(io.BytesIO(encoded)) as image:
      pixels = np.asarray(_convert(image, 'L' if channels == 1 else 'RGB'))
  # Pillow's plug-ins raise OSError, SyntaxError, ValueError, struct.error, ... for broken files.
  except Exception as error:
    raise ValueError(
        f'Expected an encoded image (PNG, JPEG, GIF, WebP, BMP, TIFF), got {len(encoded)} bytes '
        f'starting with {bytes(encoded[:12])!r} that cannot be decoded: '
        f'{type(error).__name__}: {error}') from error
  return pixels[:, :, None] if channels == 1 else pixels


def _convert(image: Image.Image, mode: str) -> Image.Image:
  if image.mode == mode:
    return image
  if image.mode.startswith('I'):
    # Pillow would clip 16-bit values at 255; 257 = 65535 / 255 keeps black and white in place.
    values = np.clip(np.asarray(image, np.int64), 0, 65535)
    image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
  elif image.mode == 'F':
    raise ValueError('the pixels are floats, whose range is not known')
  elif 'transparency' in image.info:
    image = image.convert('RGBA')  # Straight to RGB, Pillow warns about palettes with alpha.
  return image.convert(mode)
