"""Configuration of a BiT ResNet: section `model` of a recipe, and the published sizes."""
import dataclasses
import re
from typing import Any, ClassVar

from vit_jax.base.errors import UserError
from vit_jax.base.sections import derived, from_data, off, size
from vit_jax.models.base import ConfigChecks
from vit_jax.models.bit.shape import DEPTHS, ResNetShape, default_stage_widths


@dataclasses.dataclass(frozen=True)
class BiTConfig(ConfigChecks):
  """A ResNet with group normalization and standardized kernels ("Big Transfer", arXiv 1912.11370, section 3).

  Attributes:
    kind: the row of `models.registry.MODELS`.
    variant: such as 'R50x1': depth and width factor; fills in blocks and stem_width unless they are given too.
    blocks: bottleneck units per stage.
    stem_width: features after the first convolution; None: 64.
    stage_widths: features after each stage; None: 4, 8, 16, … times stem_width.
    preactivation: whether it is a ResNet v2, as the paper's, or a v1.
    groups: of every GroupNorm; divides all widths.
    numerics: whose arithmetic (padding, epsilons), a row of `shape.NUMERICS`.
    representation_size: features of a linear layer between the pooled features and the head; None or 0: none.
    head_bias: initial bias of the head; -10 with a sigmoid loss over many classes.
    dtype: type of activations and products; parameters, GroupNorm and standardization are always float32.
    remat: what each unit recomputes for its gradient to save memory; see `ViTConfig`.
    image_size: (rows, columns) of an image in pixels.
    channels: image channels.
    num_classes: number of logits; None for a model without a head.
    unroll: always True: units differ in shape, so each is compiled separately.
  """
  unroll: ClassVar[bool] = True
  kind: str = 'bit'
  variant: str | None = None
  blocks: tuple[int, ...] = derived()
  stem_width: int = derived()
  stage_widths: tuple[int, ...] = derived()
  preactivation: bool = True
  groups: int = 32
  numerics: str = 'bit'
  representation_size: int | None = off(0)
  head_bias: float = 0.0
  dtype: str = 'float32'
  remat: str | None = off('none')
  image_size: tuple[int, int] = from_data((224, 224))
  channels: int = from_data(3)
  num_classes: int | None = from_data(1000, 0)

  def __post_init__(self):
    self._fill(('blocks', 'stem_width'),
               {'stem_width': 64, **(self.variant_fields(self.variant) if self.variant else {})},
               f"model.variant='R50x1' (depths {sorted(DEPTHS)})")
    self._set('blocks', tuple(self.blocks))
    self._set('stage_widths', default_stage_widths(self.blocks, self.stem_width) if self.stage_widths is None
              else tuple(self.stage_widths))
    self._set('image_size', size(self.image_size, 'data.image_size'))
    self._turn_off()
    self.resnet.check('model.')
    self._check_counts('channels', 'num_classes', 'representation_size')
    self._check_dtype(self.dtype)
    if min(self.grid) < 1:
      raise UserError(f'data.image_size: {self.image_size} is too small for {len(self.blocks)} stages')

  @staticmethod
  def variant_fields(name: str) -> dict[str, Any]:
    """Return blocks and stem_width of a variant such as 'R50x1'.

    Raises:
      UserError: `name` is not RDEPTHxFACTOR with a depth of `shape.DEPTHS`.
    """
    found = re.fullmatch(r'R(\d+)x([1-9]\d?)', str(name))
    if not found or int(found[1]) not in DEPTHS:
      raise UserError(f"model.variant: unknown {name!r}; expected RDEPTHxFACTOR such as 'R50x1', DEPTH one of "
                      f'{sorted(DEPTHS)}')
    return dict(blocks=DEPTHS[int(found[1])], stem_width=64 * int(found[2]))

  @property
  def resnet(self) -> ResNetShape:
    """The ResNet below the head."""
    return ResNetShape(self.blocks, self.stem_width, self.stage_widths, self.channels, self.preactivation, self.groups,
                       self.numerics)

  @property
  def grid(self) -> tuple[int, int]:
    """Places of the last feature map, (rows, columns)."""
    return self.resnet.sizes(self.image_size)[-1]
