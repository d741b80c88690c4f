"""Encoded image bytes to a uint8 array."""

import io

import numpy as np
from PIL import ExifTags
from PIL import Image
from PIL import UnidentifiedImageError

# Only these are tried: among Pillow's others is PostScript, which would start a program.
FORMATS = ('BMP', 'GIF', 'JPEG', 'PNG', 'TIFF', 'WEBP')

# What the names of such files end in.
SUFFIXES = frozenset({'.bmp', '.gif', '.jfif', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp'})


def decode(encoded: bytes, channels: int, upright: bool = False) -> np.ndarray:
  """Decodes a PNG, JPEG, GIF (first frame), WebP, BMP or TIFF image; see `to_array` for its pixels.

  Args:
    encoded: the bytes of the file.
    channels: 1 or 3.
    upright: turn and mirror the image as its EXIF says, as cameras and phones store photographs
      lying on their side. Folders of images and predictions do; TFDS data sets do not, like
      TensorFlow, in whose pipelines the published models were trained.

  Returns:
    (H, W, channels) uint8, 0..255; it may be read-only.

  Raises:
    ValueError: the bytes are no image that can be read to its end, it has more than twice
      `PIL.Image.MAX_IMAGE_PIXELS` (179 million) pixels, or `channels` is neither 1 nor 3.
  """
  _check_channels(channels)
  try:
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
      return to_array(image, channels, upright)
  # Pillow's plug-ins raise OSError, SyntaxError, ValueError, struct.error, ... for broken files.
  except Exception as error:
    known = not isinstance(error, UnidentifiedImageError)
    reason = f'{type(error).__name__}: {error}' if known else 'they are none of these'
    raise ValueError(
        f'Expected an encoded image (PNG, JPEG, GIF, WebP, BMP, TIFF), got {len(encoded)} bytes '
        f'starting with {bytes(encoded[:12])!r} that cannot be decoded: {reason}') from error


def to_array(image: Image.Image, channels: int, upright: bool = False) -> np.ndarray:
  """The pixels of a Pillow image.

  Whatever is stored becomes the channels asked for: palettes are looked up, greyscale is repeated,
  colour is weighted to greyscale (ITU-R 601), CMYK is converted (in JPEG it is taken as inverted,
  as Adobe writes it), 16-bit values are scaled to 0..255, and alpha is dropped, as TensorFlow's
  decoders do: the colour below a transparent pixel shows.

  Args:
    image: any mode but 'F'.
    channels: 1 or 3.
    upright: as for `decode`.

  Returns:
    (H, W, channels) uint8, 0..255; it may be read-only.

  Raises:
    ValueError: pixels without a known range, or `channels` is neither 1 nor 3.
  """
  _check_channels(channels)
  converted = _convert(image, 'L' if channels == 1 else 'RGB')
  # After the pixels are read: Pillow turns TIFF by itself then, and forgets the orientation.
  turn = _TURNS.get(_orientation(image)) if upright else None
  pixels = np.asarray(converted if turn is None else converted.transpose(turn))
  return pixels[:, :, None] if channels == 1 else pixels


def _convert(image: Image.Image, mode: str) -> Image.Image:
  image.load()
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


def _orientation(image: Image.Image) -> int:
  try:
    return image.getexif().get(ExifTags.Base.Orientation, 1)
  # Notes beside a good image may be broken in as many ways as Pillow has exceptions.
  except Exception:
    return 1


def _check_channels(channels: int) -> None:
  if channels not in (1, 3):
    raise ValueError(f'Expected channels to be 1 (greyscale) or 3 (colour), got {channels!r}.')


# EXIF 2.3, tag 0x0112: what shows the image as it was seen.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
