"""Many small pictures with captions on one: rows of cells."""

import os
import pathlib

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_GAP = 6
_SMALLEST = 96  # Pixels that a picture is at least wide; smaller ones are enlarged, pixels as squares.
_LINE = 15
_BACKGROUND, _INK = (255, 255, 255), (30, 30, 30)


def draw(rows, titles=()):
  """Draws a sheet.

  Args:
    rows: lists of cells, (picture, caption): (H, W, 1 or 3) uint8 and text whose lines stand below the picture; or
      None, an empty cell.
    titles: of the columns, above them; or none.

  Returns:
    An RGB Pillow image.
  """
  font = ImageFont.load_default(size=12)
  rows = [[cell and (_enlarged(cell[0]), cell[1]) for cell in row] for row in rows]
  everything = [picture for row in rows for picture, _ in filter(None, row)]
  width = max(picture.width for picture in everything)
  lines = max(len(caption.splitlines()) for row in rows for _, caption in filter(None, row))
  height = max(picture.height for picture in everything) + lines * _LINE
  top = _LINE + _GAP if titles else _GAP
  columns = max(map(len, rows))
  sheet = Image.new('RGB', (_GAP + columns * (width + _GAP), top + len(rows) * (height + _GAP)), _BACKGROUND)
  pen = ImageDraw.Draw(sheet)
  place = lambda row, column: (_GAP + column * (width + _GAP), top + row * (height + _GAP))
  for column, title in enumerate(titles):
    pen.text((place(0, column)[0], _GAP // 2), _fitted(title, width, font), _INK, font)
  for i, row in enumerate(rows):
    for j, (picture, caption) in ((j, cell) for j, cell in enumerate(row) if cell):
      x, y = place(i, j)
      sheet.paste(picture, (x, y))
      pen.text((x, y + picture.height), _fitted(caption, width, font), _INK, font, spacing=2)
  return sheet


def save(sheet, path):
  """Writes a PNG or JPEG, by the name's end, aside, and then gives it its name; folders are made.

  Raises:
    ValueError: a name that ends otherwise.
    OSError: it cannot be written there.
  """
  path = pathlib.Path(path).expanduser()
  if path.suffix.lower() not in ('.png', '.jpg', '.jpeg'):
    raise ValueError(f'expected a picture to end with .png, .jpg or .jpeg, got {str(path)!r}')
  aside = path.with_name(f'.{os.getpid()}.{path.name}')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(aside)
    aside.replace(path)
  except OSError as error:
    raise OSError(f'cannot write the picture {path}: {error}; choose another place') from error
  finally:
    aside.unlink(missing_ok=True)


def _enlarged(picture: np.ndarray) -> Image.Image:
  image = Image.fromarray(picture[:, :, 0] if picture.shape[-1] == 1 else picture).convert('RGB')
  times = -(-_SMALLEST // image.width)
  return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)


def _fitted(caption, width, font):
  """Cuts lines off where they are wider than a picture."""
  lines = []
  for line in caption.split('\n'):
    shown = line
    while shown and font.getlength(shown + ('…' if shown != line else '')) > width:
      shown = shown[:-1]
    lines.append(shown if shown == line else shown + '…')
  return '\n'.join(lines)
