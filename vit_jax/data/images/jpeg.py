"""JPEG decoding by libjpeg-turbo, down to the last row that is needed.

Most of the decoding time goes into the entropy code, a stream that cannot be entered in the middle. Rows above a crop
must be read, but rows below it need not be: we lower the height in the frame header, and libjpeg-turbo stops there. The
pixels are those of a full decode with the accurate inverse DCT and smooth chroma upsampling, bit for bit.
"""
import threading
from typing import NamedTuple

import numpy as np
from PIL import Image
import simplejpeg


class Header(NamedTuple):
  """The frame header of a JPEG (ITU-T T.81, B.2.2), as far as partial decoding needs it.

  Attributes:
    rows, columns: size as stored, in pixels.
    height_offset: position of the two bytes that hold `rows`.
    can_stop_early: whether decoding can stop before the last row: one scan holds everything (not progressive).
    context_rows: number of rows below a row that its smooth chroma upsampling reads.
    has_metadata: whether there is an APP1 segment (EXIF, XMP), which may hold an orientation.
  """
  rows: int
  columns: int
  height_offset: int
  can_stop_early: bool
  context_rows: int
  has_metadata: bool


def read_header(encoded: bytes) -> Header | None:
  """Return the header, or None if this is not a JPEG, or one that Pillow has to decode.

  Pillow gets 12-bit, lossless, arithmetic-coded and CMYK files, files that end before their pixels, and those with more
  pixels than it would decode (it reports the error).
  """
  if encoded[:3] != b'\xff\xd8\xff':
    return None
  position, frame, has_metadata = 2, None, False
  while position + 4 <= len(encoded) and encoded[position] == 0xFF:
    marker, size = encoded[position + 1], int.from_bytes(encoded[position + 2:position + 4], 'big')
    if marker == _SCAN:
      return None if frame is None else _parse_frame(encoded, frame, has_metadata, encoded[position + 4])
    if marker in _FRAMES:
      frame = position
    has_metadata = has_metadata or marker == _APP1
    position += 1 if marker == 0xFF else 2 + size  # 0xFF before a marker is padding
  return None


def decode(encoded: bytes, header: Header, channels: int, rows: int, reuse_buffer: bool = False) -> np.ndarray:
  """Decode the first `rows` rows.

  Args:
    encoded: content of the file.
    header: result of `read_header`.
    channels: 1 for the stored luma, or 3 for RGB.
    rows: 1..header.rows.
    reuse_buffer: whether the result may be in memory that this thread's next such call overwrites. Fresh memory costs
      page faults, a tenth of the decoding time.

  Returns:
    (rows, header.columns, channels) uint8.

  Raises:
    ValueError: the data that was read is damaged, or the file is truncated anywhere.
  """
  stop = min(rows + header.context_rows, header.rows) if header.can_stop_early else header.rows
  lowered = stop < header.rows
  if lowered:
    offset = header.height_offset
    encoded = b''.join((encoded[:offset], stop.to_bytes(2, 'big'), memoryview(encoded)[offset + 2:]))
  size = stop * header.columns * channels
  buffer = _thread_buffer(size) if reuse_buffer else np.empty(size, np.uint8)
  try:
    simplejpeg.decode_jpeg(encoded, 'GRAY' if channels == 1 else 'RGB', buffer=buffer)
  except ValueError as error:
    # Bytes left over after the last row are expected here. libjpeg reports only the first problem, so there is no
    # other.
    if not (lowered and str(error).endswith(_LEFT_OVER)):
      raise
  return buffer[:size].reshape(stop, header.columns, channels)[:rows]


def _parse_frame(encoded: bytes, frame: int, has_metadata: bool, components_in_scan: int) -> Header | None:
  precision, components = encoded[frame + 4], encoded[frame + 9]
  rows, columns = (int.from_bytes(encoded[frame + at:frame + at + 2], 'big') for at in (5, 7))
  limit = Image.MAX_IMAGE_PIXELS
  if precision != 8 or components not in (1, 3) or not rows * columns or (limit and rows * columns > 2 * limit):
    return None
  max_vertical_sampling = max(encoded[frame + 11 + 3 * i] & 15 for i in range(components))
  can_stop_early = encoded[frame + 1] != _PROGRESSIVE and components_in_scan == components
  return Header(rows, columns, frame + 5, can_stop_early, 2 if max_vertical_sampling > 1 else 0, has_metadata)


def _thread_buffer(size: int) -> np.ndarray:
  """Return this thread's buffer, of `size` bytes or more; very large ones are not kept."""
  if size > _MAX_KEPT_BYTES:
    return np.empty(size, np.uint8)
  if size > getattr(_LOCAL, 'size', 0):
    _LOCAL.buffer, _LOCAL.size = np.empty(size, np.uint8), size
  return _LOCAL.buffer


_SCAN, _APP1, _PROGRESSIVE = 0xDA, 0xE1, 0xC2
_FRAMES = (0xC0, 0xC1, _PROGRESSIVE)  # Huffman-coded: baseline, extended, progressive

_LEFT_OVER = 'extraneous bytes before marker 0xd9'

_MAX_KEPT_BYTES = 1 << 24  # 5.6 megapixels in color
_LOCAL = threading.local()
