"""Analyze models on a folder of images and write a folder with pictures, numbers and a page."""
from collections.abc import Callable, Mapping, Sequence
import csv
import datetime
import io
import os
import pathlib
from typing import Any

from flax import nnx
import jax
import numpy as np
from tqdm import tqdm

import vit_jax
from vit_jax.analysis import inputs, measure
from vit_jax.analysis.report import page
from vit_jax.analysis.report.figures import FIGURES, Made, Study, Subject
from vit_jax.base import files
from vit_jax.base.choices import choose
from vit_jax.base.errors import ExistingFileError, UserError
from vit_jax.base.pictures import check_matplotlib
from vit_jax.base.text import count as count_of
from vit_jax.statistics import cka

PAGE, ARRAYS, TABLE = 'index.html', 'numbers.npz', 'numbers.csv'
EXAMPLES = 6  # images with a rollout


def check(names: Sequence[str], batch_size: int, output: str) -> None:
  """Raise UserError for an unknown figure, too small batches, or a folder that another program wrote."""
  for name in names:
    choose(FIGURES, name, '--figures')
  if batch_size < 1:
    raise UserError(f'--batch_size: must be at least 1, got {batch_size}')
  if 'cka' in names and batch_size < cka.FEWEST:
    raise UserError(f"--batch_size: the figure 'cka' compares at least {cka.FEWEST} images at once; got {batch_size}. "
                    'Leave out cka from --figures, or use larger batches')
  check_matplotlib()
  if files.is_remote(output):
    raise UserError(f'--output: expected a local folder, got {output}')
  _check_free(files.local(output))


def analyze(models: Mapping[str, Any], images: Sequence[str], names: Sequence[str], output: str, batch_size: int,
            say: Callable[[str], None] = print) -> dict[str, str]:
  """Analyze models and write the folder `output`, whole or not at all.

  Args:
    models: one loaded model, or two, by the name that titles have.
    images: paths.
    names: of FIGURES.
    output: folder to write; replaced if this function wrote it.
    batch_size: images that a model sees at once.
    say: takes lines about progress.

  Returns:
    {path: reason} of the images that could not be read.

  Raises:
    UserError: no image could be read.
  """
  source = inputs.Images(images, list(models.values()))
  study, paths = _study(models, source, names, batch_size)
  if not paths:
    raise UserError(f'--images: none of {count_of(len(images), "image")} could be read, such as '
                    f'{next(iter(source.unreadable.items()), "")}')
  sections, arrays, pictures = [], {}, {}
  for name in names:
    kind, made = FIGURES[name], FIGURES[name].make(study)
    missing = [f'{model}: {reason}' for model, reason in made.missing.items()]
    png = None if made.drawing is None else _encode(made)
    say(f'{name:10} ' + ('drawn' if png else 'not drawn: ' + '; '.join(missing)))
    if png:
      pictures[f'{name}.png'] = png
    text = f'{kind.text} {made.note}'.rstrip()
    sections.append(page.Section(name, kind.title, text, kind.source, png, missing))
    arrays.update({f'{name}/{key}': value for key, value in made.arrays.items()})
  facts = [*_facts(models), ('images', f'{len(paths):,} from {os.path.commonpath(images)}'
                             if len(images) > 1 else images[0]),
           ('date', f'{datetime.datetime.now():%Y-%m-%d %H:%M}'), ('vit_jax', vit_jax.__version__)]
  title = ' and '.join(models) + ': what the model has learned'
  contents = {**pictures, ARRAYS: _npz(arrays), TABLE: _csv(arrays, list(models)).encode(),
              PAGE: page.render(title, facts, sections).encode()}
  _write(contents, files.local(output))
  return source.unreadable


