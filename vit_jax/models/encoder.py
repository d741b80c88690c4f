"""The transformer encoder: a stack of pre-norm blocks, their parameters stacked along a leading depth axis."""
from collections.abc import Callable
import dataclasses
import functools
from typing import Any, Protocol, runtime_checkable

from flax import nnx
import jax
from jax import Array
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
from jax.sharding import PartitionSpec, get_abstract_mesh
from jaxtyping import Float, Int

from vit_jax.base.choices import choose
from vit_jax.base.errors import UserError
from vit_jax.models import attention, attention_kinds, layers
from vit_jax.models.base import Images, Model, Read, Reduce, Rngs, Tokens, as_they_are
from vit_jax.models.config import ViTConfig
from vit_jax.models.mlp import Mlp
from vit_jax.models.positions import embeddings, relative
from vit_jax.models.positions.embeddings import Position
from vit_jax.models.positions.relative import Relative, Scores
from vit_jax.models.positions.rotary import Rotary

# Tokens, block (parameters), number of the block → tokens, and whatever else the caller collects from each block.
_Body = Callable[..., tuple[Array, Any]]


class Block(Protocol):
  """A block of an `Encoder`, called with tokens and what all blocks share: block(x, **shared) → tokens."""

  def attention_weights(self, x: Tokens, **shared: Any) -> Float[Array, 'batch heads tokens tokens']:
    """Return the attention weights, float32; raise UserError if there are none from all tokens to all."""
    ...

  def slopes(self, x: Tokens, **shared: Any) -> list[Float[Array, 'batch _ hidden']]:
    """Return the derivative of the activation function at every hidden unit of each MLP: how much gradient passes."""
    ...


@runtime_checkable
class BlockModel(Model, Protocol):
  """A model whose tokens pass through an `Encoder`."""

  def collect(self, images: Images, read: Read) -> tuple[Tokens, Any]:
    """Return the tokens after the last block, and what is read at every block, stacked along a first axis.

    Args:
      images: floats, already normalized.
      read: (`Block`, the tokens before it, **shared) → arrays in any tree.
    """
    ...


class EncoderBlock(nnx.Module):
  """Pre-norm block: x + attention(norm(x)), then x + mlp(norm(x)) (paper, equations 2 and 3)."""

  def __init__(self, config: ViTConfig, *, attend: Callable[..., attention.Attention] = attention.Attention,
               rngs: nnx.Rngs):
    self.config = config
    width, dtype = config.width, jnp.dtype(config.dtype)
    norm = lambda: nnx.LayerNorm(width, epsilon=config.norm_epsilon, dtype=dtype, rngs=rngs)
    self.attention_norm = norm()
    self.attention = attend(
        width, config.heads, dropout=config.attention_dropout, kind=config.attention, qk_norm=config.qk_norm,
        qkv_bias=config.qkv_bias, key_bias=config.key_bias, rotary=_rotary(config), norm_epsilon=config.norm_epsilon,
        dtype=dtype, rngs=rngs)
    self.position = embeddings.make(config, 'every', rngs)
    self.relative = relative.make(config, False, rngs)
    self.mlp_norm = norm()
    self.mlp = Mlp(width, config.mlp_dim, kind=config.mlp, gelu=config.gelu, hidden_norm=config.mlp_hidden_norm,
                   norm_epsilon=config.norm_epsilon, dropout=config.dropout, dtype=dtype, rngs=rngs)
    scale = lambda: None if config.layer_scale is None else nnx.Param(jnp.full((width,), config.layer_scale))
    self.attention_scale, self.mlp_scale = scale(), scale()
    self.dropout = config.dropout

  def __call__(self, x: Tokens, rngs: Rngs = None, drop_rate: float | Float[Array, ''] = 0.0,
               first_only: bool = False, **shared: Any) -> Float[Array, 'batch outputs width']:
    """Return the block's output for all tokens, or for the first only.

    Args:
      x: tokens.
      rngs: one PRNG key per example in training, None in evaluation.
      drop_rate: stochastic depth rate of this block.
      first_only: compute the output of the first token only.
      **shared: see `Encoder.shared`.
    """
    x, relative = self._with_positions(x, **shared)
    weights_rngs, output_rngs, mlp_rngs, *path_rngs = layers.split(rngs, 5)
    y = layers.layer_norm(self.attention_norm, x)
    x, queries = (_first(x), _first(y)) if first_only else (x, None)
    y = self.attention(y, queries, weights_rngs, relative)
    y = layers.dropout(y, self.dropout, output_rngs)
    x += layers.drop_path(_scaled(y, self.attention_scale), drop_rate, path_rngs[0])
    y = self.mlp(layers.layer_norm(self.mlp_norm, x), mlp_rngs)
    return x + layers.drop_path(_scaled(y, self.mlp_scale), drop_rate, path_rngs[1])

  def slopes(self, x: Tokens, **shared: Any) -> list[Float[Array, 'batch tokens mlp_dim']]:
    """Return `Mlp.slopes` of the block's MLP; arguments as for calls."""
    x, relative = self._with_positions(x, **shared)
    y = self.attention(layers.layer_norm(self.attention_norm, x), None, None, relative)
    return [self.mlp.slopes(layers.layer_norm(self.mlp_norm, x + _scaled(y, self.attention_scale)))]

  def attention_weights(self, x: Tokens, **shared: Any) -> Float[Array, 'batch heads tokens tokens']:
    """Return the attention weights of the block, float32; arguments as for calls."""
    x, relative = self._with_positions(x, **shared)
    return self.attention.weights(layers.layer_norm(self.attention_norm, x), relative=relative)

  def _with_positions(self, x: Tokens, position: Float[Array, '*batch tokens width'] | None = None,
                      relative: Scores | None = None,
                      keep: Int[Array, 'batch tokens'] | None = None) -> tuple[Tokens, Scores | None]:
    """Return the tokens with positions added, and relative positions: the block's own, or else those given."""
    own = _kept(embeddings.per_token(self.position, self.config), keep)
    position = position if own is None else own
    x = x if position is None else x + position.astype(x.dtype)
    return x, relative if self.relative is None else self.relative()


