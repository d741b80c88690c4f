"""The parameter tree of the Vision Transformer: everything that depends on the names of its parameters."""
from collections.abc import Mapping
import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.models import attention, attention_kinds
from vit_jax.models.base import NamedAxes, axes_of, path_of
from vit_jax.models.bit import tree as bit_tree
from vit_jax.models.config import GATED_MLPS
from vit_jax.models.positions.relative import RELATIVES, Place

BLOCKS = 'encoder/blocks'
PATCH_KERNEL = 'patch_embed/kernel'
RENAMED = {'embed': 'patch_embed'}

# The last axes of a parameter; a stack's layer axis comes before them and stays whole, since each turn of the scan
# takes one block of it. What is not here (vectors, positions, the patch embedding) is about a hundredth of a model and
# replicated: sharding the patch embedding makes the compiler move images and tokens for the sake of its small gradient.
LOGICAL_AXES: NamedAxes = (
    (r'attention/(query|key|value)/kernel', ('width', 'heads', None)),
    (r'attention/(query|key|value)/bias', ('heads', None)),
    (r'attention/out/kernel', ('heads', None, 'width')),
    (r'mlp/(gate|up)/kernel', ('width', 'mlp_dim')),
    (r'mlp/(gate|up)/bias', ('mlp_dim',)),
    (r'mlp/down/kernel', ('mlp_dim', 'width')),
    (r'(pre_logits|projection|head|head_distilled)/kernel', ('width', None)),
    *bit_tree.LOGICAL_AXES,
)


class BlockTree:
  """The parameter tree of a model whose patches pass through stacked blocks; see `base.ParamTree`.

  Attributes:
    named_axes: (regular expression of the end of a path, names of the last axes) for `logical_axes`.
  """

  stacked: tuple[str, ...] = (BLOCKS,)
  renamed: Mapping[str, str] = {}
  patch_kernel: str | None = PATCH_KERNEL
  head_paths: tuple[str, ...] = ('head',)  # not `head`: that is a layer of the model
  hidden_head_paths: tuple[str, ...] = ()
  named_axes: NamedAxes = ()

  def __init__(self, config: Any):
    self.config = config

  @property
  def stem(self) -> str:
    """The kernel of the patches."""
    return PATCH_KERNEL

  @property
  def positions(self) -> dict[str, str]:
    """Return {}: there are no tables of positions."""
    return {}

  @property
  def num_layers(self) -> int:
    """Number of encoder blocks."""
    return self.config.depth

  def layer_of(self, path: str) -> int | None:
    """Return 0 for patches and tokens, with what comes before, None for the blocks, depth + 1 for what comes after."""
    if path.startswith(f'{BLOCKS}/'):
      return None
    top = ('norm', 'pool', 'projection', *self.hidden_head_paths, *self.head_paths)
    return self.num_layers + 1 if path.split('/')[0] in top else 0

  def logical_axes(self, path: str, ndim: int) -> tuple[str | None, ...]:
    """Return 'width', 'heads', 'mlp_dim' or None for each axis of a parameter; see `base.ParamTree.logical_axes`."""
    return axes_of(path, ndim, self.named_axes)

  def matrix_axes(self, path: str) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return the (input axes, output axes) of a block's kernel, stacked by layer; None for any other parameter."""
    found = re.fullmatch(rf'{BLOCKS}/(?!relative/).*?(\w+)/kernel', path)
    return _MATRIX_AXES.get(found[1]) if found else None

  def unstack(self, params: Any) -> Any:
    """Return parameters as an unrolled model's step differentiates them, see `unstack_blocks`, or else as they are."""
    # Behind a barrier, TPU's compiler cuts and casts a block's parameters in one pass; otherwise it casts, then cuts.
    return jax.lax.optimization_barrier(unstack_blocks(params)) if self.config.unroll else params

  def stack(self, tree: Any, like: Any) -> Any:
    """Return a tree in the form of `unstack`, such as gradients, in that of the parameters `like`."""
    return stack_blocks(tree, like)


