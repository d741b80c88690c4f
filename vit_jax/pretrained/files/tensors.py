"""The arrays of an open weight file: read one at a time, with a record of which were used."""
from collections.abc import Callable, Iterable, Mapping
import math
import os

import ml_dtypes
import numpy as np

from vit_jax.base.errors import FileError, UserError
from vit_jax.base.machine import host_memory
from vit_jax.base.text import listing

MAX_ENTRIES = 100_000
MAX_RANK = 8
_CHECKED_BYTES = 1 << 30

Shape = tuple[int, ...]


class Tensors:
  """The arrays of one file by name.

  Args:
    path: of the file, for messages.
    shapes: {name: shape} as declared in the file, already checked.
    dtypes: {name: dtype} as declared, such as 'bfloat16', for the same names.
    fetch: reads the array of a name from the file, of any float dtype.

  Attributes:
    problems: messages about arrays that were read but hold values that are not finite.
  """

  def __init__(self, path: str | os.PathLike[str], shapes: Mapping[str, Shape], dtypes: Mapping[str, str],
               fetch: Callable[[str], np.ndarray]):
    self.path, self.shapes, self.dtypes = str(path), dict(shapes), dict(dtypes)
    self.problems: list[str] = []
    self._fetch = fetch
    self._used: set[str] = set()
    self._last: tuple[str, np.ndarray] | None = None

  def __contains__(self, name: object) -> bool:
    return name in self.shapes

  def rename(self, new_name: Callable[[str], str | None]) -> 'Tensors':
    """Return the same arrays under the names that `new_name` gives them; None hides an array.

    Raises:
      UserError: two arrays get the same name.
    """
    names = {new: old for old in self.shapes if (new := new_name(old)) is not None}
    if len(names) < sum(new_name(old) is not None for old in self.shapes):
      raise self.error('two arrays have names that mean the same parameter')
    shapes = {new: self.shapes[old] for new, old in names.items()}
    dtypes = {new: self.dtypes[old] for new, old in names.items()}
    renamed = Tensors(self.path, shapes, dtypes, lambda new: self._fetch(names[new]))
    renamed.problems = self.problems
    return renamed

  def shape(self, name: str, rank: int | None = None) -> Shape:
    """Return the shape of an array.

    Args:
      name: of the array.
      rank: number of axes to insist on, none of them empty; None: any.

    Raises:
      UserError: there is no such array, or it has another number of axes.
    """
    if name not in self.shapes:
      raise self.error(f'there is no array {name}; there are {listing(sorted(self.shapes))}')
    shape = self.shapes[name]
    if rank is not None and (len(shape) != rank or 0 in shape):
      raise self.error(f'{name}: expected {rank} axes, none empty; got shape {shape}')
    return shape

  def read(self, name: str, shape: Iterable[int]) -> np.ndarray:
    """Return an array as float32 (exact for bfloat16 and float16) and mark it as used.

    Raises:
      UserError: it is missing, has another shape or is not of a float dtype, or its bytes are damaged.
    """
    expected = tuple(shape)
    if self.shape(name) != expected:
      raise self.error(f'{name}: expected shape {expected}, got {self.shapes[name]}')
    if 4 * count(expected) > _CHECKED_BYTES:  # a sparse file may be small and seem huge
      host_memory.check_fits(4 * count(expected), f'{self.path}: {name}')
    self._used.add(name)
    if self._last is None or self._last[0] != name:  # the parts of a fused array are read one after the other
      self._last = None  # freed before the next array is read
      self._last = (name, self._to_float32(name))
    return self._last[1]

  def fetch(self, name: str) -> np.ndarray:
    """Return an array as it is in the file, neither converted nor marked as used."""
    return self._fetch(name)

  def skip(self, names: Iterable[str]) -> None:
    """Mark arrays as used without reading them."""
    self._used.update(names)

  def unused(self) -> list[str]:
    """Return the names that were not read, sorted."""
    return sorted(set(self.shapes) - self._used)

  def error(self, text: str) -> UserError:
    """Return an error about this file."""
    return UserError(f'{self.path}: {text}')

  def _to_float32(self, name: str) -> np.ndarray:
    array = self._fetch(name)
    if array.dtype == np.dtype('V2'):  # how NumPy stores bfloat16 in an npz
      array = array.view(ml_dtypes.bfloat16)
    if array.dtype not in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16):
      raise self.error(f'{name}: expected float32, float64, float16 or bfloat16, got {array.dtype}')
    with np.errstate(over='ignore'):  # a float64 beyond float32 is reported as infinite
      array = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(array).all():
      self.problems.append(f'not finite: {name} holds {np.sum(~np.isfinite(array))} NaN or infinite values')
    return array


def guarded(path: str | os.PathLike[str], name: str, fetch: Callable[[], np.ndarray]) -> np.ndarray:
  """Return fetch(); whatever a library raises for damaged bytes becomes a FileError that names file and array."""
  try:
    return fetch()
  except Exception as error:  # zipfile, zlib, ast, tokenize and others raise a dozen types for random bytes
    raise FileError(f'{path}: cannot read {name}, the file is damaged or truncated: {error}') from error


def count(shape: Iterable[int]) -> int:
  """Return the number of elements; Python's integers do not overflow."""
  return math.prod(shape)
