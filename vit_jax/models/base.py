"""The contract of a model: what the rest of the framework may ask of one; and what all models share."""
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import re
from typing import Any, Protocol, cast, runtime_checkable

from flax import nnx
import jax
from jax import Array
from jaxtyping import Float, Int, Key
import numpy as np

from vit_jax.base.errors import UserError

DTYPES = ('float32', 'bfloat16', 'float16')

ArrayLike = Array | np.ndarray
Images = Float[ArrayLike, 'batch rows columns channels']
Tokens = Float[Array, 'batch tokens width']
Patches = Float[Array, 'batch patches width']
Rngs = Key[Array, ' batch'] | None
# Attention weights of a block, (batch, heads, queries, keys), to whatever is kept of them: arrays in any tree.
Reduce = Callable[[Array], Any]
Read = Callable[..., Any]  # see `encoder.BlockModel.collect`
# (regular expression of the end of a parameter's path, names of its last axes).
NamedAxes = tuple[tuple[str, tuple[str | None, ...]], ...]


def as_they_are(weights: Array) -> Array:
  """Return the weights: nothing is left out."""
  return weights


@runtime_checkable
class ParamTree(Protocol):
  """What others need to know of a model's parameter tree; answered from the config alone, so also on abstract models.

  A path names a parameter or a subtree: 'encoder/blocks/mlp/up/kernel', 'head'. Layers are numbered for layer-wise
  rates: 0 is the stem, 1..num_layers are the blocks (the stages of a ResNet), num_layers + 1 is whatever comes after
  them.

  Attributes:
    stacked: subtrees whose leaves are stacked by layer along axis 0, from layer 1 to num_layers.
    renamed: {name in version 0.1: name now} of subtrees, for checkpoints and regular expressions of that time.
    patch_kernel: kernel that is applied to patches, which `patch_size` resizes; None for a model without patches.
    head_paths: subtrees that give the logits from the representation that `Model.embed` returns.
    hidden_head_paths: subtrees between the pooled tokens and that representation.
  """
  stacked: tuple[str, ...]
  renamed: Mapping[str, str]
  patch_kernel: str | None
  head_paths: tuple[str, ...]
  hidden_head_paths: tuple[str, ...]

  @property
  def stem(self) -> str:
    """Kernel that is applied to the pixels, (rows, columns, channels, features)."""
    ...

  @property
  def num_layers(self) -> int:
    """Number of blocks, or of stages of a ResNet."""
    ...

  @property
  def positions(self) -> dict[str, str]:
    """{path: layout} of the tables of positions.

    Layouts: 'grid' (rows, columns, width), 'rows' (rows, width), 'columns' (columns, width), 'token' (width,),
    'offsets' ((2 rows - 1) (2 columns - 1) [+ 3 with a class token], heads) and 'places' (2 tokens - 1, heads,
    head_dim). Tables below `stacked` have the axis of layers before.
    """
    ...

  def layer_of(self, path: str) -> int | None:
    """Return the layer of a parameter, or None if it is stacked by layer."""
    ...

  def logical_axes(self, path: str, ndim: int) -> tuple[str | None, ...]:
    """Return the name of each axis of a parameter, None for one that is never sharded; see `distributed.sharding`.

    Args:
      path: of the parameter; names may come before it, as in an optimizer's state: '0/mu/encoder/blocks/mlp/up/kernel'.
      ndim: number of axes.
    """
    ...

  def matrix_axes(self, path: str) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return the (input axes, output axes) of a hidden matrix, for Muon; None for any other parameter.

    A remaining axis is that of the layers of a stack.
    """
    ...

  def unstack(self, params: Any) -> Any:
    """Return parameters in the form that a training step differentiates; for most models that is as they are."""
    ...

  def stack(self, tree: Any, like: Any) -> Any:
    """Return a tree in the form of `unstack`, such as gradients, in that of the parameters `like`."""
    ...

  def multiply_adds(self, image_size: int | tuple[int, int] | None = None) -> int:
    """Return the multiply-adds of one image's forward pass, in matrix products; elementwise work does not count.

    Args:
      image_size: (rows, columns) in pixels; None: the config's.
    """
    ...


@runtime_checkable
class Model(ParamTree, Protocol):
  """A model of images.

  Attributes:
    Config: frozen dataclass of section `model`. It has `variant_fields(name)`, the fields that a variant stands for,
      and `grid`, the (rows, columns) of patches or of places of the last feature map.
    config: one of that class.
  """
  Config: type
  config: Any

  def __init__(self, config: Any, *, rngs: nnx.Rngs):
    """Build the model of a config, its parameters drawn from `rngs`."""
    ...

  @property
  def image_size(self) -> tuple[int, int]:
    """(rows, columns) of the images that the model takes, in pixels."""
    ...

  @property
  def channels(self) -> int:
    """Channels of the images that the model takes."""
    ...

  @property
  def num_classes(self) -> int | None:
    """Number of logits; None for a model without a head."""
    ...

  def __call__(self, images: Images, rngs: Rngs = None) -> Float[Array, 'batch outputs']:
    """Return float32 logits, or the representation if the model has no head.

    Args:
      images: floats, already normalized.
      rngs: typed PRNG keys, one per example, in training; None in evaluation.
    """
    ...

  def embed(self, images: Images) -> Float[Array, 'batch features']:
    """Return the representation of images that the head reads, float32."""
    ...

  def features(self, images: Images, layer: int | None = None) -> Tokens:
    """Return the tokens after `layer` blocks, 0..num_layers; None: what the pooling reads.

    A ResNet counts in stages; its tokens are the places of the feature map, row by row.
    """
    ...

  def attention_weights(self, images: Images, reduce: Reduce = as_they_are) -> Any:
    """Return the attention weights of every block and head, (depth, batch, heads, queries, keys) float32.

    Args:
      images: floats, already normalized.
      reduce: applied to the weights of each block; what it returns is stacked along a first axis instead, so that
        the weights of only one block are in memory.

    Raises:
      UserError: the model has no attention.
    """
    ...


@runtime_checkable
class PatchModel(Model, Protocol):
  """A model of patches, which can be changed or left out between their embedding and their encoding.

  Its config has `width`; `patch_pixels`, the (rows, columns) of a patch in pixels of the image; and
  `num_prefix_tokens`, how many tokens come before the patches.
  """

  def patch_tokens(self, images: Images) -> Patches:
    """Return the embedded patches of images, row by row, (B, patches, width), without positions.

    Args:
      images: floats, already normalized.
    """
    ...

  def encode(self, patches: Patches, keep: Int[Array, 'batch kept'] | None = None, rngs: Rngs = None) -> Tokens:
    """Return the last tokens, (B, prefix + kept, width): `encode(patch_tokens(images))` is `features(images)`.

    Args:
      patches: from `patch_tokens`, or changed since; what is added for a patch's place comes on top.
      keep: indices of the patches to encode, each example's own, in the order in which they are returned; None: all.
      rngs: typed PRNG keys, one per example, in training; None in evaluation.

    Raises:
      UserError: see `check_keep`.
    """
    ...

  def check_keep(self) -> None:
    """Raise UserError if the model can not leave out patches."""
    ...


class ImageModel:
  """What every model answers from its config: the images that it takes, the classes that it tells apart."""
  config: Any

  @property
  def image_size(self) -> tuple[int, int]:
    """(rows, columns) of the images that the model takes, in pixels."""
    return self.config.image_size

  @property
  def channels(self) -> int:
    """Channels of the images that the model takes."""
    return self.config.channels

  @property
  def num_classes(self) -> int | None:
    """Number of logits; None for a model without a head."""
    return self.config.num_classes


class ConfigChecks:
  """What the configs of models share: filling in derived fields, and checks of values. For frozen dataclasses."""

  def _set(self, name: str, value: object) -> None:
    object.__setattr__(self, name, value)

  def _fill(self, names: Sequence[str], values: Mapping[str, Any], advice: str) -> None:
    """Give the fields `names` that are None their values.

    Raises:
      UserError: there is none for a field; the message ends with the advice.
    """
    if missing := [name for name in names if getattr(self, name) is None and name not in values]:
      raise UserError(f'model: missing {missing}; give them, or name a variant such as {advice}')
    for name in names:
      self._set(name, values[name] if getattr(self, name) is None else getattr(self, name))

  def _turn_off(self) -> None:
    """Make None of the fields that a recipe spells "off"; see `sections.off`."""
    for field in dataclasses.fields(cast(Any, self)):
      if getattr(self, field.name) in field.metadata.get('off', ()):
        self._set(field.name, None)

  def _check_counts(self, *names: str) -> None:
    """Raise UserError unless the fields are None or at least 1."""
    for name in names:
      value = getattr(self, name)
      if value is not None and value < 1:
        raise UserError(f'model.{name}: must be at least 1, got {value}')

  def _check_rates(self, *names: str) -> None:
    """Raise UserError unless the fields are in [0, 1)."""
    for name in names:
      if not 0.0 <= getattr(self, name) < 1.0:
        raise UserError(f'model.{name}: must be in [0, 1), got {getattr(self, name)}')

  def _check_dtype(self, dtype: str) -> None:
    """Raise UserError unless it is one of DTYPES."""
    if dtype not in DTYPES:
      raise UserError(f'model.dtype: unknown {dtype!r}; choose from {list(DTYPES)}')


def path_of(key_path: jax.tree_util.KeyPath) -> str:
  """Return a tree path of jax as a string such as 'encoder/blocks/mlp/up/kernel'."""
  return jax.tree_util.keystr(key_path, simple=True, separator='/')


def axes_of(path: str, ndim: int, named: NamedAxes) -> tuple[str | None, ...]:
  """Return the name of each axis of a parameter, None for those that have none; see `ParamTree.logical_axes`.

  Args:
    path: of the parameter.
    ndim: number of axes.
    named: the first row whose pattern fits counts.
  """
  for pattern, names in named:
    if re.search(rf'(^|/){pattern}$', path) and ndim >= len(names):
      return (None,) * (ndim - len(names)) + names
  return (None,) * ndim


def flatten(tree: Any) -> dict[str, Any]:
  """Return {path: leaf} of a tree."""
  return {path_of(key_path): leaf for key_path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
