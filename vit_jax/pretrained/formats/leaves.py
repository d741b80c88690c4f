"""Where each leaf of our parameter tree lies in a file of another format, and how it lies there.

A format is a table {our path: Leaf}.  `fill` reads a model by it, `spread` writes one.  Leaves of encoder blocks are
stacked along a leading depth axis with us; a name with `{i}` in it is one block's, a name without holds all blocks.
"""
import dataclasses
import math
from typing import Callable

from flax import nnx
import numpy as np

from vit_jax.models import vit
from vit_jax.pretrained.files import tensors as tensors_lib
from vit_jax.pretrained.formats import weights as weights_lib

BLOCKS = 'encoder/blocks/'


@dataclasses.dataclass(frozen=True)
class Layout:
  """How another format lays out an array.

  Attributes:
    shape: our shape → theirs.
    read: (their array, our shape) → our array, a view where possible.
    write: our array → their array.
  """
  shape: Callable
  read: Callable
  write: Callable


@dataclasses.dataclass(frozen=True)
class Leaf:
  """One leaf in a file.

  Attributes:
    name: of the array there; `{i}` is the number of the block.
    layout: how it lies there.
    part: (k, n) if it is the k-th of n equal parts of the array's first axis, such as q, k and v fused.
  """
  name: str
  layout: Layout
  part: tuple[int, int] = (0, 1)


def leading(n):
  """Their array has n axes of length 1 before ours: (width,) is (1, 1, width) there."""
  return Layout(lambda shape: (1,) * n + shape, lambda array, shape: array.reshape(shape),
                lambda array: array.reshape((1,) * n + array.shape))


def torch_linear(inputs=1):
  """A kernel whose first `inputs` axes are contracted; PyTorch's weight is (outputs, inputs), all axes flattened."""
  flat = lambda shape: (math.prod(shape[:inputs]), math.prod(shape[inputs:]))
  return Layout(lambda shape: flat(shape)[::-1], lambda array, shape: array.T.reshape(shape),
                lambda array: array.reshape(flat(array.shape)).T)


SAME = leading(0)
TORCH_FLAT = Layout(lambda shape: (math.prod(shape),), lambda array, shape: array.reshape(shape),
                    lambda array: array.reshape(-1))
# (rows, columns, channels, width) is (width, channels, rows, columns) in PyTorch.
TORCH_CONV = Layout(lambda shape: (shape[3], shape[2], *shape[:2]), lambda array, shape: array.transpose(2, 3, 1, 0),
                    lambda array: array.transpose(3, 2, 0, 1))


def fill(fields, table, tensors, positions, between=0):
  """Reads all that a model of these fields has.

  Args:
    fields: see `weights.complete`.
    table: {our path: Leaf} without the positions.
    tensors: the open file.
    positions: name of the array of position embeddings, (1, [class token,] between + patches, width).
    between: rows of it that belong to neither class token nor patches.

  Returns:
    (params, lines on what was missing and is newly initialised).
  """
  leaves, missing = {}, []
  for path, shape in weights_lib.shapes(fields).items():
    if path.startswith('position/'):
      continue
    if (leaf := table.get(path)) is None:
      raise tensors.error(f'this format has no place for {path}')
    stacked = path.startswith(BLOCKS) and '{i}' in leaf.name
    names = [leaf.name.format(i=i) for i in range(shape[0])] if stacked else [leaf.name]
    absent = [name for name in names if name not in tensors]
    if absent:
      missing.append((path, tensors_lib.shorten(absent)))
      tensors.skip(names)
    else:
      leaves[path] = _read_stacked(leaf, names, shape, tensors) if stacked else _read(leaf, leaf.name, shape, tensors)
  leaves.update(_read_positions(fields, tensors, positions, between, missing))
  _initialise(leaves, fields, missing)
  return weights_lib.unflatten(leaves), [f'missing: {name} ({path})' for path, name in missing]


