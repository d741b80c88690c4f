"""Names what images show: `python -m vit_jax.predict --model=runs/flowers photo.jpg photos/`.

The model is a workdir, a file or a name that `vit_jax.load` takes; images are prepared as it was trained to see them.
Folders are searched for images, links to folders aside. Prints a table, or with --json an object a line, or --csv.
Images that cannot be read are named on standard error, the others are still predicted, and the exit status is 1.
"""
import csv
import json
import os
import sys

from absl import app
from absl import flags
from etils import epath
import numpy as np
from tqdm import tqdm

from vit_jax.run import cli as commands
from vit_jax.data.sources.folder import list_folder


def run(source, arguments, *, form='table', top=5, batch_size=32, loss=None, average=False, step=None):
  """Predicts and prints to standard output.

  Args:
    source: of the model, see `vit_jax.load`.
    arguments: images, and folders to search for images.
    form: a name of FORMS.
    top: how many classes of each image to print.
    batch_size: images the model sees at once.
    loss: 'softmax' or 'sigmoid'; None is what a workdir was trained with, and softmax for other models.
    average: of a workdir, predict with the moving average of the parameters.
    step: of a workdir, which checkpoint; None is the latest.

  Returns:
    How many images could not be read.

  Raises:
    ValueError: nothing to predict, a folder without images, a number that is not positive, or a bad model.
  """
  if top < 1 or batch_size < 1:
    raise ValueError(f'expected --top and --batch_size to be at least 1, got {top} and {batch_size}')
  images = [image for argument in arguments for image in find_images(argument)]
  if not images:
    raise ValueError('name at least one image or folder: python -m vit_jax.predict --model=MODEL photo.jpg photos/')
  commands.prepare()  # after the cheap checks: jax takes seconds
  import vit_jax
  from vit_jax.inference import predict as inference
  model = vit_jax.load(source, average=average, step=step)
  names = [str(label) for label in range(model.num_classes or 0)] if model.class_names is None else model.class_names
  write, unreadable = FORMS[form](images, names), 0
  outcomes = inference.stream(model, images, batch_size, loss or recorded_loss(source))
  # disable=None: no bar where stderr is no terminal. Printing goes through it, so that lines and bar do not mix.
  for image, outcome in tqdm(outcomes, total=len(images), unit='image', disable=None, leave=False):
    if isinstance(outcome, Exception):
      unreadable += 1
      tqdm.write(f'error: {image}: {outcome}', file=sys.stderr)
    else:
      labels = np.argsort(-outcome, kind='stable')[:top]
      for line in write(image, [(int(label), names[label], float(outcome[label])) for label in labels]):
        tqdm.write(line, file=sys.stdout)
  if unreadable:
    print(f'{unreadable} of {len(images)} images could not be read.', file=sys.stderr)
  return unreadable


def find_images(argument):
  """The images in a folder and the folders in it, sorted, hidden ones aside; anything else is taken for an image."""
  path = epath.Path(argument).expanduser()
  if not path.is_dir():
    return [argument]
  found = [os.fspath(image) for image in _below(path)]
  if not found:
    raise ValueError(f'there are no images in the folder {argument}')
  return found


def recorded_loss(source):
  """The loss that the run in a workdir was trained with; 'softmax' where the source is no workdir."""
  path = epath.Path(source).expanduser() / 'config.json'
  config = json.loads(path.read_text()) if path.exists() else {}
  return config['objective']['loss'] if 'objective' in config else 'softmax'


def _below(folder):
  listing = list_folder(folder)
  yield from (folder / image for image in listing.images)
  for name in listing.folders:
    if not os.path.islink(folder / name):  # a link may lead back up
      yield from _below(folder / name)


def _table(images, names):
  """Aligned columns, the image on the first of its lines."""
  wide, wider = max(map(len, images)), max(map(len, ['class', *names]))
  header = [f'{"image":{wide}}  {"class":{wider}}  probability']

  def write(image, best):
    lines = [f'{image if rank == 0 else "":{wide}}  {name:{wider}}  {probability:11.4f}'
             for rank, (_, name, probability) in enumerate(best)]
    lines, header[:] = [*header, *lines], []
    return lines

  return write


def _json(images, names):
  """One object a line."""
  del images, names
  return lambda image, best: [json.dumps({'image': image, 'predictions': [
      {'label': label, 'class': name, 'probability': probability} for label, name, probability in best]},
                                         ensure_ascii=False)]


class _Csv:
  """Lines with a header; rank counts from 1."""

  def __init__(self, images, names):
    del images, names
    self._lines, self._writer = [], csv.writer(self, lineterminator='')
    self._writer.writerow(['image', 'rank', 'label', 'class', 'probability'])

  def write(self, line):
    """What csv.writer calls."""
    self._lines.append(line)

  def __call__(self, image, best):
    for rank, (label, name, probability) in enumerate(best, 1):
      self._writer.writerow([image, rank, label, name, probability])
    lines, self._lines = self._lines, []
    return lines


FORMS = {'csv': _Csv, 'json': _json, 'table': _table}


def main(argv):
  """Predicts; the exit status is 1 if an image could not be read."""
  values = flags.FLAGS
  if values.json and values.csv:
    raise app.UsageError('choose one of --json and --csv')
  form = 'json' if values.json else 'csv' if values.csv else 'table'
  unreadable = commands.call(lambda: run(
      values.model, argv[1:], form=form, top=values.top, batch_size=values.batch_size, loss=values.loss,
      average=values.average, step=values.step))
  return 1 if unreadable else 0


if __name__ == '__main__':  # flags are the process's: not on import, as from a test or notebook
  flags.DEFINE_string('model', None, 'Workdir of a run, file or name of a model.', required=True)
  flags.DEFINE_integer('top', 5, 'How many classes of each image to print.')
  flags.DEFINE_integer('batch_size', 32, 'Images the model sees at once.')
  flags.DEFINE_enum('loss', None, ['softmax', 'sigmoid'], 'What the model was trained with; known for a workdir.')
  flags.DEFINE_bool('average', False, 'Of a workdir, use the moving average of the parameters.')
  flags.DEFINE_integer('step', None, 'Of a workdir, which checkpoint; the latest by default.')
  flags.DEFINE_bool('json', False, 'Print one JSON object a line.')
  flags.DEFINE_bool('csv', False, 'Print comma-separated values.')
  app.run(main)
