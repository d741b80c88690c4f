"""BiT's official `.npz` files (github.com/google-research/big_transfer)."""
from collections.abc import Callable
import re
from typing import Any

from vit_jax.base.preprocessing import Preprocessing
from vit_jax.models.bit.shape import default_stage_widths
from vit_jax.pretrained.files.tensors import Tensors
from vit_jax.pretrained.formats import infer, leaves, representable, resnet
from vit_jax.pretrained.formats.base import Configs, ImageSize, Written
from vit_jax.pretrained.formats.leaves import SAME, Leaf, Table
from vit_jax.pretrained.formats.weights import Weights

_PREFIX = 'resnet/'
_CONV = 'standardized_conv2d/kernel'
ROOT = f'{_PREFIX}root_block/{_CONV}'
_HEAD = f'{_PREFIX}head/conv2d'
_NAMES = resnet.Names(ROOT, rf'{_PREFIX}block(\d+)/unit(\d+)/',
                      lambda stage: f'{_PREFIX}block{stage}/unit01/c/{_CONV}', f'{_HEAD}/kernel')


class GoogleBiT:
  """The official format of BiT; see `base.Family`."""

  resize_method = 'bilinear'

  def matches(self, tensors: Tensors, configs: Configs) -> bool:
    """Return whether the root has its name in these files."""
    del configs
    return any(_current_name(name) == ROOT for name in tensors.shapes)

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
    tensors, notes = tensors.rename(_current_name), []
    fields = dict(resnet.shape_fields(tensors, _NAMES), numerics='bit',
                  image_size=infer.image_size(tensors, (1, 1), image_size, notes))
    # BiT evaluates with a plain resize of the whole image and values in [-1, 1].
    return leaves.read_weights(tensors, fields, _table(fields['blocks']), '', notes=tuple(notes),
                               preprocessing=Preprocessing())

  def holds(self, config: Any) -> bool:
    """Return whether it is a ResNet v2."""
    return config.kind == 'bit' and config.preactivation

  def write(self, weights: Weights, approximate: bool = False) -> Written:
    """Lay weights out in this format; see `base.Family.write`."""
    config = weights.config
    representable.require(weights, 'google', groups=(32,), representation_size=(None,),
                          stage_widths=(default_stage_widths(config.blocks, config.stem_width),))
    representable.require_numerics(weights, 'google', approximate, numerics='bit')
    return Written(leaves.to_arrays(weights, _table(config.blocks), ''), {}, weights)


def _current_name(name: str) -> str:
  """Return a name without the number that some files give their convolutions: `standardized_conv2d_12`."""
  return re.sub(r'/standardized_conv2d_\d+/', '/standardized_conv2d/', name)


def _norm(ours: str, theirs: str) -> Table:
  return {f'{ours}/scale': Leaf(f'{theirs}group_norm/gamma', SAME),
          f'{ours}/bias': Leaf(f'{theirs}group_norm/beta', SAME)}


def _table(blocks: tuple[int, ...]) -> Table:
  unit = {'conv_proj/kernel': Leaf(f'a/proj/{_CONV}', SAME)}
  for number, letter in enumerate('abc', 1):
    unit.update({f'conv{number}/kernel': Leaf(f'{letter}/{_CONV}', SAME), **_norm(f'norm{number}', f'{letter}/')})
  prefix: Callable[[int, int], str] = lambda stage, number: f'{_PREFIX}block{stage}/unit{number:02}/'
  return {**resnet.table(blocks, {'conv_root/kernel': Leaf(ROOT, SAME)}, unit, prefix), **_norm('norm', _PREFIX),
          'head/kernel': Leaf(f'{_HEAD}/kernel', leaves.leading(2)), 'head/bias': Leaf(f'{_HEAD}/bias', SAME)}
