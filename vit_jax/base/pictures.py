"""Contact sheets, rows of small pictures with captions, drawn as one image; and empty figures of matplotlib."""
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vit_jax.base import files
from vit_jax.base.errors import UserError

Cell = tuple[np.ndarray, str]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_GAP = 6
_MIN_WIDTH = 96  # Pixels; narrower pictures are enlarged by a whole factor, without smoothing.
_LINE_HEIGHT = 15
_BACKGROUND, _INK = (255, 255, 255), (30, 30, 30)

_FORMATS = {'.png': 'PNG', '.jpg': 'JPEG', '.jpeg': 'JPEG'}


def draw(rows: Sequence[Sequence[Cell | None]], titles: Sequence[str] = ()) -> Image.Image:
  """Draw a contact sheet.

  Args:
    rows: lists of cells (picture, caption): (H, W, 1 or 3) uint8, and text that is printed below the picture; None is
      an empty cell.
    titles: column headings; may be empty.

  Returns:
    An RGB Pillow image.
  """
  font = ImageFont.load_default(size=12)
  grid = [[cell and (_enlarge(cell[0]), cell[1]) for cell in row] for row in rows]
  cells = [cell for row in grid for cell in row if cell]
  width = max(picture.width for picture, _ in cells)
  lines = max(len(caption.splitlines()) for _, caption in cells)
  height = max(picture.height for picture, _ in cells) + lines * _LINE_HEIGHT
  top = _LINE_HEIGHT + _GAP if titles else _GAP
  columns = max(map(len, grid))
  sheet = Image.new('RGB', (_GAP + columns * (width + _GAP), top + len(grid) * (height + _GAP)), _BACKGROUND)
  pen = ImageDraw.Draw(sheet)
  left = lambda column: _GAP + column * (width + _GAP)
  for column, title in enumerate(titles):
    pen.text((left(column), _GAP // 2), _shorten(title, width, font), _INK, font)
  for i, row in enumerate(grid):
    y = top + i * (height + _GAP)
    for j, cell in enumerate(row):
      if cell:
        picture, caption = cell
        sheet.paste(picture, (left(j), y))
        pen.text((left(j), y + picture.height), _shorten(caption, width, font), _INK, font, spacing=2)
  return sheet


def save(sheet: Image.Image, path: files.PathLike) -> None:
  """Write a picture as PNG or JPEG, by the suffix of `path`, whole or not at all; missing folders are made.

  Raises:
    UserError: another suffix.
    FileError: the file cannot be written.
  """
  target = files.expand(path)
  if target.suffix.lower() not in _FORMATS:
    raise UserError(f'{path}: the name of a picture must end in .png, .jpg or .jpeg')
  with files.replacing(target, 'the picture') as aside, aside.open('wb') as file:
    sheet.save(file, _FORMATS[target.suffix.lower()])


def check_matplotlib() -> None:
  """Raise UserError unless matplotlib, an optional package, is installed."""
  try:
    import matplotlib  # noqa: F401
  except ImportError as error:
    raise UserError("matplotlib: needed to draw figures, but not installed; pip install -e '.[plot]'") from error


def new_figure(width: float, height: float) -> Any:
  """Return an empty figure of matplotlib of this size in inches, without a window.

  Raises:
    UserError: matplotlib is not installed.
  """
  check_matplotlib()
  from matplotlib.figure import Figure
  return Figure(figsize=(width, height), layout='constrained')


def _enlarge(picture: np.ndarray) -> Image.Image:
  image = Image.fromarray(picture[:, :, 0] if picture.shape[-1] == 1 else picture).convert('RGB')
  factor = -(-_MIN_WIDTH // image.width)
  return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _shorten(caption: str, width: int, font: Font) -> str:
  """Return the caption with every line that is wider than `width` pixels cut and ended with an ellipsis."""
  lines = []
  for line in caption.split('\n'):
    shown = line
    while shown and font.getlength(shown + ('…' if shown != line else '')) > width:
      shown = shown[:-1]
    lines.append(shown if shown == line else shown + '…')
  return '\n'.join(lines)
