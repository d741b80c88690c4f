"""Encoded image bytes to a uint8 array: JPEG by libjpeg-turbo, whatever else there is by Pillow."""

import io

import numpy as np
from PIL import ExifTags
from PIL import Image
from PIL import UnidentifiedImageError

from vit_jax.data.images import jpeg

# Only these are tried: among Pillow's others is PostScript, which would start a program.
FORMATS = ('BMP', 'GIF', 'JPEG', 'PNG', 'TIFF', 'WEBP')

# What the names of such files end in.
SUFFIXES = frozenset({'.bmp', '.gif', '.jfif', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp'})


class DecodeError(ValueError):
  """The bytes are no image that can be read to its end, or one with too many pixels."""


class Picture:
  """A JPEG whose pixels are decoded when they are asked for, and only as far as they are.

  `np.asarray(picture)` is the whole, `part` a part of it; both raise DecodeError where the file is damaged (a part: as
  far as it was read; that the file ends too early is always found).

  Attributes:
    shape: (H, W, channels) of the whole, turned upright where that is asked for.
  """

  def __init__(self, encoded: bytes, header: jpeg.Header, channels: int, upright: bool):
    self._encoded, self._header = encoded, header
    orientation = _read_orientation(encoded) if upright and header.noted else 1
    self._swap, self._flip_rows, self._flip_columns = _TURNED.get(orientation, _TURNED[1])
    size = (header.rows, header.columns)
    self.shape = (*(size[::-1] if self._swap else size), channels)

  def __array__(self, dtype=None, copy=None):
    pixels = self._decode(self._header.rows, scratch=False)
    return self._turn(pixels) if dtype is None else self._turn(pixels).astype(dtype)

  def part(self, top: int, left: int, rows: int, columns: int) -> np.ndarray:
    """The pixels of a rectangle, (rows, columns, channels) uint8.

    They are valid until this thread asks for the part of another picture: resize or copy them before.
    """
    height, width, _ = self.shape
    top = height - top - rows if self._flip_rows else top
    left = width - left - columns if self._flip_columns else left
    if self._swap:
      top, left, rows, columns = left, top, columns, rows
    pixels = self._decode(top + rows, scratch=True)
    return self._turn(pixels[top:top + rows, left:left + columns])

  def _decode(self, rows, scratch):
    try:
      return jpeg.decode(self._encoded, self._header, self.shape[-1], rows, scratch)
    except ValueError:  # Pillow mends what can be mended, or says what is wrong.
      return _decode_with_pillow(self._encoded, self.shape[-1], False)[:rows]

  def _turn(self, pixels):
    if not (self._swap or self._flip_rows or self._flip_columns):
      return pixels
    pixels = pixels.swapaxes(0, 1) if self._swap else pixels
    return np.ascontiguousarray(pixels[::-1 if self._flip_rows else 1, ::-1 if self._flip_columns else 1])


def open_image(encoded: bytes, channels: int, upright: bool = False) -> Picture | np.ndarray:
  """Opens an image as far as its `shape`: a Picture where parts can be decoded, else all its pixels.

  Args:
    encoded, channels, upright: as for `decode`.

  Raises:
    DecodeError, ValueError: as for `decode`; a Picture may also raise it when its pixels are asked for.
  """
  _check_channels(channels)
  header = jpeg.read_header(encoded)
  if header is None:
    return _decode_with_pillow(encoded, channels, upright)
  return Picture(encoded, header, channels, upright)


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
    DecodeError: the bytes are no image that can be read to its end, or it has more than twice
      `PIL.Image.MAX_IMAGE_PIXELS` (179 million) pixels, which is found before memory is taken for them.
    ValueError: `channels` is neither 1 nor 3.
  """
  return np.asarray(open_image(encoded, channels, upright))


def _decode_with_pillow(encoded, channels, upright):
  try:
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
      return to_array(image, channels, upright)
  # Pillow's plug-ins raise OSError, SyntaxError, ValueError, struct.error, ... for broken files.
  except Exception as error:
    known = not isinstance(error, UnidentifiedImageError)
    reason = f'{type(error).__name__}: {error}' if known else 'they are none of these'
    if isinstance(error, Image.DecompressionBombError):
      reason += '. Shrink the image; where it is to be trusted, raise PIL.Image.MAX_IMAGE_PIXELS'
    raise DecodeError(
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


def _read_orientation(encoded: bytes) -> int:
  try:
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
      return _orientation(image)
  except Exception:  # as above; what ails the image comes out when it is decoded
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

# The same as arrays: swap rows and columns, then flip rows, flip columns.
_TURNED = {
    1: (False, False, False), 2: (False, False, True), 3: (False, True, True), 4: (False, True, False),
    5: (True, False, False), 6: (True, False, True), 7: (True, True, True), 8: (True, True, False),
}
