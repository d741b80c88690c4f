"""The shape of a ResNet and the arithmetic of the code base that its weights come from; no parameters."""
from collections.abc import Mapping
import dataclasses
import math

from vit_jax.base.errors import UserError

Size = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Numerics:
  """What code bases compute differently with the same parameters.

  Attributes:
    padding: of 3x3 and 7x7 convolutions: 'symmetric', (size - 1) / 2 zeros on each side, or 'same', TensorFlow's, which
      pads an even image more at its end.
    pool: padding of the 3x3 max-pool after the first convolution: 'zeros', one zero on each side; 'symmetric', one
      place on each side that never wins; 'same', TensorFlow's; 'valid', none.
    epsilon: of weight standardization.
    epsilon_inside: whether a kernel is divided by sqrt(variance + epsilon) rather than by deviation + epsilon.
    norm_epsilon: of every GroupNorm.
  """
  padding: str
  pool: str
  epsilon: float
  epsilon_inside: bool
  norm_epsilon: float


# big_transfer's TF2, PyTorch and JAX code; big_vision's models/bit_paper.py and models/bit.py; vision_transformer's
# models_resnet.py; timm's models/resnetv2.py and vision_transformer_hybrid.py (_resnetv2); transformers'
# modeling_bit.py.
NUMERICS: Mapping[str, Numerics] = {
    'bit': Numerics('symmetric', 'zeros', 1e-10, True, 1e-5),
    'bit_vision': Numerics('symmetric', 'symmetric', 1e-10, True, 1e-5),
    'bit_timm': Numerics('symmetric', 'zeros', 1e-8, True, 1e-5),
    'bit_same': Numerics('same', 'valid', 1e-8, True, 1e-5),
    'vit': Numerics('same', 'same', 1e-5, False, 1e-6),
    'vit_timm': Numerics('same', 'same', 1e-8, True, 1e-5),
}

# Units per stage: He et al. (arXiv 1512.03385, table 1) for 50, 101 and 152; big_vision's models/bit.py for 26 and 200.
DEPTHS: Mapping[int, tuple[int, ...]] = {
    26: (2, 2, 2, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}


@dataclasses.dataclass(frozen=True)
class ResNetShape:
  """A ResNet without a head: a root (7x7 convolution and max-pool) and stages of bottleneck units.

  Attributes:
    blocks: units per stage; () is the root alone.
    stem_width: features after the root.
    stage_widths: features after each stage.
    channels: of the images.
    preactivation: whether normalization and ReLU come before each convolution (ResNet v2) rather than after it (v1).
    groups: of every GroupNorm.
    numerics: a row of NUMERICS.
  """
  blocks: tuple[int, ...]
  stem_width: int
  stage_widths: tuple[int, ...]
  channels: int
  preactivation: bool
  groups: int
  numerics: str

  def check(self, prefix: str) -> None:
    """Raise UserError, naming the config field, if no such ResNet can be built.

    Args:
      prefix: of the config fields: 'model.' or 'model.resnet_'.
    """
    if not all(type(n) is int and n > 0 for n in (*self.blocks, self.stem_width, *self.stage_widths)):
      raise UserError(f'{prefix}blocks: expected positive whole numbers of units and features, got '
                      f'{self.blocks}, {self.stem_width} and {self.stage_widths}')
    if len(self.blocks) != len(self.stage_widths):
      raise UserError(f'{prefix}stage_widths: expected one per stage of {self.blocks}, got {self.stage_widths}')
    if any(width % 4 for width in self.stage_widths):
      raise UserError(f'{prefix}stage_widths: must be divisible by 4, got {self.stage_widths}')
    normalized = [*(() if self.preactivation else (self.stem_width,)), *self.stage_widths,
                  *(width // 4 for width in self.stage_widths), *((self.stem_width,) if self.blocks else ())]
    if self.groups < 1 or any(width % self.groups for width in normalized):
      raise UserError(f'{prefix}groups: must divide all widths {sorted(set(normalized))}, got {self.groups}')
    if self.numerics not in NUMERICS:
      raise UserError(f'{prefix}numerics: unknown {self.numerics!r}; choose from {sorted(NUMERICS)}')

  @property
  def width(self) -> int:
    """Features of the last feature map."""
    return self.stage_widths[-1] if self.blocks else self.stem_width

  @property
  def stride(self) -> int:
    """Pixels per place of the last feature map, in each direction."""
    return 4 * 2 ** max(len(self.blocks) - 1, 0)

  def sizes(self, image_size: Size) -> list[Size]:
    """Return the sizes (rows, columns) of the feature maps: first convolution, max-pool, then every stage.

    Args:
      image_size: (rows, columns) in pixels.
    """
    half = lambda size: (-(-size[0] // 2), -(-size[1] // 2))
    sizes = [half(image_size)]
    valid = NUMERICS[self.numerics].pool == 'valid'
    sizes.append(((sizes[0][0] - 1) // 2, (sizes[0][1] - 1) // 2) if valid else half(sizes[0]))
    for stage in range(len(self.blocks)):
      sizes.append(half(sizes[-1]) if stage else sizes[-1])
    return sizes

  def multiply_adds(self, image_size: Size) -> int:
    """Return the multiply-adds of one image's convolutions."""
    areas = [math.prod(size) for size in self.sizes(image_size)]
    total = areas[0] * 7 * 7 * self.channels * self.stem_width
    inputs = self.stem_width
    for before, area, units, outputs in zip(areas[1:-1], areas[2:], self.blocks, self.stage_widths, strict=True):
      middle = outputs // 4
      total += before * inputs * middle + area * (9 * middle**2 + middle * outputs + inputs * outputs)
      total += (units - 1) * area * (2 * outputs * middle + 9 * middle**2)
      inputs = outputs
    return total


def default_stage_widths(blocks: tuple[int, ...], stem_width: int) -> tuple[int, ...]:
  """Return the features after each stage of a ResNet: 4, 8, 16, 32 times the root's."""
  return tuple(4 * stem_width * 2**stage for stage in range(len(blocks)))