def read(tensors, fields, table, positions, between=0, **known):
  """The `Weights` of a file whose fields are known: `fill`, and what was missing, unused or not finite."""
  fields = weights_lib.complete(fields)
  params, missing = fill(fields, table, tensors, positions, between)
  problems = [*missing, *(f'unused: {name}' for name in tensors.unused()), *tensors.problems]
  return weights_lib.Weights(fields, params, problems=tuple(problems), **known)


def spread(weights, table, positions, between=0):
  """Lays a model's parameters out as another format has them.

  Args:
    weights: whose leaves the table has, and whose positions are learned or none.
    table, positions: as for `fill`.
    between: rows of zeros between the class token's position and the grid, if it has one.

  Returns:
    {name: float32 array}, sorted.

  Raises:
    ValueError: the format has no place for a leaf; the message names it.
  """
  parts, leaves = {}, weights_lib.flatten(weights.params)
  if absent := sorted(path for path in leaves if path not in table and not path.startswith('position/')):
    raise ValueError(f'the format has no place for {absent}')
  for path, array in leaves.items():
    if path.startswith('position/'):
      continue
    leaf = table[path]
    stacked = path.startswith(BLOCKS) and '{i}' in leaf.name
    for i, piece in enumerate(array if stacked else [array]):
      name = leaf.name.format(i=i) if stacked else leaf.name
      parts.setdefault(name, {})[leaf.part[0]] = leaf.layout.write(np.asarray(piece, np.float32))
  arrays = {name: np.concatenate([pieces[k] for k in sorted(pieces)]) if len(pieces) > 1 else pieces[0]
            for name, pieces in parts.items()}
  if 'position/grid' in leaves:
    arrays[positions] = _joined_positions(leaves, between)
  return {name: np.ascontiguousarray(array) for name, array in sorted(arrays.items())}


def renamed(table, ours, theirs):
  """The table for the same leaves under other prefixes, ours and theirs."""
  return {ours + path: dataclasses.replace(leaf, name=theirs + leaf.name) for path, leaf in table.items()}


def _read(leaf, name, shape, tensors):
  theirs, (k, n) = leaf.layout.shape(shape), leaf.part
  array = tensors.read(name, (n * theirs[0], *theirs[1:]))
  return np.ascontiguousarray(leaf.layout.read(array[k * theirs[0]:(k + 1) * theirs[0]], shape))


def _read_stacked(leaf, names, shape, tensors):
  stacked = np.empty(shape, np.float32)
  for i, name in enumerate(names):
    stacked[i] = _read(leaf, name, shape[1:], tensors)
  return stacked


def _read_positions(fields, tensors, name, between, missing):
  wanted = {path: shape for path, shape in weights_lib.shapes(fields).items() if path.startswith('position/')}
  if not wanted:
    return {}
  if name not in tensors:
    missing.extend((path, name) for path in wanted)
    return {}
  grid = wanted['position/grid']
  prefix = int('position/token' in wanted)
  array = tensors.read(name, (1, prefix + between + math.prod(grid[:2]), grid[2]))[0]
  leaves = {'position/grid': array[prefix + between:].reshape(grid).copy()}
  return dict(leaves, **{'position/token': array[0].copy()}) if prefix else leaves


def _joined_positions(leaves, between):
  grid = leaves['position/grid']
  token = leaves.get('position/token')
  rows = [] if token is None else [token[None], np.zeros((between, token.shape[0]), np.float32)]
  return np.concatenate([*rows, grid.reshape(-1, grid.shape[-1])])[None].astype(np.float32)


def _initialise(leaves, fields, missing):
  """Gives missing leaves the values of a new model; strict reading refuses them, so this seldom runs."""
  if missing:
    new = weights_lib.flatten(nnx.to_pure_dict(nnx.state(weights_lib.new_model(fields), nnx.Param)))
    leaves.update((path, np.asarray(new[path])) for path, _ in missing)
