"""The transformer encoder: a stack of pre-norm blocks, their parameters stacked along a leading depth axis."""
import functools
import re

from flax import nnx
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
from jax.sharding import get_abstract_mesh, PartitionSpec

from vit_jax.base.choices import choose
from vit_jax.models import attention
from vit_jax.models import layers
from vit_jax.models.config import ViTConfig


class EncoderBlock(nnx.Module):
  """Pre-norm block: x + attention(norm(x)), then x + mlp(norm(x)) (paper, equations 2 and 3)."""

  def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
    width, dtype = config.width, jnp.dtype(config.dtype)
    norm = lambda: nnx.LayerNorm(width, epsilon=config.norm_epsilon, dtype=dtype, rngs=rngs)
    self.attention_norm = norm()
    self.attention = attention.Attention(
        width, config.heads, dropout=config.attention_dropout, kind=config.attention, qk_norm=config.qk_norm,
        qkv_bias=config.qkv_bias, norm_epsilon=config.norm_epsilon, dtype=dtype, rngs=rngs)
    self.mlp_norm = norm()
    self.mlp = layers.MlpBlock(width, config.mlp_dim, dropout=config.dropout, gelu=config.gelu, dtype=dtype, rngs=rngs)
    scale = lambda: None if config.layer_scale is None else nnx.Param(jnp.full((width,), config.layer_scale))
    self.attention_scale, self.mlp_scale = scale(), scale()
    self.dropout = config.dropout

  def __call__(self, x, rngs=None, drop_rate=0.0, first_only=False):
    """Maps tokens (B, N, width) to as many, or to the first alone; `drop_rate` is this block's stochastic depth."""
    weights_rngs, output_rngs, mlp_rngs, *path_rngs = layers.split(rngs, 5)
    y = layers.layer_norm(self.attention_norm, x)
    x, asking = (_first(x), _first(y)) if first_only else (x, None)
    y = self.attention(y, asking, weights_rngs)
    y = layers.dropout(y, self.dropout, output_rngs)
    x += layers.drop_path(_scaled(y, self.attention_scale), drop_rate, path_rngs[0])
    y = self.mlp(layers.layer_norm(self.mlp_norm, x), mlp_rngs)
    return x + layers.drop_path(_scaled(y, self.mlp_scale), drop_rate, path_rngs[1])

  def attention_weights(self, x):
    """The softmax weights (B, heads, N, N), float32, that the block gives to tokens x."""
    return self.attention.weights(layers.layer_norm(self.attention_norm, x))


def _first(x):
  """The first token of x, (B, N, width), as (B, 1, width).

  A sum, not a slice: the layout that TPU's compiler gives to a slice would bind the tokens of all blocks.
  """
  return jnp.where(jnp.arange(x.shape[1])[:, None] == 0, x, jnp.zeros_like(x)).sum(axis=1, keepdims=True)


def _scaled(x, scale):
  return x if scale is None else x * scale[...].astype(x.dtype)


def by_example(x):
  """Keeps x, (B, …), cut by example over the mesh that is set, if any, so that weights move and not tokens."""
  axes = tuple(name for name in ('data', 'fsdp') if name in get_abstract_mesh().axis_names)
  return jax.lax.with_sharding_constraint(x, PartitionSpec(axes)) if axes else x


def name_of(path):
  """The name of a parameter from its tree path: 'encoder/blocks/mlp/up/kernel'."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def apart(params):
  """A model's parameters with each block's kernels apart, as unrolled blocks take them: tuples for arrays (depth, …).

  The gradients of micro-batches are then summed block by block, in place. Others, which are small, stay stacked.
  """
  def cut(path, leaf):
    name = name_of(path)
    if not re.fullmatch('encoder/blocks/.*/kernel', name):
      return leaf
    return tuple(attention.joined(leaf) if re.search('attention/(query|key|value)/', name) else leaf)

  return jax.tree_util.tree_map_with_path(cut, params)


def stacked(tree, params):
  """A tree such as `apart` makes, of gradients say, in the form of `params`."""
  is_tuple = lambda x: isinstance(x, tuple)
  return jax.tree.map(lambda x, like: jnp.stack(x).reshape(like.shape) if is_tuple(x) else x, tree, params,
                      is_leaf=is_tuple)


class Encoder(nnx.Module):
  """`depth` blocks.

  Their parameters are arrays (depth, …), or as `apart` makes them.

  Args:
    config: of the model.
    rngs: parameter stream.
  """

  def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
    self.blocks = nnx.vmap(lambda rngs: EncoderBlock(config, rngs=rngs))(rngs.split(config.depth))
    self.depth = config.depth
    self.stochastic_depth = config.stochastic_depth
    self.unroll = config.unroll
    self.remat = keep_all if config.remat is None else choose(REMAT, config.remat, 'model.remat')

  def __call__(self, x, rngs=None, layers_run=None, first_only=False):
    """Maps tokens (B, N, width) through the first `layers_run` blocks (None: all) to (B, N, width).

    `first_only`: only the first token is wanted, (B, 1, width); the last block then computes no others.
    """

    def body(x, block, number, first_only=False):
      x = checkpoint_name(x, _INPUT)
      rate = self.stochastic_depth * number / max(self.depth - 1, 1) if self.stochastic_depth else 0.0
      return by_example(block(x, layers.fold_in(rngs, number), rate, first_only)), None

    if not first_only:
      return self._run(body, x, layers_run)[0]
    x, _ = self._run(body, x, self.depth - 1)
    return self._one(functools.partial(body, first_only=True), x, self.depth - 1)[0]

  def attention_weights(self, x):
    """The softmax weights of every block: (depth, B, heads, N, N) float32."""
    return self._scan(lambda x, block, number: (block(x), block.attention_weights(x)), x, None)[1]

  def _run(self, body, x, count):
    if not self.unroll:
      return self._scan(body, x, count)
    for number in range(self.depth if count is None else count):
      x, _ = self._one(body, x, number)
    return x, None

  def _one(self, body, x, number):
    """The block of this number, its parameters cut from the stack or given as a tuple's part."""
    graphdef, stacked = nnx.split(self.blocks)
    mine = jax.tree.map(lambda leaf: leaf[number], stacked, is_leaf=lambda leaf: isinstance(leaf, tuple))
    return self.remat(lambda x, mine: body(x, nnx.merge(graphdef, mine), number))(x, mine)

  def _scan(self, body, x, count):
    graphdef, stacked = nnx.split(self.blocks)
    layer = (jnp.arange(self.depth), stacked)
    run = self.remat(lambda x, layer: body(x, nnx.merge(graphdef, layer[1]), layer[0]))
    return jax.lax.scan(run, x, jax.tree.map(lambda leaf: leaf[:count], layer))


def keep_all(block):
  """Return the block as it is: nothing is recomputed."""
  return block


# A block's input, where it may be moved to the host's memory.
_INPUT = 'block input'

# What is kept from the forward pass to the gradient; what is not is computed again.
REMAT = {
    'dots': functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names(layers.DENSE)),
    'full': jax.checkpoint,  # a block's input alone
    'offload': functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[], names_which_can_be_offloaded=[_INPUT], offload_src='device',
        offload_dst='pinned_host')),  # and that in the host's memory
}
