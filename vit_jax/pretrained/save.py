"""Writes weights in a format, whole or not at all; nothing is overwritten."""
from collections.abc import Callable
import contextlib
import functools
import json
import os
import pathlib

import numpy as np
from safetensors.numpy import save_file

from vit_jax.base import files
from vit_jax.base.choices import choose
from vit_jax.base.errors import ExistingFileError, UserError
from vit_jax.models.base import Model
from vit_jax.pretrained.files import npz
from vit_jax.pretrained.formats import dtypes
from vit_jax.pretrained.formats.base import Format, Written
from vit_jax.pretrained.formats.registry import FORMATS
from vit_jax.pretrained.formats.representable import NotRepresentable
from vit_jax.pretrained.formats.weights import Weights
from vit_jax.pretrained.load import to_weights


def save(model: Model | Weights, destination: files.PathLike, format: str | None = None,
         approximate: bool = False, dtype: str | None = None) -> tuple[list[pathlib.Path], list[str]]:
  """Write a model, loaded or trained, or its weights, to a new file or directory.

  Args:
    model: see `load.load` and `load.read`.
    destination: an `.npz` file for 'google' and 'big_vision'; for 'huggingface' and 'timm' a directory, or a
      `.safetensors` file that gets its config.json beside it.
    format: a name of `registry.FORMATS`; None: 'google' for an `.npz` file, else 'huggingface'.
    approximate: whether to accept that the format's own code uses another GELU or LayerNorm epsilon than the model.
    dtype: of the arrays, a name of `dtypes.DTYPES`; None: the dtype of the file that weights were read from, if it
      keeps every value, else float32. A model, which may have been trained, is written as float32.

  Returns:
    (paths written, messages about what was changed to fit the format or is not stored).

  Raises:
    UserError: the format cannot hold the model; the message names the config field.
    ExistingFileError: something is there already.
    FileError: the files cannot be written.
  """
  weights = model if isinstance(model, Weights) else to_weights(model)
  path = files.local(destination)
  form = choose(FORMATS, format or ('google' if path.suffix == '.npz' else 'huggingface'), 'format')
  if form.suffix == '.npz' and path.suffix != '.npz':
    raise UserError(f'{destination}: expected a file name that ends in .npz for the {form.name} format')
  if form.suffix != '.npz' and path.suffix == '.npz':
    raise UserError(f'{destination}: expected a directory or a .safetensors file for the {form.name} format')
  written, dtype_notes = dtypes.stored(_written(weights, form, approximate), weights, form.name, dtype)
  is_file = path.suffix in ('.npz', '.safetensors')
  folder, name = (path.parent, path.name) if is_file else (path, 'model.safetensors')
  targets = [folder / name, *(folder / config for config in written.configs)]
  for target in [path, *targets]:
    if target.exists():
      raise ExistingFileError(f'{target}: exists already; nothing is overwritten, choose another destination')
  writers = _writers(name, written)
  if is_file:
    _write_files(folder, writers)
  else:
    with files.new_folder(folder, 'the model') as aside:
      for file, write in writers.items():
        write(aside / file)
  notes = weights.notes if weights.source == 'model' else ()
  changes = written.weights.notes[len(weights.notes):]
  return targets, [*notes, *changes, *dtype_notes, *_not_stored(weights, form.suffix)]


def _written(weights: Weights, form: Format, approximate: bool) -> Written:
  """Lay weights out in a format; the error of one that cannot hold them names those that can."""
  try:
    return form.write(weights, approximate)
  except NotRepresentable as error:
    others = [other.name for other in FORMATS.values() if other is not form and _holds(weights, other)]
    able = f'{" and ".join(others)} can hold it (--to={others[0]})' if others else 'no other format can hold it either'
    raise UserError(f'{error}; {able}') from error


def _holds(weights: Weights, form: Format) -> bool:
  try:
    form.write(weights, approximate=True)
  except UserError:
    return False
  return True


def _writers(name: str, written: Written) -> dict[str, Callable[[pathlib.Path], object]]:
  """Return a function per file that writes it to a path; the file of weights comes first."""
  writers: dict[str, Callable[[pathlib.Path], object]] = {name: functools.partial(_write_arrays, arrays=written.arrays)}
  for config, values in written.configs.items():
    writers[config] = functools.partial(pathlib.Path.write_text, data=json.dumps(values, indent=2) + '\n')
  return writers


def _write_arrays(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
  if path.suffix == '.npz':
    npz.write(path, arrays)
    return
  path.touch()
  mode = path.stat().st_mode & 0o777
  save_file(arrays, path, metadata={'format': 'pt'})  # the key that transformers insists on
  path.chmod(mode)  # the library makes files that only the owner can read


def _write_files(folder: pathlib.Path, writers: dict[str, Callable[[pathlib.Path], object]]) -> None:
  """Write all files, then rename them: the weights last, as a stack ends in reverse, so never without their config."""
  with contextlib.ExitStack() as stack:
    asides = {name: stack.enter_context(files.replacing(folder / name, 'the model')) for name in writers}
    for name, write in writers.items():
      write(pathlib.Path(os.fspath(asides[name])))


def _not_stored(weights: Weights, suffix: str) -> list[str]:
  if suffix != '.npz':
    return []
  names = [f'class names: {len(weights.class_names)}, not stored in .npz files'] if weights.class_names else []
  return [f'preprocessing: not stored in .npz files: {weights.preprocessing}', *names]
