"""The ResNet of timm's hybrids (`vit_*_r26_*`, `vit_*_r50_*`): names below `patch_embed.backbone`."""
import re
from typing import Any

from vit_jax.pretrained.files.tensors import Tensors
from vit_jax.pretrained.formats import resnet
from vit_jax.pretrained.formats.leaves import TORCH_CONV, Leaf, Table, torch_norm_leaves

_BACKBONE = 'patch_embed.backbone.'


def table(units: tuple[int, ...]) -> Table:
  """Return the leaves of a ResNet with these units per stage."""
  start = root(bool(units))
  first = {
      'conv_root/kernel': Leaf(f'{start}conv.weight', TORCH_CONV),
      **torch_norm_leaves('norm_root', f'{start}norm')}
  prefix = lambda stage, unit: f'{_BACKBONE}{unit_prefix(stage, unit)}'
  return resnet.table(units, first, resnet.torch_unit(), prefix)


def root(has_stages: bool) -> str:
  """Return what comes before the names of a hybrid's root; it is not called a stem if there is nothing else."""
  return f'{_BACKBONE}stem.' if has_stages else _BACKBONE


def units(tensors: Tensors) -> tuple[int, ...] | None:
  """Return the units per stage of a file's ResNet, None for a plain ViT.

  Raises:
    UserError: it has another convolutional stem.
  """
  if not any(name.startswith(_BACKBONE) for name in tensors.shapes):
    return None
  found = resnet.blocks(tensors, rf'{re.escape(_BACKBONE)}stages\.(\d+)\.blocks\.(\d+)\.', first=0)
  start = root(bool(found))
  if f'{start}conv.weight' not in tensors or f'{start}norm.weight' not in tensors:
    raise tensors.error("expected the root of a hybrid with timm's ResNet v2 (vit_*_r26_*, vit_*_r50_*), got another "
                        'convolutional stem, which vit_jax does not have')
  return found


def fields(tensors: Tensors, units: tuple[int, ...]) -> dict[str, Any]:
  """Return the config fields of a hybrid's ResNet."""
  start = f'{root(bool(units))}conv.weight'
  last = lambda stage: f'{_BACKBONE}{unit_prefix(stage, 1)}conv3.weight'
  found = resnet.widths(tensors, start, last, len(units), axis=0)
  return dict(resnet.hybrid_fields(tensors, units, found), resnet_numerics='vit_timm',
              channels=tensors.shape(start, 4)[1])


def unit_prefix(stage: int, number: int) -> str:
  """Return what comes before the names of a unit; both numbers count from 1."""
  return f'stages.{stage - 1}.blocks.{number - 1}.'
