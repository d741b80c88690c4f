"""timm's `resnetv2_*_bit` state dicts as safetensors (timm/models/resnetv2.py)."""
import dataclasses
import re
from typing import Any

from vit_jax.base.sections import size
from vit_jax.models.bit.shape import DEPTHS
from vit_jax.pretrained.files.tensors import Tensors
from vit_jax.pretrained.formats import infer, leaves, representable, resnet
from vit_jax.pretrained.formats.base import Configs, ImageSize, Written
from vit_jax.pretrained.formats.leaves import TORCH_CONV, Layout, Leaf, Table, torch_linear_leaves, torch_norm_leaves
from vit_jax.pretrained.formats.timm import config as config_lib
from vit_jax.pretrained.formats.timm import preprocessing
from vit_jax.pretrained.formats.timm.hybrid import unit_prefix
from vit_jax.pretrained.formats.weights import Weights

ROOT = 'stem.conv.weight'
_NAMES = resnet.Names(ROOT, r'stages\.(\d+)\.blocks\.(\d+)\.',
                      lambda stage: f'stages.{stage - 1}.blocks.0.conv3.weight', 'head.fc.weight', first=0,
                      is_torch=True)
_ARCHITECTURE = re.compile(r'resnetv2_\d+x\d_bit')
# The head is a 1x1 convolution: our (features, classes) is (classes, features, 1, 1).
_HEAD = Layout(lambda shape: (*shape[::-1], 1, 1), lambda array, shape: array.reshape(shape[::-1]).T,
               lambda array: array.T.reshape(*array.shape[::-1], 1, 1))


class TimmBiT:
  """timm's format of BiT, with a config.json that `timm.create_model('local-dir:…')` reads; see `base.Family`."""

  resize_method = 'bicubic'

  def matches(self, tensors: Tensors, configs: Configs) -> bool:
    """Return whether a file with these names is a ResNet v2 of timm's."""
    del configs
    return ROOT in tensors and 'stages.0.blocks.0.conv1.weight' in tensors and 'norm.weight' in tensors

  def read(self, tensors: Tensors, configs: Configs, image_size: ImageSize = None) -> Weights:
    """Read an open file.

    Args:
      tensors: the open file.
      configs: {'config.json': dict} as timm has it on the Hugging Face hub; {} if none.
      image_size: what the model was trained at, if the config does not say it.

    Raises:
      UserError: not a file in this format, or a ResNet v2 that is not BiT's.
    """
    stored = configs.get('config.json')
    name = (stored or {}).get('architecture', '')
    if name and not _ARCHITECTURE.match(name):
      raise tensors.error(f"architecture: expected BiT's, 'resnetv2_50x1_bit' for example, got {name!r}, which vit_jax "
                          'does not have')
    config, notes = config_lib.parse(tensors, stored), []
    shape = resnet.shape_fields(tensors, _NAMES)
    pixels = (size(config.image_size, 'img_size') if config.image_size
              else infer.image_size(tensors, (1, 1), image_size, notes))
    fields = dict(shape, numerics='bit_timm', image_size=pixels)
    prepared = preprocessing.read(tensors, config.pretrained, pixels, shape['channels'], notes)
    return leaves.read_weights(
        tensors, fields, _table(shape['blocks']), '', class_names=config.class_names, notes=(*config.notes, *notes),
        preprocessing=prepared)

  def holds(self, config: Any) -> bool:
    """Return whether it is a ResNet."""
    return config.kind == 'bit'

  def write(self, weights: Weights, approximate: bool = False) -> Written:
    """Lay weights out in this format; see `base.Family.write`."""
    config = weights.config
    representable.require(weights, 'timm', preactivation=(True,), groups=(32,), representation_size=(None,))
    representable.require_numerics(weights, 'timm', approximate, numerics='bit_timm')
    arrays = leaves.to_arrays(weights, _table(config.blocks), '')
    notes = list(weights.notes)
    written = _write_config(weights, notes)
    return Written(arrays, {'config.json': written}, dataclasses.replace(weights, notes=tuple(notes)))


def _table(blocks: tuple[int, ...]) -> Table:
  root = {'conv_root/kernel': Leaf(ROOT, TORCH_CONV)}
  head = torch_linear_leaves('head', 'head.fc')
  return {**resnet.table(blocks, root, resnet.torch_unit(), unit_prefix), **torch_norm_leaves('norm', 'norm'), **head,
          'head/kernel': Leaf('head.fc.weight', _HEAD)}


def _write_config(weights: Weights, notes: list[str]) -> dict[str, Any]:
  """Return the config.json: a published architecture's name, or else the constructor's arguments with it."""
  config = weights.config
  depth = next((depth for depth, units in DEPTHS.items() if units == config.blocks), 50)
  factor = max(config.stem_width // 64, 1)
  published = (config.blocks, config.stage_widths) == (DEPTHS[depth], tuple(256 * factor * 2**i for i in range(4)))
  args = {} if published else dict(layers=list(config.blocks), channels=list(config.stage_widths),
                                   stem_chs=config.stem_width)
  return config_lib.hub_config(weights, notes, f'resnetv2_{depth}x{factor}_bit', args, 'avg', first_conv='stem.conv',
                               classifier='head.fc', width=config.resnet.width)
