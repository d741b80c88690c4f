"""Relative positions: what is added to an attention's scores for the offset between query and key.

Each class is built with the grid of patches, the number of tokens before it, the heads and their features. Called, it
returns a function from the scaled queries to what is added to their scores, (1 or batch, heads, queries, keys) float32.
Queries are all tokens, or the first only.
"""
from collections.abc import Callable, Mapping
import dataclasses
import functools
import math
from typing import Protocol, runtime_checkable

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from vit_jax.base.choices import choose
from vit_jax.base.errors import UserError
from vit_jax.models.base import ArrayLike
from vit_jax.models.config import ViTConfig

Bias = Float[ArrayLike, '#batch heads queries keys']
Scores = Callable[[Float[ArrayLike, 'batch heads queries head_dim']], Bias]


@dataclasses.dataclass(frozen=True)
class Place:
  """What relative positions are between, and in which attention.

  Attributes:
    grid: patches, (rows, columns).
    class_token: whether the first token is a class token.
    others: further tokens before the patches, such as registers.
    heads: of the attention.
    head_dim: features of a head.
    hidden: features of the hidden layer of `LogMlp`.
  """
  grid: tuple[int, int]
  class_token: bool
  others: int
  heads: int
  head_dim: int
  hidden: int

  @classmethod
  def of(cls, config: ViTConfig) -> 'Place':
    """Return the place of a config's relative positions."""
    others = config.num_prefix_tokens - int(config.class_token)
    return cls(config.grid, config.class_token, others, config.heads, config.width // config.heads,
               config.relative_position_dim)

  @property
  def num_prefix(self) -> int:
    """Tokens before the patches."""
    return int(self.class_token) + self.others

  @property
  def num_offsets(self) -> int:
    """Offsets between two patches: (2 rows - 1) (2 columns - 1)."""
    return math.prod(2 * n - 1 for n in self.grid)

  @property
  def num_tokens(self) -> int:
    """All tokens."""
    return self.num_prefix + math.prod(self.grid)


@runtime_checkable
class Relative(Protocol):
  """Relative positions of one attention, or of all."""

  def __init__(self, place: Place, *, rngs: nnx.Rngs):
    """Draw the parameters."""
    ...

  def __call__(self) -> Scores:
    """Return the function from scaled queries to what is added to their scores."""
    ...

  @staticmethod
  def multiply_adds(place: Place) -> tuple[int, int]:
    """Return the multiply-adds of one call, and of one use of the function it returns."""
    ...


class TableBias(nnx.Module):
  """One learned number per head and two-dimensional offset (BEiT, arXiv 2106.08254; Swin, arXiv 2103.14030).

  `table` (offsets, heads) has timm's `relative_position_bias_table` and BEiT's row by row: the offset (query - key)
  of (i, j) patches is row (i + rows - 1) (2 columns - 1) + j + columns - 1. A model with a class token has three more
  rows: class to patch, patch to class, class to class. Other tokens before the patches get zeros. Standard deviation
  0.02, as in timm.
  """

  def __init__(self, place: Place, *, rngs: nnx.Rngs):
    self.place = place
    init = nnx.initializers.truncated_normal(0.02)
    shape = place.num_offsets + 3 * int(place.class_token), place.heads
    self.table = nnx.Param(init(rngs.params(), shape, jnp.float32))

  def __call__(self) -> Scores:
    """Return the function from queries to biases."""
    place, table = self.place, self.table[...]
    bias = _pad(_between_patches(table[:place.num_offsets], place.grid), place.num_prefix)
    if place.class_token:
      to_patch, from_patch, to_class = (x[:, None, None] for x in table[place.num_offsets:])
      number = jnp.arange(place.num_tokens)
      patch = number >= place.num_prefix
      query, key = number[:, None], number[None]
      bias += (to_patch * ((query == 0) & patch) + from_patch * (patch[:, None] & (key == 0))
               + to_class * ((query == 0) & (key == 0)))
    return lambda query: bias[None, :, :query.shape[2]]

  @staticmethod
  def multiply_adds(place: Place) -> tuple[int, int]:
    """Return zeros: nothing is a product."""
    del place
    return 0, 0


