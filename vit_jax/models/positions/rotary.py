"""Rotary positions: queries and keys rotated by angles of their patch's row and column (RoFormer, arXiv 2104.09864).

The features of a head form head_dim / 2 pairs, each rotated by an angle: the first half of the pairs by the row, the
other half by the column, at head_dim / 4 frequencies base^(-k / (head_dim / 4)) each. The score of two patches then
depends on the difference of their places only. Tokens before the patches are not rotated.
"""
from collections.abc import Callable, Mapping
import dataclasses
import functools

from jax import Array
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from vit_jax.base.choices import choose
from vit_jax.base.errors import UserError

Heads = Float[Array, 'batch heads tokens head_dim']
Angles = Float[np.ndarray, 'tokens pairs']


def _centers(count: int, reference: int | None) -> np.ndarray:
  """Return the centers of patches from -1 to 1, in full turns (DINOv3, arXiv 2508.10104, section 3.2)."""
  del reference
  return 2 * np.pi * (2 * (np.arange(count) + 0.5) / count - 1)


def _indices(count: int, reference: int | None) -> np.ndarray:
  """Return the numbers of patches, scaled to those of `reference` patches (EVA-02, arXiv 2303.11331, and timm)."""
  return np.arange(count) * (1.0 if reference is None else reference / count)


@dataclasses.dataclass(frozen=True)
class Convention:
  """How a code base rotates.

  Attributes:
    coordinates: (number of patches along an axis, that of the reference grid or None) → their coordinates in radians.
    halves: whether pair k is the features k and k + head_dim / 2; otherwise 2k and 2k + 1.
  """
  coordinates: Callable[[int, int | None], np.ndarray]
  halves: bool


CONVENTIONS: Mapping[str, Convention] = {
    'dinov3': Convention(_centers, halves=True),
    'eva': Convention(_indices, halves=False),
}


@dataclasses.dataclass(frozen=True)
class Rotary:
  """Rotates the heads of all tokens.

  Attributes:
    kind: a name of CONVENTIONS.
    grid: patches, (rows, columns).
    prefix: number of tokens before the patches.
    head_dim: features of a head; divisible by 4.
    base: of the frequencies; 100 in DINOv3, 10 000 in EVA-02.
    reference: the grid that coordinates are scaled to, (16, 16) in EVA-02; None: they are not.

  Raises:
    UserError: an unknown kind, or features that 4 does not divide.
  """
  kind: str
  grid: tuple[int, int]
  prefix: int
  head_dim: int
  base: float
  reference: tuple[int, int] | None = None

  def __post_init__(self) -> None:
    choose(CONVENTIONS, self.kind, 'model.rotary')
    if self.head_dim % 4:
      raise UserError(f'model.rotary: {self.kind!r} needs heads of a multiple of 4 features; got width / heads = '
                      f'{self.head_dim}')

  def __call__(self, x: Heads) -> Heads:
    """Return the heads of all tokens, rotated in float32 and rounded once to their own type."""
    angles = _angles(self)
    cos, sin = jnp.asarray(np.cos(angles), jnp.float32), jnp.asarray(np.sin(angles), jnp.float32)
    y = x.astype(jnp.float32)
    if CONVENTIONS[self.kind].halves:
      a, b = jnp.split(y, 2, axis=-1)
      rotated = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    else:
      a, b = y[..., 0::2], y[..., 1::2]
      rotated = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(y.shape)
    return rotated.astype(x.dtype)


@functools.lru_cache(maxsize=16)
def _angles(rotary: Rotary) -> Angles:
  """Return the angle of each token and pair: zeros for the prefix, then the patches row by row."""
  n = rotary.head_dim // 4
  frequencies = rotary.base ** (-np.arange(n) / n)
  references = rotary.reference or (None, None)
  coordinates = [CONVENTIONS[rotary.kind].coordinates(count, reference)
                 for count, reference in zip(rotary.grid, references, strict=True)]
  axes = [axis[..., None] * frequencies for axis in np.meshgrid(*coordinates, indexing='ij')]
  angles = np.concatenate(axes, axis=-1).reshape(-1, 2 * n)
  return np.concatenate([np.zeros((rotary.prefix, 2 * n)), angles])
