"""Files on what a classifier predicted: a table of the classes; the confusion matrix, as a table and a picture."""
from collections.abc import Iterable, Sequence
import csv
import importlib.util
import io
import math

from vit_jax.base import files, pictures
from vit_jax.base.errors import ExistingFileError, FileError
from vit_jax.base.text import printable_name
from vit_jax.evaluators.tally import Tally

METRICS = 'metrics.json'  # the command writes it last, beside the folders of the evaluators
# A picture of more classes cannot be read; numbers in its cells not either, of more than this.
MOST_CLASSES_OF_PICTURE, MOST_CLASSES_OF_NUMBERS = 50, 20
_MOST_LETTERS = 24


def write(tally: Tally, class_names: Sequence[str], directory: files.PathLike) -> list[str]:
  """Write per_class.csv and, if there is a confusion matrix, confusion.csv and for few classes confusion.png.

  Args:
    tally: of a split.
    class_names: one per class.
    directory: local or remote; made if missing.

  Returns:
    The names of the files. confusion.png is left out if matplotlib is not installed.

  Raises:
    FileError: a file cannot be written.
  """
  directory, written = files.expand(directory), ['per_class.csv']
  files.write(directory / 'per_class.csv', _per_class(tally, class_names), 'the table of classes')
  if tally.confusion is not None:
    rows = ([name, *counts] for name, counts in zip(class_names, tally.confusion.tolist(), strict=True))
    files.write(directory / 'confusion.csv', _csv(['label \\ prediction', *class_names], rows), 'the confusion matrix')
    written.append('confusion.csv')
    if len(class_names) <= MOST_CLASSES_OF_PICTURE and importlib.util.find_spec('matplotlib'):
      _draw_confusion(tally, class_names, directory / 'confusion.png')
      written.append('confusion.png')
  return written


def make_directory(path: files.PathLike) -> None:
  """Make a directory for tables if it is missing, before much work is done for it.

  Raises:
    ExistingFileError: something is there that no evaluation wrote.
    FileError: it cannot be made.
  """
  folder = files.expand(path)
  try:
    if folder.exists() and not (folder / METRICS).exists() and list(folder.iterdir()):
      raise ExistingFileError(f'--output: {path} holds other files than those of an evaluation; choose another folder')
    folder.mkdir(parents=True, exist_ok=True)
  except FileError:
    raise
  except OSError as error:
    raise FileError(f'{path}: cannot make the directory: {error}; choose another place') from error


def _per_class(tally: Tally, class_names: Sequence[str]) -> str:
  """Return the table of the classes; cells that are not defined are empty."""
  columns = dict(images=tally.support, predicted=tally.predicted, correct=tally.hits, recall=tally.recall,
                 precision=tally.precision, f1=tally.f1)
  cells = zip(*(column.tolist() for column in columns.values()), strict=True)
  rows = ([name, *('' if math.isnan(x) else x for x in row)] for name, row in zip(class_names, cells, strict=True))
  return _csv(['class', *columns], rows)


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
  stream = io.StringIO()
  writer = csv.writer(stream, lineterminator='\n')
  writer.writerow(map(printable_name, header))
  writer.writerows([printable_name(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
  return stream.getvalue()


def _draw_confusion(tally: Tally, class_names: Sequence[str], path: files.PathLike) -> None:
  """Draw the shares of each class's images, a row, by predicted class."""
  assert tally.confusion is not None
  shares = tally.confusion / tally.support.clip(min=1)[:, None]
  count = len(class_names)
  names = [_label(name) for name in class_names]
  size = 2.5 + max(0.25 * count, 3.0)
  figure = pictures.new_figure(size + 0.8, size)
  axes = figure.subplots()
  image = axes.imshow(shares, cmap='Blues', vmin=0.0, vmax=1.0)
  axes.set_xticks(range(count), names, rotation=90, fontsize=8)
  axes.set_yticks(range(count), names, fontsize=8)
  axes.set_xlabel('predicted class')
  axes.set_ylabel('class')
  axes.set_title("share of each class's images, in %", fontsize=10)
  if count <= MOST_CLASSES_OF_NUMBERS:
    for row in range(count):
      for column in range(count):
        if tally.confusion[row, column]:
          axes.text(column, row, f'{100 * shares[row, column]:.0f}', ha='center', va='center', fontsize=7,
                    color='white' if shares[row, column] > 0.5 else 'black')
  bar = figure.colorbar(image, ax=axes, fraction=0.046)
  bar.set_ticks([0.0, 0.5, 1.0], labels=['0', '50', '100'])
  with files.replacing(path, 'the picture') as aside, aside.open('wb') as file:
    figure.savefig(file, format='png', dpi=150)


def _label(name: str) -> str:
  """Return a class name as matplotlib prints it: short, and no mathematics between dollar signs."""
  name = printable_name(name)
  short = name if len(name) <= _MOST_LETTERS else name[:_MOST_LETTERS - 1] + '…'
  return short.replace('$', r'\$')
