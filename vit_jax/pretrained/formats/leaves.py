"""Tables that map every leaf of our parameter tree to an array in a file of another format.

A format is a table {our path: Leaf}; `read_weights` reads a model with it, `to_arrays` writes one. The leaves of our
encoder blocks are stacked along a leading depth axis; an array whose name has `{i}` in it holds one block, any other
holds all blocks.
"""
from collections.abc import Callable, Mapping
import dataclasses
import math
from typing import Any

from flax import nnx
import numpy as np

from vit_jax.base.errors import UserError
from vit_jax.base.text import listing
from vit_jax.models.base import flatten
from vit_jax.pretrained.files.tensors import Shape, Tensors
from vit_jax.pretrained.formats import weights as weights_lib

BLOCKS = 'encoder/blocks/'
POSITIONS = 'position/'
PREFIX_POSITIONS = 'prefix_position'


@dataclasses.dataclass(frozen=True)
class Layout:
  """How another format lays out an array.

  Attributes:
    shape: our shape → theirs.
    read: (their array, our shape) → our array, a view if possible.
    write: our array → their array.
  """
  shape: Callable[[Shape], Shape]
  read: Callable[[np.ndarray, Shape], np.ndarray]
  write: Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Leaf:
  """Where a leaf is in a file.

  Attributes:
    name: of the array there; `{i}` stands for the number of the block.
    layout: how it is laid out there.
    part: (k, n) if it is the k-th of n equal parts of the array's first axis, such as fused query, key and value.
  """
  name: str
  layout: Layout
  part: tuple[int, int] = (0, 1)


Table = dict[str, Leaf]


def leading(n: int) -> Layout:
  """Return the layout whose arrays have n axes of length 1 before ours: (width,) is (1, 1, width) for n = 2."""
  return Layout(lambda shape: (1,) * n + shape, lambda array, shape: array.reshape(shape),
                lambda array: array.reshape((1,) * n + array.shape))


def torch_linear(inputs: int = 1) -> Layout:
  """Return the layout of a PyTorch weight (outputs, inputs), flat; our kernel contracts its first `inputs` axes."""
  flat = lambda shape: (math.prod(shape[:inputs]), math.prod(shape[inputs:]))
  return Layout(lambda shape: flat(shape)[::-1], lambda array, shape: array.T.reshape(shape),
                lambda array: array.reshape(flat(array.shape)).T)


SAME = leading(0)
TORCH_FLAT = Layout(lambda shape: (math.prod(shape),), lambda array, shape: array.reshape(shape),
                    lambda array: array.reshape(-1))
# (rows, columns, channels, width) is (width, channels, rows, columns) in PyTorch.
TORCH_CONV = Layout(lambda shape: (shape[3], shape[2], *shape[:2]), lambda array, shape: array.transpose(2, 3, 1, 0),
                    lambda array: array.transpose(3, 2, 0, 1))


def torch_linear_leaves(ours: str, theirs: str, inputs: int = 1, part: tuple[int, int] = (0, 1)) -> Table:
  """Return kernel and bias of a linear layer in a PyTorch state dict."""
  return {f'{ours}/kernel': Leaf(f'{theirs}.weight', torch_linear(inputs), part),
          f'{ours}/bias': Leaf(f'{theirs}.bias', TORCH_FLAT, part)}


def torch_norm_leaves(ours: str, theirs: str) -> Table:
  """Return scale and bias of a LayerNorm in a PyTorch state dict."""
  return {f'{ours}/scale': Leaf(f'{theirs}.weight', SAME), f'{ours}/bias': Leaf(f'{theirs}.bias', SAME)}


def prefixed(table: Table, ours: str, theirs: str) -> Table:
  """Return a table for the same leaves with a prefix before our paths and one before their names."""
  return {ours + path: dataclasses.replace(leaf, name=theirs + leaf.name) for path, leaf in table.items()}


def read_weights(tensors: Tensors, fields: Mapping[str, Any], table: Table, positions: str = '', position_axes: int = 1,
                 notes: tuple[str, ...] = (), **metadata: Any) -> weights_lib.Weights:
  """Read a model whose config is known; what was missing, unused or not finite is in `problems`.

  Args:
    tensors: the open file.
    fields: of the config, see `weights.read_config`.
    table: {our path: Leaf} without the positions.
    positions: name of the array of position embeddings, ([class token,] [other tokens,] patches, width), if any.
    position_axes: axes of length 1 before those.
    notes: messages about what was assumed.
    **metadata: other attributes of `Weights`.
  """
  config = weights_lib.read_config(fields)
  params, missing = _read_params(config, table, tensors, positions, position_axes)
  unseen = getattr(config, 'unseen_pixels', None)  # models of patches have it
  notes += (unseen,) if unseen else ()
  problems = [*missing, *(f'unused: {name}' for name in tensors.unused()), *tensors.problems]
  return weights_lib.Weights(config, params, notes=notes, problems=tuple(problems), **metadata)


