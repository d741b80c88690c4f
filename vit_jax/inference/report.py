"""Prints predictions as a table, JSON or CSV."""
from collections.abc import Callable, Iterable, Sequence
import csv
import json
import sys

import numpy as np
from tqdm import tqdm

from vit_jax.base.choices import choose
from vit_jax.base.text import count, printable, printable_name
from vit_jax.inference.predict import Outcome, describe_error

# (label, class name, probability), most probable first.
Best = list[tuple[int, str, float]]
# Returns the lines to print for one image.
Writer = Callable[[str, Best], list[str]]


def print_predictions(outcomes: Iterable[Outcome], images: Sequence[str], class_names: Sequence[str], form: str,
                      top: int) -> int:
  """Print the most probable classes of each image, and on standard error which images could not be read.

  Args:
    outcomes: one per image, as `predict.stream` yields them.
    images: all images, in the same order.
    class_names: one per class.
    form: a name of FORMS.
    top: how many classes per image.

  Returns:
    How many images could not be read.
  """
  write, unreadable = choose(FORMS, form, 'form')(images, class_names), 0
  # disable=None: no progress bar unless stderr is a terminal. Printing through tqdm keeps lines and bar apart.
  progress = tqdm(outcomes, total=len(images), unit='image', disable=None, leave=False)
  for image, (_, outcome) in zip(images, progress, strict=True):
    if isinstance(outcome, Exception):
      unreadable += 1
      tqdm.write(printable(f'error: {describe_error(image, outcome)}'), file=sys.stderr)
    else:
      labels = np.argsort(-outcome, kind='stable')[:top].tolist()
      best: Best = [(label, str(class_names[label]), float(outcome[label])) for label in labels]
      for line in write(image, best):
        tqdm.write(printable(line), file=sys.stdout)
  if unreadable:
    print(f'{unreadable:,} of {count(len(images), "image")} could not be read.', file=sys.stderr)
  return unreadable


def _table(images: Sequence[str], class_names: Sequence[str]) -> Writer:
  """Return a writer of aligned columns, the image on the first of its lines."""
  wide = max(len(printable_name(image)) for image in images)
  wider = max(len(printable_name(name)) for name in ['class', *class_names])
  header = [f'{"image":{wide}}  {"class":{wider}}  probability']

  def write(image: str, best: Best) -> list[str]:
    lines = [f'{printable_name(image) if rank == 0 else "":{wide}}  {printable_name(name):{wider}}  {probability:11.4f}'
             for rank, (_, name, probability) in enumerate(best)]
    lines, header[:] = [*header, *lines], []
    return lines

  return write


def _json(images: Sequence[str], class_names: Sequence[str]) -> Writer:
  """Return a writer of one JSON object per image."""
  del images, class_names

  def write(image: str, best: Best) -> list[str]:
    predictions = [{'label': label, 'class': name, 'probability': probability} for label, name, probability in best]
    return [json.dumps({'image': image, 'predictions': predictions}, ensure_ascii=False)]

  return write


class _Csv:
  """Writer of comma-separated values with a header; ranks count from 1."""

  def __init__(self, images: Sequence[str], class_names: Sequence[str]):
    del images, class_names
    self._lines: list[str] = []
    self._writer = csv.writer(self, lineterminator='')
    self._writer.writerow(['image', 'rank', 'label', 'class', 'probability'])

  def write(self, line: str) -> None:
    """Take a line from csv.writer."""
    self._lines.append(line)

  def __call__(self, image: str, best: Best) -> list[str]:
    for rank, (label, name, probability) in enumerate(best, 1):
      self._writer.writerow([image, rank, label, name, probability])
    lines, self._lines = self._lines, []
    return lines


FORMS: dict[str, Callable[[Sequence[str], Sequence[str]], Writer]] = {'csv': _Csv, 'json': _json, 'table': _table}
