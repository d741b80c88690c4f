"""The ResNet below a hybrid in the official files, which is also a classifier by itself there."""
from typing import Any

from vit_jax.base.preprocessing import Preprocessing
from vit_jax.models.bit.shape import default_stage_widths
from vit_jax.pretrained.files.tensors import Tensors
from vit_jax.pretrained.formats import infer, leaves, representable, resnet
from vit_jax.pretrained.formats.base import Configs, ImageSize, Written
from vit_jax.pretrained.formats.leaves import SAME, Leaf, Table
from vit_jax.pretrained.formats.weights import Weights

ROOT = 'conv_root/kernel'
NAMES = resnet.Names(ROOT, r'block(\d+)/unit(\d+)/', lambda stage: f'block{stage}/unit1/conv3/kernel', 'head/kernel')
_HEAD = {f'head/{name}': Leaf(f'head/{name}', SAME) for name in ('kernel', 'bias')}


def table(blocks: tuple[int, ...], is_old: bool = False) -> Table:
  """Return the table of the ResNet, a v1.

  Args:
    blocks: units per stage.
    is_old: whether GroupNorm's arrays are (1, 1, 1, features), as in files of 2020.
  """
  layout = leaves.leading(3) if is_old else SAME
  root = {'conv_root/kernel': Leaf(ROOT, SAME), **resnet.flax_norm('norm_root', 'gn_root', layout)}
  return resnet.table(blocks, root, resnet.flax_unit(layout), lambda stage, unit: f'block{stage}/unit{unit}/')


def is_old(tensors: Tensors) -> bool:
  """Return whether GroupNorm's arrays have the shape of 2020."""
  return len(tensors.shape('gn_root/scale')) == 4


def read_shape(tensors: Tensors) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """Return (units per stage, features after the root and after each stage)."""
  blocks = resnet.blocks(tensors, NAMES.unit)
  return blocks, resnet.widths(tensors, ROOT, NAMES.last, len(blocks), axis=3)


def bit_fields(tensors: Tensors, image_size: ImageSize, notes: list[str]) -> dict[str, Any]:
  """Return the config fields of a file that holds this ResNet and a head, without the layer between them."""
  return dict(resnet.shape_fields(tensors, NAMES), preactivation=False, numerics='vit',
              image_size=infer.image_size(tensors, (1, 1), image_size, notes))


class GoogleResNet:
  """The authors' VisionTransformer without a transformer: a ResNet v1, one layer, a head; see `base.Family`."""

  resize_method = 'bilinear'

  def matches(self, tensors: Tensors, configs: Configs) -> bool:
    """Return whether there is a root and no transformer."""
    del configs
    names = tensors.shapes
    return ROOT in names and 'embedding/kernel' in names and not any(n.startswith('Transformer/') for n in names)

  def read(self, tensors: Tensors, configs: Configs, image_size: ImageSize = None) -> Weights:
    """Read an open file; `configs` is unused, there are none.

    Raises:
      UserError: not a file in this format, or one whose layer is not applied to single places.
    """
    del configs
    rows, columns, _, features = tensors.shape('embedding/kernel', 4)
    if (rows, columns) != (1, 1) or 'pre_logits/kernel' in tensors or 'cls' in tensors:
      raise tensors.error('a ResNet without a transformer can only have patches of 1x1 places and no class token or '
                          f'pre_logits; got patches of {rows}x{columns}')
    notes: list[str] = []
    fields = dict(bit_fields(tensors, image_size, notes), representation_size=features)
    return leaves.read_weights(tensors, fields, _own_table(fields['blocks'], is_old(tensors)), '', notes=tuple(notes),
                               preprocessing=Preprocessing())

  def holds(self, config: Any) -> bool:
    """Return whether it is a ResNet v1."""
    return config.kind == 'bit' and not config.preactivation

  def write(self, weights: Weights, approximate: bool = False) -> Written:
    """Lay weights out in this format; see `base.Family.write`."""
    config = weights.config
    representable.require(weights, 'google', groups=(32,),
                          stage_widths=(default_stage_widths(config.blocks, config.stem_width),))
    if config.representation_size is None:
      raise representable.NotRepresentable(
          'model.representation_size: the google format of a ResNet v1 has a layer before the head, this model none')
    representable.require_numerics(weights, 'google', approximate, numerics='vit')
    return Written(leaves.to_arrays(weights, _own_table(config.blocks), ''), {}, weights)


def _own_table(blocks: tuple[int, ...], is_old: bool = False) -> Table:
  # The layer is applied to each place and then averaged; we average first, which is the same.
  layer = {'embedding/kernel': Leaf('embedding/kernel', leaves.leading(2)),
           'embedding/bias': Leaf('embedding/bias', SAME)}
  return {**table(blocks, is_old), **layer, **_HEAD}