class AxialBlock(nnx.Module):
  """Attention within rows and an MLP, then attention within columns and an MLP (paper, appendix D.6)."""

  def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
    rows, columns = attention_kinds.ATTENTION_KINDS['axial'](config)
    self.rows = EncoderBlock(config, attend=rows, rngs=rngs)
    self.columns = EncoderBlock(dataclasses.replace(config, position_at='stem'), attend=columns, rngs=rngs)

  def __call__(self, x: Tokens, rngs: Rngs = None, drop_rate: float | Float[Array, ''] = 0.0,
               first_only: bool = False, **shared: Any) -> Tokens:
    """Return the block's output for all tokens; arguments as for `EncoderBlock`."""
    assert not first_only
    row_rngs, column_rngs = layers.split(rngs, 2)
    return self.columns(self.rows(x, row_rngs, drop_rate, **shared), column_rngs, drop_rate)

  def attention_weights(self, x: Tokens, **shared: Any) -> Float[Array, 'batch heads tokens tokens']:
    """Raise UserError: there are two attentions, and neither is from all tokens to all."""
    del x, shared
    raise UserError("model.attention_kind: 'axial' has no attention weights from all tokens to all; 'full' and 'local' "
                    'have')

  def slopes(self, x: Tokens, **shared: Any) -> list[Float[Array, 'batch tokens mlp_dim']]:
    """Return `Mlp.slopes` of both MLPs; arguments as for calls."""
    return self.rows.slopes(x, **shared) + self.columns.slopes(self.rows(x, **shared), **shared)


def make_block(config: ViTConfig, *, rngs: nnx.Rngs) -> EncoderBlock | AxialBlock:
  """Return the block of a config."""
  if config.attention_kind == 'axial':
    return AxialBlock(config, rngs=rngs)
  attend, = attention_kinds.ATTENTION_KINDS[config.attention_kind](config)
  return EncoderBlock(config, attend=attend, rngs=rngs)


def _rotary(config: ViTConfig) -> Rotary | None:
  """Return the rotation of a config's queries and keys, or None for a config without."""
  if config.rotary is None:
    return None
  return Rotary(config.rotary, config.grid, config.num_prefix_tokens, config.width // config.heads, config.rotary_base,
                config.rotary_grid)


def _kept(position: Float[Array, 'tokens width'] | None,
          keep: Int[Array, 'batch kept'] | None) -> Float[Array, '*batch_and_kept width'] | None:
  """Return the positions of the tokens that are kept in each example; None: all are."""
  return position if position is None or keep is None else position[keep]


def _first(x: Tokens) -> Float[Array, 'batch 1 width']:
  """Return the first token.

  A sum, not a slice: the layout that TPU's compiler gives to a slice would constrain the tokens of all blocks.
  """
  return jnp.where(jnp.arange(x.shape[1])[:, None] == 0, x, jnp.zeros_like(x)).sum(axis=1, keepdims=True)


def _scaled(x: Tokens, scale: nnx.Param | None) -> Tokens:
  return x if scale is None else x * scale[...].astype(x.dtype)


def constrain_batch_sharding(x: Float[Array, 'batch *shape']) -> Float[Array, 'batch *shape']:
  """Keep activations sharded by batch if a mesh is set, so that XLA all-gathers weights instead."""
  axes = tuple(name for name in ('data', 'fsdp') if name in get_abstract_mesh().axis_names)
  return jax.lax.with_sharding_constraint(x, PartitionSpec(axes)) if axes else x


