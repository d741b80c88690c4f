"""How exactly vit_jax computes what other code bases compute, for every golden file of the tests.

  python -m experiments.golden_table > experiments/benchmarks/golden.md

A row per file: the largest absolute difference of every output that its own code stored, in float32; whether the
file's arrays are written back bit for bit; and the other formats that can hold the model.
"""
from collections.abc import Mapping
import datetime
import pathlib
import tempfile
from typing import Any

from absl import app
import numpy as np

from vit_jax.base import platform
from vit_jax.base.errors import UserError
from vit_jax.pretrained import load, save
from vit_jax.pretrained.files import reader
from vit_jax.pretrained.formats.registry import FORMATS
from vit_jax.pretrained.formats.weights import Weights

GOLDEN = pathlib.Path(__file__).parent.parent / 'tests' / 'golden'
OUTPUTS = ('features', 'pooled', 'embeds', 'output')


def files() -> dict[pathlib.Path, pathlib.Path]:
  """Return {weights, a file or folder: file with images and outputs}."""
  folders = {path.parent: path for path in sorted(GOLDEN.glob('*/io.npz'))}
  arrays = {path: path.with_suffix('.io.npz') for path in sorted(GOLDEN.glob('*.npz'))}
  return {**{path: io for path, io in arrays.items() if io.exists()}, **folders}


def row(path: pathlib.Path, vectors: Mapping[str, np.ndarray]) -> str:
  """Return the table row of a file.

  Args:
    path: of the weights.
    vectors: `images` (B, rows, columns, channels) and the outputs for them.
  """
  size = vectors['images'].shape[1:3]
  trained_at = None if path.is_dir() else size  # the config beside the arrays says it
  weights = load.read(path, trained_at=trained_at)
  model: Any = load.load(path, trained_at=trained_at, image_size=size)
  calls = dict(features=model.features, pooled=model.embed, embeds=model.embed, output=model)
  errors = {name: float(np.abs(np.asarray(calls[name](vectors['images'])) - vectors[name]).max())
            for name in OUTPUTS if name in vectors and vectors[name].ndim == calls[name](vectors['images']).ndim}
  held = {form: written(weights, form) for form in FORMATS}
  own = held.pop(weights.source)
  same = '-' if own is None else 'yes' if equal(own, arrays_of(path)) else 'equal values, other names or shapes'
  cells = [path.stem, *(f'{errors[name]:.1e}' if name in errors else '' for name in OUTPUTS), same,
           ', '.join(form for form, arrays in held.items() if arrays is not None)]
  return f'| {" | ".join(cells)} |'


def written(weights: Weights, form: str) -> dict[str, np.ndarray] | None:
  """Return the arrays of a model in a format, or None if the format cannot hold it."""
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / f'model{FORMATS[form].suffix}'
    try:
      save.save(weights, path, form)
    except UserError:
      return None
    return arrays_of(path)


def arrays_of(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Return {name: array} of a file, or of model.safetensors in a folder."""
  with reader.open_file(path / 'model.safetensors' if path.is_dir() else path) as tensors:
    return {name: tensors.read(name, shape) for name, shape in tensors.shapes.items()}


def equal(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> bool:
  """Return whether two files have the same arrays, bit for bit."""
  return ours.keys() == theirs.keys() and all(
      ours[name].shape == array.shape and ours[name].tobytes() == array.tobytes() for name, array in theirs.items())


def main(argv: list[str]) -> None:
  """Print the table."""
  del argv
  versions = ', '.join(f'{name} {version}' for name, version in platform.versions().items())
  print(f'# Golden files\n\n{datetime.date.today()}, {versions}.\n\n    python -m experiments.golden_table\n')
  print('Largest absolute difference to the outputs of the code that each file comes from, in float32.\n')
  print(f'| file | {" | ".join(OUTPUTS)} | written back bit for bit | also held by |\n|{"---|" * (len(OUTPUTS) + 3)}')
  for path, io in files().items():
    with np.load(io) as vectors:
      print(row(path, dict(vectors)), flush=True)


if __name__ == '__main__':
  app.run(main)
