"""Position embeddings: where a token is on the grid of patches.

Each class is built with the grid (rows, columns), the width, and whether the class token has a position.
Called, it returns (grid, class token): the embedding of each patch and that of the class token; a scalar zero means
none.
"""
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from flax import nnx
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float

from vit_jax.base.choices import choose
from vit_jax.base.errors import UserError
from vit_jax.models.config import ViTConfig

Grid = Float[Array, 'rows columns width']
Token = Float[Array, ' width'] | Float[Array, '']


@runtime_checkable
class Position(Protocol):
  """A position embedding."""

  def __call__(self) -> tuple[Grid | Float[Array, ''], Token]:
    """Return the embeddings of the patches and of the class token, float32."""
    ...


class Learned(nnx.Module):
  """One learned vector per place, standard deviation 0.02 (paper, section 3.1, "1-D" in appendix D.4)."""

  def __init__(self, grid: tuple[int, int], width: int, *, class_token: bool, rngs: nnx.Rngs):
    init = nnx.initializers.normal(0.02)
    self.grid = nnx.Param(init(rngs.params(), (*grid, width), jnp.float32))
    self.token = nnx.Param(init(rngs.params(), (width,), jnp.float32)) if class_token else None

  def __call__(self) -> tuple[Grid, Token]:
    """Return the two tables."""
    return self.grid[...], _token(self.token)


class Learned2D(nnx.Module):
  """Learned tables of rows and of columns, half the width each, concatenated (paper, appendix D.4)."""

  def __init__(self, grid: tuple[int, int], width: int, *, class_token: bool, rngs: nnx.Rngs):
    if width % 2:
      raise UserError(f"model.position: 'learned2d' needs an even width, got {width}")
    init = nnx.initializers.normal(0.02)
    self.rows = nnx.Param(init(rngs.params(), (grid[0], width // 2), jnp.float32))
    self.columns = nnx.Param(init(rngs.params(), (grid[1], width // 2), jnp.float32))
    self.token = nnx.Param(init(rngs.params(), (width,), jnp.float32)) if class_token else None

  def __call__(self) -> tuple[Grid, Token]:
    """Return [column, row] for each patch, and the class token's vector."""
    shape = (self.rows.shape[0], self.columns.shape[0], self.rows.shape[1])
    x, y = jnp.broadcast_to(self.columns[...], shape), jnp.broadcast_to(self.rows[...][:, None], shape)
    return jnp.concatenate([x, y], axis=-1), _token(self.token)


class NoPosition(nnx.Module):
  """No position information: the encoder sees a bag of patches (paper, table 8, row 1)."""

  def __init__(self, grid: tuple[int, int], width: int, *, class_token: bool, rngs: nnx.Rngs):
    del grid, width, class_token, rngs

  def __call__(self) -> tuple[Float[Array, ''], Token]:
    """Return zeros that broadcast."""
    return jnp.zeros(()), jnp.zeros(())


class SinCos2D(nnx.Module):
  """Fixed sine and cosine of row and column at width / 4 frequencies (MoCo v3; "Better plain ViT", section 2)."""

  def __init__(self, grid: tuple[int, int], width: int, *, class_token: bool, rngs: nnx.Rngs):
    del class_token, rngs
    if width % 4:
      raise UserError(f"model.position: 'sincos2d' needs a width divisible by 4, got {width}")
    self.grid = tuple(grid)
    self.width = width

  def __call__(self) -> tuple[Grid, Token]:
    """Return [sin x, cos x, sin y, cos y] for each patch, and zero for the class token."""
    rows, columns = self.grid
    n = self.width // 4
    # The k-th frequency is 10000^(-k / (n - 1)); a single one (n = 1) is 1.
    frequencies = 10_000.0 ** (-jnp.arange(n) / max(n - 1, 1))
    y, x = jnp.meshgrid(jnp.arange(rows), jnp.arange(columns), indexing='ij')
    angles = [axis[..., None] * frequencies for axis in (x, y)]
    return jnp.concatenate([f(a) for a in angles for f in (jnp.sin, jnp.cos)], axis=-1), jnp.zeros(())


def make(config: ViTConfig, at: str, rngs: nnx.Rngs) -> Position:
  """Return the position embedding that a config has at `at`, a name of `AT`; `NoPosition` if it has it elsewhere."""
  choose(AT, config.position_at, 'model.position_at')
  cls = choose(POSITIONS, config.position or 'none', 'model.position')
  cls = cls if config.position_at == at else NoPosition
  return cls(config.grid, config.width, class_token=config.class_token and config.token_position, rngs=rngs)


def per_token(position: Position, config: ViTConfig) -> Float[Array, 'tokens width'] | None:
  """Return an embedding as one vector per token, zeros for those that have none; None for `NoPosition`."""
  if isinstance(position, NoPosition):
    return None
  grid, token = position()
  first = jnp.broadcast_to(token, (int(config.class_token), config.width))
  grid = jnp.broadcast_to(grid, (*config.grid, config.width)).reshape(-1, config.width)
  others = jnp.zeros((config.num_prefix_tokens - len(first), config.width))
  return jnp.concatenate([first, others, grid])


def _token(token: nnx.Param | None) -> Token:
  return jnp.zeros(()) if token is None else token[...]


# Where a position embedding is added.
AT = {'every': 'to the input of each block, each its own', 'shared': 'to the input of each block', 'stem': 'once'}

POSITIONS: Mapping[str, type] = {
    'learned': Learned,
    'learned2d': Learned2D,
    'none': NoPosition,
    'sincos2d': SinCos2D,
}
