"""The arrays of an open file, read one at a time, with a record of which were used."""
import math

import ml_dtypes
import numpy as np

MAX_ENTRIES = 100_000
MAX_RANK = 8


class Tensors:
  """The arrays of one file by name.

  Args:
    path: for messages.
    shapes: {name: shape} as declared and checked.
    fetch: name → array of any float type, read from the file.
  """

  def __init__(self, path, shapes, fetch):
    self.path, self.shapes = str(path), dict(shapes)
    self._fetch = fetch
    self._used, self._last = set(), (None, None)
    self.problems = []

  def __contains__(self, name):
    return name in self.shapes

  def rename(self, rename):
    """The same arrays under names that `rename` gives; None hides one."""
    names = {new: old for old in self.shapes if (new := rename(old)) is not None}
    if len(names) < sum(rename(old) is not None for old in self.shapes):
      raise self.error('two arrays stand for the same one')
    shapes = {new: self.shapes[old] for new, old in names.items()}
    renamed = Tensors(self.path, shapes, lambda new: self._fetch(names[new]))
    renamed.problems = self.problems
    return renamed

  def shape(self, name, rank=None):
    """The shape of an array.

    Raises:
      ValueError: there is none of that name, or it has another number of axes.
    """
    if name not in self.shapes:
      raise self.error(f'there is no {name}; there are {shorten(self.shapes)}')
    shape = self.shapes[name]
    if rank is not None and (len(shape) != rank or 0 in shape):
      raise self.error(f'{name} has shape {shape}; expected {rank} axes, none empty')
    return shape

  def read(self, name, shape):
    """An array as float32 (exact from bfloat16 and float16), marked as used.

    Raises:
      ValueError: it is not there, has another shape or no float type, or its bytes are damaged.
    """
    if self.shape(name) != tuple(shape):
      raise self.error(f'{name} has shape {self.shapes[name]}; expected {tuple(shape)}')
    self._used.add(name)
    if self._last[0] != name:  # parts of one array are asked for in a row
      self._last = (None, None)  # freed before the next is read
      self._last = (name, self._converted(name))
    return self._last[1]

  def skip(self, names):
    """Marks arrays as used without reading them."""
    self._used.update(names)

  def unused(self):
    """Names that nobody read, sorted."""
    return sorted(set(self.shapes) - self._used)

  def error(self, text):
    """A ValueError about this file."""
    return ValueError(f'{self.path}: {text}')

  def _converted(self, name):
    array = self._fetch(name)
    if array.dtype == np.dtype('V2'):  # what NumPy makes of bfloat16 in an npz
      array = array.view(ml_dtypes.bfloat16)
    if array.dtype not in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16):
      raise self.error(f'{name} holds {array.dtype}; expected float32, float64, float16 or bfloat16')
    with np.errstate(over='ignore'):  # a float64 beyond float32 is reported as infinite
      array = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(array).all():
      self.problems.append(f'not finite: {name} holds {np.sum(~np.isfinite(array))} NaN or infinite values')
    return array


def guarded(path, name, fetch):
  """Calls fetch() and turns what a library raises over damaged bytes into a ValueError that names file and array."""
  try:
    return fetch()
  except Exception as error:  # zipfile, zlib, ast, tokenize, … : over random bytes they raise a dozen types
    raise ValueError(f'{path}: cannot read {name}, the file is damaged or truncated: {error}') from error


def count(shape):
  """Number of elements; Python's integers do not overflow."""
  return math.prod(shape)


def shorten(names, limit=8):
  """The first few of many names, for a message."""
  names = sorted(names)
  return ', '.join(names[:limit]) + (f' and {len(names) - limit} more' if len(names) > limit else '')
