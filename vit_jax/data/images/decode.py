"""Encoded image bytes to uint8 arrays: JPEG by libjpeg-turbo, other formats by Pillow."""
import io

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from vit_jax.base.errors import UserError
from vit_jax.data.images import jpeg

# Only these are tried: Pillow also opens PostScript, for which it would start another program.
FORMATS = ('BMP', 'GIF', 'JPEG', 'PNG', 'TIFF', 'WEBP')

# An image may have this many pixels however small its file is; and more if its file is not small.
FREE_PIXELS, PIXELS_PER_BYTE = 1 << 25, 128

# Suffixes of files in these formats.
SUFFIXES = frozenset({'.bmp', '.gif', '.jfif', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp'})


class DecodeError(UserError):
  """The bytes are not an image, are truncated or damaged, or hold too many pixels."""


class Picture:
  """A JPEG whose pixels are decoded only when needed, and only as many rows as needed.

  `np.asarray(picture)` decodes all of it, `crop` a rectangle. Both raise DecodeError if the file is damaged (`crop`: as
  far as it had to read; a truncated file is always detected).

  Attributes:
    shape: (H, W, channels) of the whole image, after it is turned upright if `upright`.
  """

  def __init__(self, encoded: bytes, header: jpeg.Header, channels: int, upright: bool):
    self._encoded, self._header = encoded, header
    orientation = _read_orientation(encoded) if upright and header.has_metadata else 1
    self._swap, self._flip_rows, self._flip_columns = _ARRAY_TURNS.get(orientation, _ARRAY_TURNS[1])
    rows, columns = (header.columns, header.rows) if self._swap else (header.rows, header.columns)
    self.shape = (rows, columns, channels)

  def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
    pixels = self._decode(self._header.rows, reuse_buffer=False)
    return self._turn(pixels) if dtype is None else self._turn(pixels).astype(dtype)

  def crop(self, top: int, left: int, rows: int, columns: int) -> np.ndarray:
    """Return the pixels of a rectangle, (rows, columns, channels) uint8.

    They are valid only until this thread crops another picture: resize or copy them before.
    """
    height, width, _ = self.shape
    top = height - top - rows if self._flip_rows else top
    left = width - left - columns if self._flip_columns else left
    if self._swap:
      top, left, rows, columns = left, top, columns, rows
    pixels = self._decode(top + rows, reuse_buffer=True)
    return self._turn(pixels[top:top + rows, left:left + columns])

  def _decode(self, rows: int, reuse_buffer: bool) -> np.ndarray:
    try:
      return jpeg.decode(self._encoded, self._header, self.shape[-1], rows, reuse_buffer)
    except ValueError:  # Pillow repairs what it can, or reports what is wrong.
      return _decode_with_pillow(self._encoded, self.shape[-1], False)[:rows]

  def _turn(self, pixels: np.ndarray) -> np.ndarray:
    if not (self._swap or self._flip_rows or self._flip_columns):
      return pixels
    pixels = pixels.swapaxes(0, 1) if self._swap else pixels
    return np.ascontiguousarray(pixels[::-1 if self._flip_rows else 1, ::-1 if self._flip_columns else 1])


def open_image(encoded: bytes, channels: int, upright: bool = False) -> Picture | np.ndarray:
  """Open an image; its `shape` is known then.

  Args:
    encoded, channels, upright: as for `decode`.

  Returns:
    A Picture for most JPEGs, of which rectangles can be decoded; else all pixels, as from `decode`.

  Raises:
    DecodeError: as for `decode`; a Picture may also raise it later, when pixels are decoded.
  """
  _check_channels(channels)
  header = jpeg.read_header(encoded)
  if header is not None:
    _check_pixels(header.rows * header.columns, encoded)
  if header is None:
    return _decode_with_pillow(encoded, channels, upright)
  return Picture(encoded, header, channels, upright)


def decode(encoded: bytes, channels: int, upright: bool = False) -> np.ndarray:
  """Decode a PNG, JPEG, GIF (first frame), WebP, BMP or TIFF image; see `to_array` for how pixels are converted.

  Args:
    encoded: content of the file.
    channels: 1 (grayscale) or 3 (color).
    upright: rotate and flip the image by its EXIF orientation, as viewers do. Folders of images and predictions do
      this; TFDS datasets do not, because TensorFlow, in whose pipelines the published models were trained, does not.

  Returns:
    (H, W, channels) uint8, 0..255; it may be read-only.

  Raises:
    DecodeError: the bytes are not an image, are truncated or damaged, hold more than twice
      `PIL.Image.MAX_IMAGE_PIXELS` (179 million) pixels, or more than FREE_PIXELS and than PIXELS_PER_BYTE allow; which
      is detected before memory is allocated.
    UserError: `channels` is neither 1 nor 3.
  """
  return np.asarray(open_image(encoded, channels, upright))


def _decode_with_pillow(encoded: bytes, channels: int, upright: bool) -> np.ndarray:
  try:
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
      _check_pixels(image.width * image.height, encoded)
      return to_array(image, channels, upright)
  except DecodeError:
    raise
  # Pillow's plug-ins raise OSError, SyntaxError, ValueError, struct.error and others for broken files.
  except Exception as error:
    identified = not isinstance(error, UnidentifiedImageError)
    reason = f'{type(error).__name__}: {error}' if identified else 'unknown format'
    if isinstance(error, Image.DecompressionBombError):
      reason += '. Shrink the image, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it'
    raise DecodeError(
        f'expected an encoded image (PNG, JPEG, GIF, WebP, BMP, TIFF), got {len(encoded)} bytes '
        f'starting with {bytes(encoded[:12])!r} that cannot be decoded: {reason}') from error


def to_array(image: Image.Image, channels: int, upright: bool = False) -> np.ndarray:
  """Return the pixels of a Pillow image.

  Any mode is converted to the requested channels: palettes are looked up, grayscale is repeated, color is weighted to
  grayscale (ITU-R 601), CMYK is converted (in JPEG it is taken as inverted, as Adobe writes it), 16-bit values are
  scaled to 0..255, and alpha is dropped as TensorFlow's decoders do: the color under a transparent pixel shows.

  Args:
    image: any mode but 'F'.
    channels: 1 or 3.
    upright: as for `decode`.

  Returns:
    (H, W, channels) uint8, 0..255; it may be read-only.

  Raises:
    UserError: the range of the pixels is unknown, or `channels` is neither 1 nor 3.
  """
  _check_channels(channels)
  converted = _convert(image, 'L' if channels == 1 else 'RGB')
  # After the pixels are read: Pillow turns TIFF upright by itself then, and drops the orientation.
  turn = _PILLOW_TURNS.get(_orientation(image)) if upright else None
  pixels = np.asarray(converted if turn is None else converted.transpose(turn))
  return pixels[:, :, None] if channels == 1 else pixels


def _convert(image: Image.Image, mode: str) -> Image.Image:
  image.load()
  if image.mode == mode:
    return image
  if image.mode.startswith('I'):
    # Pillow would clip 16-bit values at 255; 257 = 65535 / 255 keeps black and white in place.
    values = np.clip(np.asarray(image), 0, 65535).astype(np.uint32)
    image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
  elif image.mode == 'F':
    raise UserError('the pixels are floats, whose range is unknown')
  elif 'transparency' in image.info:
    image = image.convert('RGBA')  # Directly to RGB, Pillow warns about palettes with alpha.
  return image.convert(mode)


def _orientation(image: Image.Image) -> int:
  try:
    return image.getexif().get(ExifTags.Base.Orientation, 1)
  # Broken metadata of a good image raises as many kinds of exception as Pillow has.
  except Exception:
    return 1


def _read_orientation(encoded: bytes) -> int:
  try:
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
      return image.getexif().get(ExifTags.Base.Orientation, 1)
  except Exception:  # as above; a broken image is reported when it is decoded
    return 1


def _check_pixels(pixels: int, encoded: bytes) -> None:
  """Refuse a small file with so many pixels that a few of them exhaust the memory; photographs have fewer per byte."""
  if pixels > max(FREE_PIXELS, PIXELS_PER_BYTE * len(encoded)):
    raise DecodeError(f'{len(encoded):,} bytes claim to be an image of {pixels:,} pixels; at most {FREE_PIXELS:,}, or '
                      f'{PIXELS_PER_BYTE} per byte, are decoded. Shrink the image, or leave it out')


def _check_channels(channels: int) -> None:
  if channels not in (1, 3):
    raise UserError(f'channels: expected 1 (grayscale) or 3 (color), got {channels!r}')


# EXIF 2.3, tag 0x0112: the operation that shows the image as it was seen.
_PILLOW_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# The same for arrays: swap rows and columns, then flip rows, flip columns.
_ARRAY_TURNS = {
    1: (False, False, False), 2: (False, False, True), 3: (False, True, True), 4: (False, True, False),
    5: (True, False, False), 6: (True, False, True), 7: (True, True, True), 8: (True, True, False),
}
