"""Which tokens attend to which: all to all, within rows and columns, or within a window."""
from collections.abc import Callable, Mapping
import functools
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from vit_jax.base.choices import choose
from vit_jax.base.errors import UserError
from vit_jax.models.attention import Attention, Keys, Output, Queries, Weights, attention_weights
from vit_jax.models.base import Rngs, Tokens
from vit_jax.models.config import ViTConfig
from vit_jax.models.layers import split
from vit_jax.models.positions.relative import Bias, Scores


class RowAttention(Attention):
  """Attention within each row of the grid: one half of an axial block (paper, appendix D.6)."""
  across = 'bijd->bijd'

  def __init__(self, *arguments: Any, grid: tuple[int, int], **options: Any):
    super().__init__(*arguments, **options)
    self.grid = tuple(grid)

  def __call__(self, x: Tokens, queries: None = None, rngs: Rngs = None, relative: None = None) -> Tokens:
    """Return the attention's output for patches given row by row; arguments as for `Attention`."""
    assert queries is None and relative is None
    batch, _, width = x.shape
    x = jnp.einsum(self.across, x.reshape(batch, *self.grid, width))
    lines = x.shape[1]
    keys = None if rngs is None else jax.vmap(lambda key: jax.random.split(key, lines))(rngs).reshape(-1)
    y = super().__call__(x.reshape(batch * lines, -1, width), None, keys)
    return jnp.einsum(self.across, y.reshape(x.shape)).reshape(batch, -1, width)


class ColumnAttention(RowAttention):
  """Attention within each column of the grid: the other half of an axial block."""
  across = 'bijd->bjid'


class LocalAttention(Attention):
  """Attention of a patch to the patches around it and to the tokens before the patches, which attend to all.

  Keys are gathered by rows: a row of patches is multiplied with the rows of its window, and what is too far to the left
  or to the right is masked.
  """

  def __init__(self, *arguments: Any, grid: tuple[int, int], num_prefix: int, window: int, **options: Any):
    super().__init__(*arguments, **options)
    self.grid, self.num_prefix, self.window = tuple(grid), num_prefix, window

  def weights(self, x: Tokens, queries: Tokens | None = None, relative: Scores | None = None) -> Weights:
    """Return the attention weights of all tokens, float32; those outside of the window are 0."""
    assert queries is None and relative is None
    query, key = self._project_qk(x, queries)
    mask = jnp.broadcast_to(self._mask_of_all(), (1, *query.shape[1:3], key.shape[2]))
    return attention_weights(query * query.shape[-1] ** -0.5, key, mask)

  def _mix(self, query: Queries, key: Keys, value: Keys, bias: Bias | None, rngs: Rngs) -> Output:
    if query.shape[2] != key.shape[2]:  # of tokens before the patches
      return super()._mix(query, key, value, bias, rngs)
    prefix_rngs, patch_rngs = split(rngs, 2)
    prefix, (_, columns) = self.num_prefix, self.grid
    batch, heads, _, head_dim = query.shape
    by_row = lambda x: x.reshape(batch, -1, columns, head_dim)  # every row of a head is a head
    keys, values = (self._band(x).reshape(batch, heads * self.grid[0], -1, head_dim) for x in (key, value))
    mask = jnp.tile(self._mask_of_rows(), (heads, 1, 1))[None]
    y = super()._mix(by_row(query[:, :, prefix:]), keys, values, mask, patch_rngs).reshape(batch, heads, -1, head_dim)
    if not prefix:
      return y
    return jnp.concatenate([super()._mix(query[:, :, :prefix], key, value, None, prefix_rngs), y], axis=2)

  @property
  def reach(self) -> int:
    """Rows above, and below, from which keys are gathered."""
    return min(self.window, self.grid[0] - 1)

  def _band(self, x: Keys) -> Float[Array, 'batch heads rows gathered head_dim']:
    """Return, for every row of patches, the tokens before the patches and the patches of the rows around it."""
    (rows, columns), reach, prefix = self.grid, self.reach, self.num_prefix
    grid = x[:, :, prefix:].reshape(*x.shape[:2], rows, columns, -1)
    grid = jnp.pad(grid, [(0, 0), (0, 0), (reach, reach), (0, 0), (0, 0)])
    band = jnp.concatenate([grid[:, :, shift:shift + rows] for shift in range(2 * reach + 1)], axis=3)
    before = jnp.broadcast_to(x[:, :, None, :prefix], (*x.shape[:2], rows, prefix, x.shape[-1]))
    return jnp.concatenate([before, band], axis=3)

  def _mask_of_rows(self) -> Float[np.ndarray, 'rows columns gathered']:
    """Return 0 where a patch attends to a key of `_band`, minus infinity elsewhere."""
    (rows, columns), reach = self.grid, self.reach
    row, shift, column = np.arange(rows)[:, None], np.arange(-reach, reach + 1), np.arange(columns)
    inside = (row + shift >= 0) & (row + shift < rows)  # rows, shifts
    near = np.abs(column[:, None] - column) <= self.window  # columns of queries, of keys
    seen = (inside[:, None, :, None] & near[None, :, None]).reshape(rows, columns, -1)
    return _minus_infinity_outside(np.pad(seen, [(0, 0), (0, 0), (self.num_prefix, 0)], constant_values=True))

  def _mask_of_all(self) -> Float[np.ndarray, 'tokens tokens']:
    row, column = np.divmod(np.arange(self.grid[0] * self.grid[1]), self.grid[1])
    near = [np.abs(axis[:, None] - axis) <= self.window for axis in (row, column)]
    return _minus_infinity_outside(np.pad(near[0] & near[1], [(self.num_prefix, 0)] * 2, constant_values=True))