def _study(models: Mapping[str, Any], images: inputs.Images, names: Sequence[str],
           batch_size: int) -> tuple[Study, list[str]]:
  """Measure what the figures need; return it, and the paths of the images that could be read."""
  quantities = {quantity for name in names for quantity in FIGURES[name].quantities}
  with tqdm(unit='image', disable=None, leave=False) as bar:
    measured, similar, paths = measure.measure(list(models.values()), images.batches(batch_size), batch_size,
                                               quantities, bar.update)
  examples = [paths[k] for k in sorted({int(k) for k in np.linspace(0, len(paths) - 1, EXAMPLES)})] if paths else []
  shown = next(inputs.Images(examples, list(models.values())).batches(EXAMPLES), None) if examples else None
  subjects = [Subject(name, model, measure.why_no_attention(model), found,
                      shown.pixels[number] if shown else np.zeros(0, np.uint8))
              for number, ((name, model), found) in enumerate(zip(models.items(), measured, strict=True))]
  return Study(subjects, similar, inputs.class_names(paths)), paths


def _facts(models: Mapping[str, Any]) -> list[tuple[str, str]]:
  """Return rows about the models."""
  rows = []
  for name, model in models.items():
    config = model.config
    size = sum(int(leaf.size) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    kind = getattr(config, 'variant', None) or f'{count_of(model.num_layers, "layer")}'
    rows.append(('model' if not rows else 'second model',
                 f'{name}: {config.kind}, {kind}, {size:,} parameters, images of '
                 f'{model.image_size[0]}×{model.image_size[1]} pixels'))
  return rows


def _encode(made: Made) -> bytes:
  """Return a drawing as PNG."""
  buffer = io.BytesIO()
  made.drawing.savefig(buffer, format='png', dpi=120)
  return buffer.getvalue()


def _npz(arrays: Mapping[str, Any]) -> bytes:
  buffer = io.BytesIO()
  np.savez_compressed(buffer, **arrays)
  return buffer.getvalue()


def _csv(arrays: Mapping[str, np.ndarray], models: Sequence[str]) -> str:
  """Return numbers by layer, and by head where there are any; layers of heads are blocks and count from 1."""
  buffer = io.StringIO()
  rows = csv.writer(buffer, lineterminator='\n')
  rows.writerow(['figure', 'quantity', 'model', 'layer', 'head', 'value'])
  for key, values in arrays.items():
    figure, _, quantity = key.partition('/')
    model = models[-1] if quantity.endswith('_2') else models[0]
    quantity = quantity.removesuffix('_2')
    if figure in ('distance', 'entropy'):
      for (layer, head), value in np.ndenumerate(values):
        rows.writerow([figure, quantity, model, layer + 1, head + 1, f'{value:.6g}'])
    elif figure == 'norms':
      for (layer, column), value in np.ndenumerate(values):
        rows.writerow([figure, measure.NORMS[column], model, layer, '', f'{value:.6g}'])
    elif figure == 'probe':
      for (layer,), value in np.ndenumerate(values):
        rows.writerow([figure, quantity, model, layer, '', f'{value:.6g}'])
  return buffer.getvalue()


def _is_ours(folder: pathlib.Path) -> bool:
  try:
    start = (folder / PAGE).read_text(encoding='utf-8', errors='replace')[:4000]
  except OSError:
    return False
  return f'name="generator" content="{page.GENERATOR}"' in start


def _check_free(folder: pathlib.Path) -> None:
  """Raise ExistingFileError if something is there that this command did not write."""
  if not folder.exists() and not folder.is_symlink():
    return
  if folder.is_dir() and (_is_ours(folder) or not any(folder.iterdir())):
    return
  raise ExistingFileError(f'--output: {folder} exists already and was not written by this command; choose another '
                          'folder')


def _write(contents: Mapping[str, bytes], folder: pathlib.Path) -> None:
  """Write a new folder at once, or replace the files of an earlier analysis, the page last; other files stay."""
  _check_free(folder)
  if not folder.exists():
    with files.new_folder(folder, 'the analysis') as aside:
      for name, content in contents.items():
        (aside / name).write_bytes(content)
    return
  for name in (f'{figure}.png' for figure in FIGURES):
    if name not in contents:
      (folder / name).unlink(missing_ok=True)
  for name, content in contents.items():
    files.write(folder / name, content, 'the analysis')