class Encoder(nnx.Module):
  """A stack of blocks.

  Their parameters are arrays (depth, …), or as `vit_tree.unstack_blocks` makes them.

  Args:
    config: of the model; has depth, stochastic_depth, unroll and remat.
    block: makes a block, called with the config and rngs; a block is called like an `EncoderBlock`.
    position: embedding that is added to the input of every block; None: none.
    relative: relative positions that all blocks share; None: none.
    rngs: parameter stream.
  """

  def __init__(self, config: Any, block: Callable[..., Any] = make_block, *, position: Position | None = None,
               relative: Relative | None = None, rngs: nnx.Rngs):
    self.config = config
    self.blocks = nnx.vmap(lambda rngs: block(config, rngs=rngs))(rngs.split(config.depth))
    self.position, self.relative = position, relative
    self.depth = config.depth
    self.stochastic_depth = config.stochastic_depth
    self.unroll = config.unroll
    self.remat = config.remat or 'none'
    choose(REMAT, self.remat, 'model.remat')

  def __call__(self, x: Tokens, rngs: Rngs = None, num_layers: int | None = None, first_only: bool = False,
               keep: Int[Array, 'batch tokens'] | None = None) -> Float[Array, 'batch outputs width']:
    """Return the tokens after the first blocks.

    Args:
      x: tokens.
      rngs: one PRNG key per example in training, None in evaluation.
      num_layers: number of blocks to run; None: all.
      first_only: return only the first token; the last block then does not compute the others.
      keep: where the tokens are among all of an image; None: they are all.
    """
    shared = self.shared(keep)

    def body(x: Array, block: Any, number: int | Array, **options: bool) -> tuple[Array, None]:
      x = checkpoint_name(x, BLOCK_INPUT)
      rate = self.stochastic_depth * number / max(self.depth - 1, 1) if self.stochastic_depth else 0.0
      return constrain_batch_sharding(block(x, layers.fold_in(rngs, number), rate, **options, **shared)), None

    if not first_only:
      return self._run(body, x, num_layers)[0]
    x, _ = self._run(body, x, self.depth - 1)
    return self._run_one(functools.partial(body, first_only=True), x, self.depth - 1)[0]

  def shared(self, keep: Int[Array, 'batch tokens'] | None = None) -> dict[str, Any]:
    """Return what every block is given: `position` and `relative`, if blocks share them, and the tokens to `keep`."""
    position = None if self.position is None else _kept(embeddings.per_token(self.position, self.config), keep)
    found = dict(position=position, relative=None if self.relative is None else self.relative(), keep=keep)
    return {name: value for name, value in found.items() if value is not None}

  def attention_weights(self, x: Tokens, reduce: Reduce = as_they_are) -> Any:
    """Return what `reduce` makes of the attention weights of every block, stacked; see `base.Model`."""
    shared = self.shared()
    return self.collect(x, lambda block, x: reduce(block.attention_weights(x, **shared)))[1]

  def collect(self, x: Tokens, read: Callable[[Any, Tokens], Any]) -> tuple[Tokens, Any]:
    """Return the tokens after the last block, and what was read at every block, stacked along a first axis.

    Args:
      x: tokens.
      read: called with each block and the tokens before it, without the positions that the block adds; returns arrays.
    """
    shared = self.shared()
    return self._scan(lambda x, block, number: (constrain_batch_sharding(block(x, **shared)), read(block, x)),
                      x, None)

  def _run(self, body: _Body, x: Array, count: int | None) -> tuple[Array, Any]:
    if not self.unroll:
      return self._scan(body, x, count)
    for number in range(self.depth if count is None else count):
      x, _ = self._run_one(body, x, number)
    return x, None

  def _run_one(self, body: _Body, x: Array, number: int) -> tuple[Array, Any]:
    """Run the block of this number, its parameters cut from the stack or an element of a tuple."""
    graphdef, stacked = nnx.split(self.blocks)
    own = jax.tree.map(lambda leaf: leaf[number], stacked, is_leaf=lambda leaf: isinstance(leaf, tuple))
    return REMAT[self.remat](lambda x, own: body(x, nnx.merge(graphdef, own), number))(x, own)

  def _scan(self, body: _Body, x: Array, count: int | None) -> tuple[Array, Any]:
    graphdef, stacked = nnx.split(self.blocks)
    layer = (jnp.arange(self.depth), stacked)
    run = REMAT[self.remat](lambda x, layer: body(x, nnx.merge(graphdef, layer[1]), layer[0]))
    return jax.lax.scan(run, x, jax.tree.map(lambda leaf: leaf[:count], layer))


def keep_all(block: Callable[..., Any]) -> Callable[..., Any]:
  """Return the block as it is: nothing is recomputed."""
  return block


# The checkpoint name of a block's input, which may be moved to host memory.
BLOCK_INPUT = 'block input'

# What is kept from the forward pass for the gradient; the rest is recomputed.
REMAT: dict[str, Callable[..., Any]] = {
    'dots': functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names(layers.DENSE)),
    'full': jax.checkpoint,  # only a block's input
    'none': keep_all,
    'offload': functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[], names_which_can_be_offloaded=[BLOCK_INPUT], offload_src='device',
        offload_dst='pinned_host')),  # the same, in host memory
}
