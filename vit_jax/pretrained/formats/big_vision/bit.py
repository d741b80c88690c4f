"""big_vision's ResNets: BiT, a v2 (its module bit_paper), and one of version 1 (its module bit)."""
from collections.abc import Iterable
from typing import Any

from vit_jax.base.preprocessing import Preprocessing
from vit_jax.models.bit.shape import default_stage_widths
from vit_jax.pretrained.files.tensors import Tensors
from vit_jax.pretrained.formats import infer, leaves, representable, resnet
from vit_jax.pretrained.formats.base import Configs, ImageSize, Written
from vit_jax.pretrained.formats.big_vision.names import parameter_name
from vit_jax.pretrained.formats.google import hybrid
from vit_jax.pretrained.formats.leaves import SAME, Leaf, Table
from vit_jax.pretrained.formats.weights import Weights

_ROOT_V2 = 'root_block/conv_root/kernel'
_NAMES_V2 = resnet.Names(_ROOT_V2, r'block(\d+)/unit(\d+)/', lambda stage: f'block{stage}/unit01/conv3/kernel',
                         'head/kernel')
_HEAD = {f'head/{name}': Leaf(f'head/{name}', SAME) for name in ('kernel', 'bias')}
# Its GroupNorm of v2 has arrays (1, 1, 1, features).
_NORM = leaves.leading(3)


class BigVisionBiT:
  """big_vision's format of ResNets; see `base.Family`."""

  resize_method = 'bilinear'

  def matches(self, tensors: Tensors, configs: Configs) -> bool:
    """Return whether there is the root of one of the two, and nothing of a ViT."""
    del configs
    names = _current_names(tensors.shapes)
    is_vit = any(name.startswith(('Transformer/', 'embedding/')) for name in names if name)
    return _ROOT_V2 in names or (hybrid.ROOT in names and not is_vit)

  def read(self, tensors: Tensors, configs: Configs, image_size: ImageSize = None) -> Weights:
    """Read an open file; `configs` is unused, there are none.

    Args:
      tensors: the open file.
      configs: {}.
      image_size: what the model is to take, as the file does not say what it was trained at.

    Raises:
      UserError: not a file in this format.
    """
    del configs
    tensors, notes = tensors.rename(parameter_name(tensors.shapes)), []
    if _ROOT_V2 not in tensors:
      fields = hybrid.bit_fields(tensors, image_size, notes)
      table = {**hybrid.table(fields['blocks'], hybrid.is_old(tensors)), **_HEAD}
    else:
      fields = dict(resnet.shape_fields(tensors, _NAMES_V2), numerics='bit_vision',
                    image_size=infer.image_size(tensors, (1, 1), image_size, notes))
      table = _table_v2(fields['blocks'])
    return leaves.read_weights(tensors, fields, table, '', notes=tuple(notes), preprocessing=Preprocessing())

  def holds(self, config: Any) -> bool:
    """Return whether it is a ResNet."""
    return config.kind == 'bit'

  def write(self, weights: Weights, approximate: bool = False) -> Written:
    """Lay weights out in this format; see `base.Family.write`."""
    config = weights.config
    representable.require(weights, 'big_vision', groups=(32,), representation_size=(None,),
                          stage_widths=(default_stage_widths(config.blocks, config.stem_width),))
    representable.require_numerics(weights, 'big_vision', approximate,
                                   numerics='bit_vision' if config.preactivation else 'vit')
    table = _table_v2(config.blocks) if config.preactivation else {**hybrid.table(config.blocks), **_HEAD}
    arrays = leaves.to_arrays(weights, table, '')
    return Written({f'params/{name}': array for name, array in arrays.items()}, {}, weights)


def _current_names(names: Iterable[str]) -> set[str]:
  return {new for new in map(parameter_name(names), names) if new is not None}


def _table_v2(blocks: tuple[int, ...]) -> Table:
  units = resnet.table(blocks, {'conv_root/kernel': Leaf(_ROOT_V2, SAME)}, resnet.flax_unit(_NORM),
                       lambda stage, unit: f'block{stage}/unit{unit:02}/')
  return {**units, **resnet.flax_norm('norm', 'norm-pre-head', _NORM), **_HEAD}
