"""The parameter tree of a BiT ResNet: everything that depends on the names of its parameters."""
from collections.abc import Mapping
import re
from typing import Any

from vit_jax.base import sections
from vit_jax.models.base import NamedAxes, axes_of
from vit_jax.models.bit.config import BiTConfig

ROOT_KERNEL = 'resnet/conv_root/kernel'

# The bottleneck's features are sharded like the hidden ones of a transformer's MLP. Everything else is replicated: the
# root is small, and so are the first units.
_UNIT = r'resnet/block\d+/unit\d+'
LOGICAL_AXES: NamedAxes = (
    (rf'{_UNIT}/conv[12]/kernel', (None, None, 'width', 'mlp_dim')),
    (rf'{_UNIT}/conv3/kernel', (None, None, 'mlp_dim', 'width')),
    (rf'{_UNIT}/conv_proj/kernel', (None, None, None, 'width')),
)


class BiTTree:
  """The parameter tree of a config; see `base.ParamTree`. Its layers are the stages."""

  stacked: tuple[str, ...] = ()
  renamed: Mapping[str, str] = {}
  stem: str = ROOT_KERNEL
  patch_kernel: str | None = None
  head_paths: tuple[str, ...] = ('head',)
  hidden_head_paths: tuple[str, ...] = ('embedding',)
  positions: dict[str, str] = {}

  def __init__(self, config: BiTConfig):
    self.config = config

  @property
  def num_layers(self) -> int:
    """Number of stages."""
    return len(self.config.blocks)

  def layer_of(self, path: str) -> int | None:
    """Return 0 for the root, the number of its stage for a unit, stages + 1 for last norm and head."""
    found = re.match(r'resnet/block(\d+)/', path)
    return int(found[1]) if found else 0 if path.startswith('resnet/') else self.num_layers + 1

  def logical_axes(self, path: str, ndim: int) -> tuple[str | None, ...]:
    """Return 'width', 'mlp_dim' or None for each axis of a parameter; see `base.ParamTree.logical_axes`."""
    return axes_of(path, ndim, LOGICAL_AXES)

  def matrix_axes(self, path: str) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return the (input axes, output axes) of a unit's kernel; None for any other parameter."""
    return matrix_axes(path)

  def unstack(self, params: Any) -> Any:
    """Return the parameters: nothing is stacked."""
    return params

  def stack(self, tree: Any, like: Any) -> Any:
    """Return the tree: nothing is stacked."""
    del like
    return tree

  def multiply_adds(self, image_size: int | tuple[int, int] | None = None) -> int:
    """Return the multiply-adds of one image's convolutions and head.

    Args:
      image_size: (rows, columns) in pixels; None: the config's.
    """
    config, shape = self.config, self.config.resnet
    size = config.image_size if image_size is None else sections.size(image_size, 'image_size')
    sizes = [shape.width, *filter(None, (config.representation_size, config.num_classes))]
    return shape.multiply_adds(size) + sum(a * b for a, b in zip(sizes, sizes[1:], strict=False))


def matrix_axes(path: str) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
  """Return the (input axes, output axes) of a unit's kernel; None for any other parameter."""
  return ((0, 1, 2), (3,)) if re.fullmatch(rf'{_UNIT}/conv\w+/kernel', path) else None