class ViTTree(BlockTree):
  """The parameter tree of a Vision Transformer's config."""

  renamed: Mapping[str, str] = RENAMED
  head_paths: tuple[str, ...] = ('head', 'head_distilled')
  hidden_head_paths: tuple[str, ...] = ('pre_logits',)
  named_axes: NamedAxes = LOGICAL_AXES

  @property
  def stem(self) -> str:
    """The kernel of the patches, or that of a hybrid's first convolution."""
    return PATCH_KERNEL if self.config.resnet is None else bit_tree.ROOT_KERNEL

  @property
  def positions(self) -> dict[str, str]:
    """{path: layout} of the learned tables of positions; see `base.ParamTree.positions`."""
    tables = {'learned': ('grid',), 'learned2d': ('rows', 'columns')}.get(self.config.position or '', ())
    token = ('token',) if tables and self.config.class_token and self.config.token_position else ()
    block = f'{BLOCKS}/rows' if self.config.attention_kind == 'axial' else BLOCKS
    at = {'every': f'{block}/', 'shared': 'encoder/'}.get(self.config.position_at, '')
    positions = {f'{at}position/{layout}': layout for layout in (*tables, *token)}
    layouts = {'keys1d': {'keys': 'places'}, 'table': {'table': 'offsets'}}
    relative = layouts.get(self.config.relative_position or '', {})
    where = 'encoder' if self.config.relative_position_shared else BLOCKS
    return {**positions, **{f'{where}/relative/{name}': layout for name, layout in relative.items()}}

  def matrix_axes(self, path: str) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return the (input axes, output axes) of a kernel of a block, or of a hybrid's ResNet; see `base.ParamTree`."""
    return super().matrix_axes(path) or bit_tree.matrix_axes(path)

  def multiply_adds(self, image_size: int | tuple[int, int] | None = None) -> int:
    """Return the multiply-adds of one image's forward pass, in matrix products; elementwise work does not count.

    Every kernel counts once per token that it is applied to, and an attention's scores and weighted sum each as
    queries × keys × width. A training step is 6 operations per multiply-add: two forward, four backward (PaLM, arXiv
    2204.02311, appendix B); what rematerialization computes twice does not count.

    Args:
      image_size: (rows, columns) in pixels; None: the config's.
    """
    config = self.config if image_size is None else dataclasses.replace(self.config, image_size=image_size)
    width, tokens = config.width, config.num_tokens
    patches = tokens - config.num_prefix_tokens
    projections = 4 * width**2  # query, key, value and output
    block = projections + (3 if config.mlp in GATED_MLPS else 2) * width * config.mlp_dim
    resnet = config.resnet_shape
    inputs = config.channels if resnet is None else resnet.width
    total = patches * config.patch_size[0] * config.patch_size[1] * inputs * width
    total += 0 if resnet is None else resnet.multiply_adds(config.image_size)
    halves = 2 if config.attention_kind == 'axial' else 1
    total += config.depth * (halves * tokens * block + attention_kinds.multiply_adds(config))
    if config.relative_position is not None:
      made, used = RELATIVES[config.relative_position].multiply_adds(Place.of(config))
      total += made * (1 if config.relative_position_shared else config.depth) + used * config.depth
    if config.pool == 'map':  # one query, which every head takes to the tokens themselves
      total += projections + 2 * width * config.mlp_dim + 2 * config.heads * tokens * width
    later = config.representation_size, config.projection_size, config.num_classes
    sizes = [config.pooled_size, *filter(None, later)]
    if config.pool == 'distilled' and config.num_classes is not None:
      total += width * config.num_classes  # the second head
    return total + sum(inputs * outputs for inputs, outputs in zip(sizes, sizes[1:], strict=False))


def unstack_blocks(params: Any) -> Any:
  """Return parameters with each block's kernels separate, as unrolled blocks take them: tuples for arrays (depth, …).

  The gradients of micro-batches are then summed block by block, in place. Other leaves, which are small, stay stacked.
  """
  def cut(key_path: jax.tree_util.KeyPath, leaf: jax.Array) -> Any:
    path = path_of(key_path)
    if not re.fullmatch(f'{BLOCKS}/.*/kernel', path):
      return leaf
    return tuple(attention.fuse_heads(leaf) if re.search('attention/(query|key|value)/', path) else leaf)

  return jax.tree_util.tree_map_with_path(cut, params)


def stack_blocks(tree: Any, params: Any) -> Any:
  """Return a tree such as `unstack_blocks` makes, of gradients for example, in the form of `params`."""
  is_tuple = lambda x: isinstance(x, tuple)
  return jax.tree.map(lambda x, like: jnp.stack(x).reshape(like.shape) if is_tuple(x) else x, tree, params,
                      is_leaf=is_tuple)


# Of stacked kernels: (depth, width, heads, head_dim) for query, key and value, (depth, heads, head_dim, width) for out.
_MATRIX_AXES = {
    'query': ((1,), (2, 3)), 'key': ((1,), (2, 3)), 'value': ((1,), (2, 3)), 'out': ((1, 2), (3,)),
    'gate': ((1,), (2,)), 'up': ((1,), (2,)), 'down': ((1,), (2,)),
}