class LogMlp(nnx.Module):
  """A small MLP of the logarithm of the offset: timm's `RelPosMlp`, mode 'cr', of `vit_relpos_*`.

  The offset d of rows and of columns enters as sign(d) log(1 + |d|); the MLP is dense, ReLU, dense, as `mlp.fc1` and
  `mlp.fc2` there (`up`, `down` here), in float32. Tokens that are not patches get zeros. It fits a grid of any size.
  timm drops an eighth of its hidden features in training; here nothing is dropped.
  """
  _down_bias = True

  def __init__(self, place: Place, *, rngs: nnx.Rngs):
    self.place = place
    self.up = nnx.Linear(2, place.hidden, rngs=rngs)
    self.down = nnx.Linear(place.hidden, place.heads, use_bias=self._down_bias, rngs=rngs)

  def __call__(self) -> Scores:
    """Return the function from queries to biases."""
    hidden = jax.nn.relu(self.up(jnp.asarray(self._coordinates(self.place.grid))))
    bias = _pad(_between_patches(self._activate(self.down(hidden)), self.place.grid), self.place.num_prefix)
    return lambda query: bias[None, :, :query.shape[2]]

  @staticmethod
  def _coordinates(grid: tuple[int, int]) -> Float[np.ndarray, 'offsets 2']:
    """Return what the MLP takes for every offset, row by row."""
    offsets = _offsets(grid)
    return np.sign(offsets) * np.log1p(np.abs(offsets))

  @staticmethod
  def _activate(bias: Float[Array, 'offsets heads']) -> Float[Array, 'offsets heads']:
    return bias

  @staticmethod
  def multiply_adds(place: Place) -> tuple[int, int]:
    """Return those of the MLP, which runs once for each offset, whatever the number of images."""
    return place.num_offsets * place.hidden * (2 + place.heads), 0


class SwinMlp(LogMlp):
  """The form of Swin V2 (arXiv 2111.09883, section 3.3): timm's mode 'swin'.

  Offsets are scaled to -8..8 over the grid and enter as sign(d) log2(1 + |d|) / 3; biases are 16 sigmoid(MLP), and the
  second layer has no bias.
  """
  _down_bias = False

  @staticmethod
  def _coordinates(grid: tuple[int, int]) -> Float[np.ndarray, 'offsets 2']:
    scaled = _offsets(grid) * 8 / np.maximum(np.asarray(grid, np.float32) - 1, 1)
    return np.sign(scaled) * np.log2(1 + np.abs(scaled)) / np.float32(3)

  @staticmethod
  def _activate(bias: Float[Array, 'offsets heads']) -> Float[Array, 'offsets heads']:
    return 16 * jax.nn.sigmoid(bias)


class OffsetKeys(nnx.Module):
  """A learned key per one-dimensional offset, which queries attend to by content (paper, appendix D.4, "relative").

  The tokens, those before the patches first, are numbered in order; the score of query q and key k grows by the product
  of the scaled query and `keys[q - k + tokens - 1]` (2 tokens - 1, heads, head_dim). Standard deviation 0.02.
  """

  def __init__(self, place: Place, *, rngs: nnx.Rngs):
    init = nnx.initializers.normal(0.02)
    self.keys = nnx.Param(init(rngs.params(), (2 * place.num_tokens - 1, place.heads, place.head_dim), jnp.float32))

  def __call__(self) -> Scores:
    """Return the function from queries to biases."""
    return functools.partial(_attend_to_offsets, self.keys[...][::-1])

  @staticmethod
  def multiply_adds(place: Place) -> tuple[int, int]:
    """Return those of all queries with the keys of all offsets."""
    return 0, place.num_tokens * (2 * place.num_tokens - 1) * place.heads * place.head_dim