def to_arrays(weights: weights_lib.Weights, table: Table, positions: str = '',
              position_axes: int = 1) -> dict[str, np.ndarray]:
  """Lay out a model's parameters as another format has them.

  Args:
    weights: a model whose position embedding is learned or absent.
    table, positions, position_axes: as for `read_weights`.

  Returns:
    {name: float32 array}, sorted.

  Raises:
    UserError: the format has no place for a leaf; the message names it.
  """
  parts: dict[str, dict[int, np.ndarray]] = {}
  leaves = flatten(weights.params)
  if absent := sorted(path for path in leaves if path not in table and not _is_position(path)):
    raise UserError(f'the format has no place for the parameters {listing(absent)}')
  for path, array in leaves.items():
    if _is_position(path):
      continue
    leaf = table[path]
    stacked = _is_stacked(path, leaf)
    for i, value in enumerate(array if stacked else [array]):
      name = leaf.name.format(i=i) if stacked else leaf.name
      parts.setdefault(name, {})[leaf.part[0]] = leaf.layout.write(np.asarray(value, np.float32))
  arrays = {name: np.concatenate([found[k] for k in sorted(found)]) if len(found) > 1 else found[0]
            for name, found in parts.items()}
  if f'{POSITIONS}grid' in leaves:
    arrays[positions] = _flat_positions(leaves, position_axes)
  return {name: np.ascontiguousarray(array) for name, array in sorted(arrays.items())}


def _read_params(config: Any, table: Table, tensors: Tensors, positions: str,
                 position_axes: int) -> tuple[weights_lib.Params, list[str]]:
  """Return (parameters, messages about those that were missing and are newly initialized)."""
  leaves: dict[str, np.ndarray] = {}
  missing: list[tuple[str, str]] = []
  for path, shape in weights_lib.shapes(config).items():
    if _is_position(path):
      continue
    if (leaf := table.get(path)) is None:
      raise tensors.error(f'this format has no place for the parameter {path}')
    stacked = _is_stacked(path, leaf)
    names = [leaf.name.format(i=i) for i in range(shape[0])] if stacked else [leaf.name]
    absent = [name for name in names if name not in tensors]
    if absent:
      missing.append((path, listing(absent)))
      tensors.skip(names)
    else:
      leaves[path] = _read_stacked(leaf, names, shape, tensors) if stacked else _read(leaf, leaf.name, shape, tensors)
  leaves.update(_read_positions(config, tensors, positions, position_axes, missing))
  _initialize(leaves, config, missing)
  return weights_lib.unflatten(leaves), [f'missing: {name} ({path})' for path, name in missing]


def _is_position(path: str) -> bool:
  return path.startswith(POSITIONS) or path == PREFIX_POSITIONS


def _is_stacked(path: str, leaf: Leaf) -> bool:
  """Return whether each block has its own array, while our leaf stacks all blocks."""
  return path.startswith(BLOCKS) and '{i}' in leaf.name


def _read(leaf: Leaf, name: str, shape: Shape, tensors: Tensors) -> np.ndarray:
  theirs, (k, n) = leaf.layout.shape(shape), leaf.part
  array = tensors.read(name, (n * theirs[0], *theirs[1:]))
  return np.ascontiguousarray(leaf.layout.read(array[k * theirs[0]:(k + 1) * theirs[0]], shape))


def _read_stacked(leaf: Leaf, names: list[str], shape: Shape, tensors: Tensors) -> np.ndarray:
  stacked = np.empty(shape, np.float32)
  for i, name in enumerate(names):
    stacked[i] = _read(leaf, name, shape[1:], tensors)
  return stacked


def _read_positions(config: Any, tensors: Tensors, name: str, axes: int,
                    missing: list[tuple[str, str]]) -> dict[str, np.ndarray]:
  expected = {path: shape for path, shape in weights_lib.shapes(config).items() if _is_position(path)}
  if not expected:
    return {}
  if name not in tensors:
    missing.extend((path, name) for path in expected)
    return {}
  grid, token, prefix = f'{POSITIONS}grid', f'{POSITIONS}token', PREFIX_POSITIONS
  rows = {token: int(token in expected), prefix: expected.get(prefix, (0,))[0], grid: math.prod(expected[grid][:2])}
  shape = sum(rows.values()), expected[grid][2]
  array = tensors.read(name, (*(1,) * axes, *shape)).reshape(shape)
  ends = np.cumsum(list(rows.values()))
  return {path: array[end - rows[path]:end].reshape(expected[path]).copy()
          for path, end in zip(rows, ends, strict=True) if path in expected}


def _flat_positions(leaves: Mapping[str, np.ndarray], axes: int) -> np.ndarray:
  """Return our position embeddings as one array ([class token,] [other tokens,] patches, width), after axes of 1."""
  width = leaves[f'{POSITIONS}grid'].shape[-1]
  paths = (f'{POSITIONS}token', PREFIX_POSITIONS, f'{POSITIONS}grid')
  rows = [leaves[path].reshape(-1, width) for path in paths if path in leaves]
  flat = np.concatenate(rows).astype(np.float32)
  return flat.reshape((1,) * axes + flat.shape)


def _initialize(leaves: dict[str, np.ndarray], config: Any, missing: list[tuple[str, str]]) -> None:
  """Give missing leaves the values of a new model; strict loading refuses them, so this seldom runs."""
  if missing:
    new = flatten(nnx.to_pure_dict(nnx.state(weights_lib.new_model(config), nnx.Param)))
    leaves.update((path, np.asarray(new[path])) for path, _ in missing)