def _minus_infinity_outside(seen: np.ndarray) -> np.ndarray:
  return np.where(seen, np.float32(0), np.float32(-np.inf))


# Which attentions, each followed by an MLP, a block of a config has.
ATTENTION_KINDS: Mapping[str, Callable[[ViTConfig], tuple[Callable[..., Attention], ...]]] = {
    'axial': lambda config: tuple(functools.partial(cls, grid=config.grid) for cls in (RowAttention, ColumnAttention)),
    'full': lambda config: (Attention,),
    'local': lambda config: (functools.partial(
        LocalAttention, grid=config.grid, num_prefix=config.num_prefix_tokens, window=config.attention_window),),
}


def check(config: ViTConfig) -> None:
  """Raise UserError, naming both keys, if a config's other options do not go with its kind of attention."""
  kind = config.attention_kind
  choose(ATTENTION_KINDS, kind, 'model.attention_kind')
  if kind != 'full' and config.relative_position is not None:
    raise UserError(f"model.relative_position: {config.relative_position!r} needs model.attention_kind='full', got "
                    f'{kind!r}')
  if kind == 'axial' and config.rotary is not None:
    raise UserError(f"model.rotary: {config.rotary!r} needs model.attention_kind='full' or 'local', got 'axial'")
  if kind == 'axial' and config.num_prefix_tokens:
    raise UserError(f"model.attention_kind: 'axial' takes patches only; use model.pool='gap' or 'map' with "
                    f'model.class_token=False and model.registers=0; got {config.num_prefix_tokens} tokens before the '
                    'patches')
  if kind == 'local' and config.attention != 'xla':
    raise UserError(f"model.attention_kind: 'local' needs model.attention='xla', got {config.attention!r}")


def multiply_adds(config: ViTConfig) -> int:
  """Return those of the scores and weighted sums of one block for one image."""
  (rows, columns), width, tokens = config.grid, config.width, config.num_tokens
  if config.attention_kind == 'axial':
    return 2 * tokens * (rows + columns) * width
  if config.attention_kind == 'full':
    return 2 * tokens**2 * width
  prefix, patches = config.num_prefix_tokens, rows * columns
  keys = prefix + (2 * min(config.attention_window, rows - 1) + 1) * columns
  return 2 * (prefix * tokens + patches * keys) * width
