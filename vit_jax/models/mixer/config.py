"""Configuration of the MLP-Mixer: section `model` of a recipe with kind='mixer', and the published sizes."""
import dataclasses
import re

from vit_jax.base.errors import UserError
from vit_jax.base.sections import derived, from_data, off, size
from vit_jax.models.base import ConfigChecks


@dataclasses.dataclass(frozen=True)
class MixerConfig(ConfigChecks):
  """An MLP-Mixer ("MLP-Mixer: An all-MLP Architecture for Vision", arXiv 2105.01601).

  Attributes:
    kind: the row of `models.registry.MODELS`.
    variant: such as 'B/16': a row of VARIANTS and a patch size; fills in width, depth, token_mlp_dim, channel_mlp_dim
      and patch_size unless they are given too.
    width: features per patch (C in the paper).
    depth: number of blocks.
    token_mlp_dim: hidden features of the MLP that mixes patches (D_S).
    channel_mlp_dim: hidden features of the MLP that mixes features (D_C).
    patch_size: (rows, columns) of a patch in pixels; divides image_size.
    head_bias: initial bias of the head; -10 with a sigmoid loss over many classes.
    stochastic_depth: rate at which the last block's branches are dropped; falls linearly to 0 at the first block.
    norm_epsilon: epsilon of every LayerNorm.
    gelu: 'tanh' (official weights) or 'exact' (timm).
    dtype: type of activations and products; parameters and LayerNorm statistics are always float32.
    unroll: whether each block is compiled separately; see `ViTConfig`.
    remat: what each block recomputes for its gradient to save memory; see `ViTConfig`.
    image_size: (rows, columns) of an image in pixels. Parameters depend on the number of patches.
    channels: image channels.
    num_classes: number of logits; None for a model without a head.
  """
  kind: str = 'mixer'
  variant: str | None = None
  width: int = derived()
  depth: int = derived()
  token_mlp_dim: int = derived()
  channel_mlp_dim: int = derived()
  patch_size: tuple[int, int] = derived()
  head_bias: float = 0.0
  stochastic_depth: float = 0.0
  norm_epsilon: float = 1e-6
  gelu: str = 'tanh'
  dtype: str = 'float32'
  unroll: bool = False
  remat: str | None = off('none')
  image_size: tuple[int, int] = from_data((224, 224))
  channels: int = from_data(3)
  num_classes: int | None = from_data(1000, 0)

  def __post_init__(self):
    self._fill(_SHAPE, self.variant_fields(self.variant) if self.variant else {},
               f"model.variant='B/16' (sizes {sorted(VARIANTS)})")
    self._set('patch_size', size(self.patch_size, 'model.patch_size'))
    self._set('image_size', size(self.image_size, 'data.image_size'))
    self._turn_off()
    self._check_counts('width', 'depth', 'token_mlp_dim', 'channel_mlp_dim', 'channels', 'num_classes')
    self._check_rates('stochastic_depth')
    self._check_dtype(self.dtype)

  @staticmethod
  def variant_fields(name: str) -> dict[str, int]:
    """Return width, depth, token_mlp_dim, channel_mlp_dim and patch_size of a variant such as 'B/16'.

    Raises:
      UserError: `name` is not SIZE/PATCH with a size of VARIANTS.
    """
    letter, _, patch = str(name).partition('/')
    if letter not in VARIANTS or not re.fullmatch(r'[1-9]\d*', patch):
      raise UserError(f"model.variant: unknown {name!r}; expected SIZE/PATCH such as 'B/16', SIZE one of "
                      f'{sorted(VARIANTS)}')
    return dict(VARIANTS[letter], patch_size=int(patch))

  @property
  def grid(self) -> tuple[int, int]:
    """Patches per image, (rows, columns).

    Raises:
      UserError: the patch size does not divide the image size.
    """
    (rows, columns), (patch_rows, patch_columns) = self.image_size, self.patch_size
    if rows % patch_rows or columns % patch_columns:
      raise UserError(f'data.image_size: {self.image_size} is not divisible by the patch size {self.patch_size}')
    return rows // patch_rows, columns // patch_columns

  @property
  def num_tokens(self) -> int:
    """Patches per image."""
    rows, columns = self.grid
    return rows * columns


_SHAPE = ('width', 'depth', 'token_mlp_dim', 'channel_mlp_dim', 'patch_size')

# Paper, table 1; the published checkpoints have these shapes.
VARIANTS = {
    'B': dict(width=768, depth=12, token_mlp_dim=384, channel_mlp_dim=3072),
    'L': dict(width=1024, depth=24, token_mlp_dim=512, channel_mlp_dim=4096),
}