def check(name: str | None, attention: str) -> None:
  """Raise UserError unless relative positions `name` (None: none) work with attention `attention` of ATTENTIONS."""
  if name is not None and attention != 'xla':
    raise UserError(f"model.relative_position: {name!r} needs model.attention='xla', got {attention!r}")


def make(config: ViTConfig, shared: bool, rngs: nnx.Rngs) -> Relative | None:
  """Return the relative positions of all blocks (`shared`) or of one; None if a config has none there."""
  if config.relative_position is None or config.relative_position_shared != shared:
    return None
  return choose(RELATIVES, config.relative_position, 'model.relative_position')(Place.of(config), rngs=rngs)


def _attend_to_offsets(keys: Float[Array, 'offsets heads head_dim'],
                       query: Float[ArrayLike, 'batch heads queries head_dim']) -> Bias:
  """Return the products of queries with the keys of their offsets; `keys` from the largest offset to the smallest."""
  tokens = (len(keys) + 1) // 2
  first_only = query.shape[2] == 1 < tokens
  keys = keys[tokens - 1:] if first_only else keys
  scores = jnp.einsum('bhqd,ohd->bhqo', query, keys.astype(query.dtype), preferred_element_type=jnp.float32)
  return scores if first_only else _shift(scores)


def _between_patches(by_offset: Float[Array, 'offsets heads'], grid: tuple[int, int]) -> Float[
    Array, 'heads patches patches']:
  """Return a number per head and pair of patches (query, key) from one per offset, row by row."""
  rows, columns = grid
  x = by_offset.reshape(2 * rows - 1, 2 * columns - 1, -1).transpose(2, 0, 1)[:, ::-1, ::-1]
  x = _toeplitz(x, columns)  # heads, row offset, column of query, column of key
  x = _toeplitz(x.transpose(0, 2, 3, 1), rows)  # heads, column of query, column of key, row of query, row of key
  return x.transpose(0, 3, 1, 4, 2).reshape(-1, rows * columns, rows * columns)


def _toeplitz(x: Float[Array, '*shape offsets'], length: int) -> Float[Array, '*shape queries keys']:
  """Return y[…, q, k] = x[…, k - q + length - 1]."""
  return _shift(jnp.broadcast_to(x[..., None, :], (*x.shape[:-1], length, x.shape[-1])))


def _shift(x: Float[Array, '*shape queries offsets']) -> Float[Array, '*shape queries keys']:
  """Return y[…, q, k] = x[…, q, k - q + queries - 1] for n queries, n keys and 2 n - 1 offsets.

  Rows of 2 n numbers, read as rows of 2 n - 1, move by one place per row: reshapes and slices, whose gradients are too,
  where a gather's would be a scatter.
  """
  *lead, n, _ = x.shape
  x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, 1)]).reshape(*lead, 2 * n * n)
  return x[..., n - 1:n - 1 + n * (2 * n - 1)].reshape(*lead, n, 2 * n - 1)[..., :n]


def _pad(bias: Float[Array, 'heads patches patches'], num_prefix: int) -> Float[Array, 'heads tokens tokens']:
  return jnp.pad(bias, [(0, 0), (num_prefix, 0), (num_prefix, 0)])


def _offsets(grid: tuple[int, int]) -> Float[np.ndarray, 'offsets 2']:
  """Return every offset between two patches, (rows, columns), row by row."""
  rows, columns = (np.arange(1 - n, n, dtype=np.float32) for n in grid)
  return np.stack(np.meshgrid(rows, columns, indexing='ij'), axis=-1).reshape(-1, 2)


RELATIVES: Mapping[str, type[Relative]] = {
    'keys1d': OffsetKeys,
    'mlp': LogMlp,
    'mlp_swin': SwinMlp,
    'table': TableBias,
}
