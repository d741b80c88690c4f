"""Which patches of an image are hidden: a number that is the same for all images, at random places."""
import math

import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Key
import numpy as np

from vit_jax.base.errors import UserError

Hidden = Int[Array, 'batch hidden']  # indices of patches
Visible = Int[Array, 'batch visible']


def draw(keys: Key[Array, ' batch'], grid: tuple[int, int], ratio: float, unit: int = 1) -> tuple[Hidden, Visible]:
  """Return the indices of the patches that are hidden and of those that are visible, each in random order.

  Args:
    keys: one per example, which alone decides.
    grid: patches per image, (rows, columns).
    ratio: see `count_hidden`.
    unit: rows and columns of the squares of patches that are hidden or visible together; see `check`.
  """
  patches = jnp.asarray(_patches_of_units(grid, unit))
  order = jax.vmap(lambda key: jnp.argsort(jax.random.bits(key, (len(patches),), jnp.uint32)))(keys)
  hidden = count_hidden(len(patches), ratio)
  expand = lambda units: patches[units].reshape(len(units), -1)
  return expand(order[:, :hidden]), expand(order[:, hidden:])


def count_hidden(count: int, ratio: float) -> int:
  """Return how many of `count` patches are hidden: the share `ratio`, rounded up, as in MAE's and SimMIM's code.

  >>> count_hidden(196, 0.75), count_hidden(49, 0.6), count_hidden(20, 0.55)
  (147, 30, 11)
  """
  return math.ceil(round(count * ratio, 6))


def check(grid: tuple[int, int], ratio: float, unit: int = 1) -> None:
  """Raise UserError unless some patches are hidden, some are visible, and the grid is whole units."""
  rows, columns = grid
  if rows % unit or columns % unit:
    raise UserError(f'objective.unit: must divide the {rows}×{columns} patches of an image, got {unit}')
  count = rows * columns // unit**2
  if not 0 < count_hidden(count, ratio) < count:
    what = 'patches' if unit == 1 else f'squares of {unit}×{unit} patches'
    raise UserError(f'objective.ratio: {ratio} of {count} {what} hides {count_hidden(count, ratio)}; some must be '
                    'hidden and some visible: choose another ratio, smaller patches or larger images')


def check_ratio(ratio: float) -> None:
  """Raise UserError unless a ratio is between 0 and 1."""
  if not 0.0 < ratio < 1.0:
    raise UserError(f'objective.ratio: must be between 0 and 1, got {ratio}')


def are_among(indices: Hidden, count: int) -> Bool[Array, 'batch patches']:
  """Return whether each of 0..count - 1 is among an example's indices, (B, count) bool."""
  return (indices[:, :, None] == jnp.arange(count)).any(axis=1)


def take(x: Float[Array, 'batch patches features'], indices: Int[Array, 'batch taken']) -> Float[
    Array, 'batch taken features']:
  """Return x[b, indices[b, i]] of (B, patches, features), (B, indices, features)."""
  return jnp.take_along_axis(x, indices[..., None], axis=1)


def _patches_of_units(grid: tuple[int, int], unit: int) -> np.ndarray:
  """Return the indices of each unit's patches, (units, unit²), units and patches row by row."""
  rows, columns = grid
  squares = np.arange(rows * columns).reshape(rows // unit, unit, columns // unit, unit)
  return squares.transpose(0, 2, 1, 3).reshape(-1, unit**2)
