"""The dtype of arrays in files: read as float32, written as they were."""
from collections.abc import Mapping
import dataclasses
from typing import Any

import ml_dtypes
import numpy as np

from vit_jax.base.choices import choose
from vit_jax.base.errors import UserError
from vit_jax.base.text import count, listing
from vit_jax.pretrained.formats.base import Written
from vit_jax.pretrained.formats.weights import Weights

DTYPES: dict[str, Any] = {'bfloat16': ml_dtypes.bfloat16, 'float16': np.float16, 'float32': np.float32}


def stored(written: Written, weights: Weights, form: str, dtype: str | None) -> tuple[Written, list[str]]:
  """Return a model with its arrays in the dtype that they are stored in, and messages about values that changed.

  Args:
    written: the model laid out in a format, as float32.
    weights: what it was laid out from.
    form: name of the format.
    dtype: for all arrays, a name of DTYPES; None: what the file had that `weights` were read from, for arrays that
      keep every value in it. By name in the same format; in another format, if the file had only one dtype.

  Raises:
    UserError: an unknown dtype, or one that a value is too large for.
  """
  arrays = dict(written.arrays)
  notes = _convert(arrays, choose(DTYPES, dtype, 'dtype')) if dtype else _restore(arrays, weights, form)
  found = sorted({array.dtype.name for array in arrays.values()})
  configs = {name: {**config, 'dtype': found[0]} if 'dtype' in config and len(found) == 1 else config
             for name, config in written.configs.items()}
  return dataclasses.replace(written, arrays=arrays, configs=configs), notes


def _convert(arrays: dict[str, np.ndarray], dtype: Any) -> list[str]:
  """Convert all arrays, in place of the float32 ones."""
  rounded = 0
  for name, array in arrays.items():
    with np.errstate(over='ignore'):
      arrays[name] = array.astype(dtype)
    if not _are_equal(arrays[name], array):
      rounded += 1
      if np.isinf(arrays[name].astype(np.float32)).sum() > np.isinf(array).sum():
        raise UserError(f'dtype: {name} has values up to {np.abs(array).max():.3g}, too large for '
                        f'{np.dtype(dtype).name}; choose bfloat16 or float32')
  return [f'dtype: {count(rounded, "array")} rounded to {np.dtype(dtype).name}'] if rounded else []


def _restore(arrays: dict[str, np.ndarray], weights: Weights, form: str) -> list[str]:
  """Give arrays the dtype that they had in the file, where that changes no value."""
  own: Mapping[str, str] = weights.dtypes if weights.source == form else {}
  common = sorted({dtype for dtype in weights.dtypes.values() if dtype in (*DTYPES, 'float64')})
  usual = common[0] if len(common) == 1 else 'float32'
  changed: list[str] = []
  for name, array in arrays.items():
    dtype = own.get(name, usual)
    with np.errstate(over='ignore'):
      converted = array.astype(DTYPES.get(dtype, np.float32))
    if _are_equal(converted, array):
      arrays[name] = converted
    else:
      changed.append(name)
  return [f'dtype: written as float32, as the dtype of the file does not hold their values: {listing(changed)}'
          ] if changed else []


def _are_equal(converted: np.ndarray, array: np.ndarray) -> bool:
  return np.array_equal(converted.astype(np.float32), array, equal_nan=True)
