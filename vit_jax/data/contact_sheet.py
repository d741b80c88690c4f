"""A picture of pairs of images, side by side, for the eye to judge."""

from typing import Sequence

from etils import epath
import numpy as np
from PIL import Image
from PIL import ImageDraw

_CELL = 160  # Pixels an image is shown in.
_LINE = 14  # Pixels a line of text takes.
_ACROSS = 4  # Pairs in a row.


def draw(pairs: Sequence[tuple[np.ndarray, np.ndarray, Sequence[str]]]) -> Image.Image:
  """Draws pairs in a grid.

  Args:
    pairs: (image, image, lines of text below), images (H, W, 1 or 3) uint8; at least one.

  Returns:
    The sheet, RGB.
  """
  lines = max(len(text) for _, _, text in pairs)
  width, height = 2 * _CELL + 24, _CELL + _LINE * lines + 12
  rows = -(-len(pairs) // _ACROSS)
  sheet = Image.new('RGB', (width * min(_ACROSS, len(pairs)), height * rows), 'white')
  writer = ImageDraw.Draw(sheet)
  for index, (left, right, text) in enumerate(pairs):
    row, column = divmod(index, _ACROSS)
    x, y = column * width + 8, row * height + 4
    for shift, image in ((0, left), (_CELL + 4, right)):
      sheet.paste(_fitted(image), (x + shift, y))
    for number, line in enumerate(text):
      writer.text((x, y + _CELL + 2 + number * _LINE), line.encode('ascii', 'replace').decode()[:54], 'black')
  return sheet


def save(sheet: Image.Image, path: str) -> None:
  """Writes a sheet aside, in the format that the path's suffix says (PNG if none), and renames it."""
  target = epath.Path(path)
  form = Image.registered_extensions().get(target.suffix.lower(), 'PNG')
  aside = epath.Path(f'{path}.tmp')
  try:
    with aside.open('wb') as file:
      sheet.save(file, form)
    aside.replace(target)
  except OSError as error:
    raise OSError(f'Cannot write the sheet {path}: {error}. Choose another --sheet.') from error


def _fitted(pixels):
  """The image scaled to a cell, on grey; small ones keep sharp pixels."""
  image = Image.fromarray(pixels[:, :, 0] if pixels.shape[-1] == 1 else pixels).convert('RGB')
  scale = _CELL / max(image.size)
  size = [max(1, round(side * scale)) for side in image.size]
  image = image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX)
  cell = Image.new('RGB', (_CELL, _CELL), 'lightgrey')
  cell.paste(image, ((_CELL - size[0]) // 2, (_CELL - size[1]) // 2))
  return cell
