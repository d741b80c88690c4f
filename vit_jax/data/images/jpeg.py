"""JPEG by libjpeg-turbo: what the header says, and the pixels down to the last row that is needed.

Most of the time of decoding goes into the entropy code, a stream without marks to jump to. Rows above a crop must be read
through, but those below need not: the height in the frame header is lowered, and libjpeg-turbo stops there. Pixels are
those of a full decode with the accurate inverse DCT and smooth chroma upsampling, bit for bit.
"""
import threading
from typing import NamedTuple

import numpy as np
from PIL import Image
import simplejpeg


class Header(NamedTuple):
  """The frame header of a JPEG (ITU-T T.81, B.2.2), as far as decoding a part of it needs.

  Attributes:
    rows, columns: as stored, in pixels.
    at: position of the two bytes that hold `rows`.
    stops: whether decoding can stop before the last row: one scan holds everything (not progressive).
    context: rows below a row that its smooth chroma upsampling looks at.
    noted: whether there are notes (EXIF, XMP) that may hold an orientation.
  """
  rows: int
  columns: int
  at: int
  stops: bool
  context: int
  noted: bool


def read_header(encoded: bytes) -> Header | None:
  """Reads the header; None where it is no JPEG or one that is left to Pillow.

  Left are 12-bit, lossless and arithmetic-coded files, CMYK, files that are cut off before their pixels, and those with
  more pixels than Pillow would decode.
  """
  if encoded[:3] != b'\xff\xd8\xff':
    return None
  at, frame, noted = 2, None, False
  while at + 4 <= len(encoded) and encoded[at] == 0xFF:
    marker, size = encoded[at + 1], int.from_bytes(encoded[at + 2:at + 4], 'big')
    if marker == _SCAN:
      return None if frame is None else _header(encoded, frame, noted, encoded[at + 4])
    if marker in _FRAMES:
      frame = at
    noted = noted or marker == _APP1
    at += 1 if marker == 0xFF else 2 + size  # 0xFF before a marker is padding
  return None


def decode(encoded: bytes, header: Header, channels: int, rows: int, scratch: bool = False) -> np.ndarray:
  """Decodes the first `rows` rows.

  Args:
    encoded: the file.
    header: its header.
    channels: 1, luma as it is stored, or 3, RGB.
    rows: 1..header.rows.
    scratch: whether the result may lie in memory that this thread's next such call writes over. New memory costs page
      faults, a tenth of the time of decoding.

  Returns:
    (rows, header.columns, channels) uint8.

  Raises:
    ValueError: the data is damaged as far as it was read, or ends too early anywhere.
  """
  stop = min(rows + header.context, header.rows) if header.stops else header.rows
  lowered = stop < header.rows
  if lowered:
    encoded = b''.join((encoded[:header.at], stop.to_bytes(2, 'big'), memoryview(encoded)[header.at + 2:]))
  size = stop * header.columns * channels
  buffer = _scratch(size) if scratch else np.empty(size, np.uint8)
  try:
    simplejpeg.decode_jpeg(encoded, 'GRAY' if channels == 1 else 'RGB', buffer=buffer)
  except ValueError as error:
    # What is left over after the last row is the one thing that is as it should be. libjpeg tells the first trouble only.
    if not (lowered and str(error).endswith(_LEFT_OVER)):
      raise
  return buffer[:size].reshape(stop, header.columns, channels)[:rows]


def _header(encoded, frame, noted, components_in_scan):
  precision, components = encoded[frame + 4], encoded[frame + 9]
  rows, columns = (int.from_bytes(encoded[frame + at:frame + at + 2], 'big') for at in (5, 7))
  limit = Image.MAX_IMAGE_PIXELS
  if precision != 8 or components not in (1, 3) or not rows * columns or (limit and rows * columns > 2 * limit):
    return None
  tallest = max(encoded[frame + 11 + 3 * i] & 15 for i in range(components))  # vertical sampling factor
  stops = encoded[frame + 1] != _PROGRESSIVE and components_in_scan == components
  return Header(rows, columns, frame + 5, stops, 2 if tallest > 1 else 0, noted)


def _scratch(size):
  """This thread's buffer; a very large one is not kept."""
  if size > _KEPT:
    return np.empty(size, np.uint8)
  if size > getattr(_LOCAL, 'size', 0):
    _LOCAL.buffer, _LOCAL.size = np.empty(size, np.uint8), size
  return _LOCAL.buffer


_SCAN, _APP1, _PROGRESSIVE = 0xDA, 0xE1, 0xC2
_FRAMES = (0xC0, 0xC1, _PROGRESSIVE)  # Huffman-coded: baseline, extended, progressive

_LEFT_OVER = 'extraneous bytes before marker 0xd9'

_KEPT = 1 << 24  # bytes, 5.6 megapixels in colour
_LOCAL = threading.local()
