"""Tables and config fields of ResNets, alone and below a hybrid, shared by the formats."""
from collections.abc import Callable
import dataclasses
import re
from typing import Any

from vit_jax.models.bit.shape import ResNetShape, default_stage_widths
from vit_jax.pretrained.files.tensors import Tensors
from vit_jax.pretrained.formats import leaves
from vit_jax.pretrained.formats.leaves import SAME, TORCH_CONV, Layout, Leaf, Table, torch_norm_leaves

# The largest number of units that a name may have: a damaged file must not make a huge table.
_MAX_UNITS = 1000


def table(blocks: tuple[int, ...], root: Table, unit: Table, prefix: Callable[[int, int], str]) -> Table:
  """Return the table of a ResNet.

  Args:
    blocks: units per stage.
    root: {path below 'resnet/': Leaf} of the root.
    unit: {path below a unit: Leaf}.
    prefix: (stage, unit), both from 1, → what comes before a unit's names.
  """
  result = leaves.prefixed(root, 'resnet/', '')
  for stage, count in enumerate(blocks, 1):
    for number in range(1, count + 1):
      result.update(leaves.prefixed(unit, f'resnet/block{stage}/unit{number:02}/', prefix(stage, number)))
  return result


def flax_norm(ours: str, theirs: str, layout: Layout = SAME) -> Table:
  """Return scale and bias of a normalization in a Flax file."""
  return {f'{ours}/{name}': Leaf(f'{theirs}/{name}', layout) for name in ('scale', 'bias')}


def flax_unit(layout: Layout = SAME) -> Table:
  """Return the table of a unit in the authors' and big_vision's Flax code; `layout` is that of GroupNorm's arrays."""
  names = ('1', '2', '3', '_proj')
  kernels = {f'conv{name}/kernel': Leaf(f'conv{name}/kernel', SAME) for name in names}
  return {**kernels, **{path: leaf for name in names
                        for path, leaf in flax_norm(f'norm{name}', f'gn{name}', layout).items()}}


def torch_unit() -> Table:
  """Return the table of a unit in timm and transformers."""
  kernels = {f'conv{k}/kernel': Leaf(f'conv{k}.weight', TORCH_CONV) for k in (1, 2, 3)}
  norms = {path: leaf for k in (1, 2, 3) for path, leaf in torch_norm_leaves(f'norm{k}', f'norm{k}').items()}
  return {**kernels, **norms, 'conv_proj/kernel': Leaf('downsample.conv.weight', TORCH_CONV),
          **torch_norm_leaves('norm_proj', 'downsample.norm')}


def blocks(tensors: Tensors, pattern: str, first: int = 1) -> tuple[int, ...]:
  """Return the units per stage.

  Args:
    tensors: the open file.
    pattern: matches the names of a unit's arrays; its two groups are the numbers of stage and unit.
    first: where both are counted from.

  Raises:
    UserError: the numbers are not consecutive, or there are too many.
  """
  found: dict[int, set[int]] = {}
  for name in tensors.shapes:
    if match := re.match(pattern, name):
      if max(len(match[1]), len(match[2])) > 4:
        raise tensors.error(f'{name}: expected a stage and a unit of a ResNet, numbered below {_MAX_UNITS}')
      found.setdefault(int(match[1]) - first, set()).add(int(match[2]) - first)
  expected = {stage: set(range(len(units))) for stage, units in found.items()}
  if found != expected or set(found) != set(range(len(found))) or sum(map(len, found.values())) > _MAX_UNITS:
    raise tensors.error("expected a ResNet's stages and units numbered consecutively; found the stages "
                        f'{sorted(stage + first for stage in found)[:20]}')
  return tuple(len(found[stage]) for stage in range(len(found)))


def widths(tensors: Tensors, root: str, last: Callable[[int], str], stages: int, axis: int) -> tuple[int, ...]:
  """Return the features after the root and after each stage.

  Args:
    tensors: the open file.
    root: name of the root's kernel.
    last: stage, from 1, → name of the last kernel of its first unit.
    stages: how many.
    axis: of the kernels' output features.

  Raises:
    UserError: a kernel is missing or not one of a convolution.
  """
  return tuple(tensors.shape(name, 4)[axis] for name in (root, *map(last, range(1, stages + 1))))


@dataclasses.dataclass(frozen=True)
class Names:
  """Where a format keeps what tells the shape of a ResNet.

  Attributes:
    root: name of the root's kernel.
    unit: matches the names of a unit's arrays, see `blocks`.
    last: stage, from 1, → name of the last kernel of its first unit.
    head: name of the head's kernel.
    first: where stages and units are counted from.
    is_torch: whether kernels are (outputs, inputs, …), else (…, inputs, outputs).
  """
  root: str
  unit: str
  last: Callable[[int], str]
  head: str
  first: int = 1
  is_torch: bool = False


def shape_fields(tensors: Tensors, names: Names) -> dict[str, Any]:
  """Return the fields of a `BiTConfig` that the names and shapes of a file tell.

  Raises:
    UserError: the units are not those of a ResNet.
  """
  outputs, inputs = (0, 1) if names.is_torch else (-1, -2)
  units = blocks(tensors, names.unit, names.first)
  stem_width, *stage_widths = widths(tensors, names.root, names.last, len(units), outputs)
  return dict(kind='bit', blocks=units, stem_width=stem_width, stage_widths=tuple(stage_widths),
              channels=tensors.shape(names.root, 4)[inputs],
              num_classes=tensors.shape(names.head)[outputs] if names.head in tensors else None)


def patch_pixels(patch_size: tuple[int, int], units: tuple[int, ...]) -> tuple[int, int]:
  """Return (rows, columns) of a hybrid's patch in pixels, given that in places of the feature map."""
  stride = ResNetShape(units, 0, (), 0, False, 0, '').stride
  return patch_size[0] * stride, patch_size[1] * stride


def hybrid_fields(tensors: Tensors, units: tuple[int, ...], found: tuple[int, ...]) -> dict[str, Any]:
  """Return the config fields of a hybrid's ResNet.

  Args:
    tensors: the open file, for messages.
    units: per stage, see `blocks`.
    found: see `widths`.

  Raises:
    UserError: its stages are not 4, 8, 16, … times as wide as its root.
  """
  if found[1:] != default_stage_widths(units, found[0]):
    raise tensors.error(f'its ResNet has {found[0]} features, then {found[1:]} after the stages; expected '
                        f'{default_stage_widths(units, found[0])}')
  return dict(resnet=units, resnet_width=found[0])
