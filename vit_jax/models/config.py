"""Configuration of the Vision Transformer: section `model` of a recipe."""
import dataclasses
from typing import Any

import numpy as np

from vit_jax.base.errors import UserError
from vit_jax.base.sections import derived, from_data, off, size
from vit_jax.models.base import ConfigChecks
from vit_jax.models.bit.shape import ResNetShape, default_stage_widths
from vit_jax.models.variants import VARIANTS, variant_fields

GATED_MLPS = ('swiglu', 'geglu')
_SHAPE = ('width', 'depth', 'heads', 'mlp_dim', 'patch_size')


@dataclasses.dataclass(frozen=True)
class ViTConfig(ConfigChecks):
  """A Vision Transformer ("An Image is Worth 16x16 Words", arXiv 2010.11929, section 3.1).

  Attributes:
    kind: the row of `models.registry.MODELS`.
    variant: such as 'B/16': a row of VARIANTS and a patch size; or a hybrid such as 'R50+B/16', see `variant_fields`.
      Fills in width, depth, heads, mlp_dim, patch_size and resnet unless they are given too.
    width: features per token.
    depth: number of encoder blocks.
    heads: attention heads per block; divides width.
    mlp_dim: hidden features of the MLP.
    mlp: 'gelu', the paper's, or gated: 'swiglu' by SiLU, 'geglu' by GELU (arXiv 2002.05202).
    mlp_hidden_norm: whether the hidden features of the MLP are layer-normalized, as in EVA-02 (arXiv 2303.11331).
    patch_size: (rows, columns) of a patch in pixels; in a hybrid, of places of the feature map.
    patch_bias: whether the patch embedding has a bias; CLIP's has none.
    pre_norm: whether the embedded tokens are layer-normalized before the first block, as in CLIP (arXiv 2103.00020).
    resnet: units per stage of a ResNet whose last feature map is cut into patches instead of the image (section 3.1,
      "Hybrid architecture"); () for its root alone, None for no ResNet.
    resnet_width: features after the ResNet's first convolution.
    resnet_numerics: whose arithmetic the ResNet has, a row of `bit.shape.NUMERICS`.
    pool: a name of `pooling.POOLS`: class token, mean over the patches, attention, or class and distillation token with
      a head each.
    position: a name of `positions.embeddings.POSITIONS`; None or 'none' for no position embedding.
    position_at: where `position` is added (appendix D.4): 'stem': to the embedded patches, 'every': to the input of
      each block, each with its own, 'shared': to the input of each block, all with the same one.
    rotary: a name of `positions.rotary.CONVENTIONS`: queries and keys of patches are rotated by their place; None or
      'none': they are not. `position` is independent of it.
    rotary_base: of the rotations' frequencies; 100 in DINOv3, 10 000 in EVA-02.
    rotary_grid: (rows, columns) that the places of the 'eva' convention are scaled to; None: they are not.
    class_token: whether there is one; None: if `pool` reads it.
    distillation_token: whether there is one (DeiT, arXiv 2012.12877); None: if `pool` reads it.
    relative_position: a name of `positions.relative.RELATIVES`, what attention scores get for the offset between query
      and key; None or 'none': nothing. `position` is independent of it.
    relative_position_shared: whether all blocks share its parameters, or each has its own.
    relative_position_dim: hidden features of 'mlp' and 'mlp_swin'.
    token_position: whether class and distillation token have position embeddings, as in the paper; big_vision's have
      none.
    registers: extra learned tokens that nothing reads (arXiv 2309.16588).
    register_position: whether registers have learned position embeddings, as in timm's models without a class token.
    mask_token: whether there is a learned token for masked patches; kept for masked prediction, not used by the model.
    representation_size: features of the hidden tanh layer before the head ("pre_logits", section 3.1); None or 0: none.
    projection_size: features of a linear projection without bias after the pooling (CLIP, arXiv 2103.00020); None or 0:
      none.
    head_bias: initial bias of the head; -10 with a sigmoid loss over many classes.
    dropout: rate after every dense layer except q, k and v, and after the position embedding (appendix B.1).
    attention_dropout: rate on the attention weights.
    attention_kind: a name of `attention_kinds.ATTENTION_KINDS`: 'full'; 'axial': a block is attention within rows and
      an MLP, then attention within columns and an MLP (appendix D.6), without class token and registers; 'local': a
      patch attends to the patches around it and the tokens before the patches, and those attend to all.
    attention_window: rows and columns between a patch and the farthest that it attends to, in 'local'.
    attention: 'xla', or 'cudnn' for its fused kernel on GPUs (not in float32, not with attention_dropout).
    stochastic_depth: rate at which the last block's branches are dropped; falls linearly to 0 at the first block.
    layer_scale: initial value of a learned scale on each branch (arXiv 2103.17239); None: no scale.
    qk_norm: whether queries and keys are layer-normalized.
    qkv_bias: whether the query, key and value projections have biases.
    key_bias: whether the key projection has one too; those of DINOv3, EVA-02 and BEiT have none.
    norm_after_pool: whether the last LayerNorm comes after the pooling (timm's `fc_norm`) instead of before it.
    norm_epsilon: epsilon of every LayerNorm.
    gelu: 'tanh' (official and big_vision weights), 'exact' (timm, Hugging Face), or 'quick', x · sigmoid(1.702 x)
      (OpenAI's CLIP).
    dtype: type of activations and products; parameters, softmax and LayerNorm statistics are always float32.
    unroll: whether each block is compiled separately: faster on TPUs, but compile time grows with depth; otherwise one
      block is compiled and scanned.
    remat: what each block recomputes for its gradient to save memory; None or 'none': nothing; 'dots': everything but
      its products with weights, so that nothing of N x N elements is kept; 'full': everything but its input; 'offload':
      like 'full', and the input waits in host memory. Offloading saves memory if deep models are scanned, not if they
      are unrolled, and never on a CPU.
    image_size: (rows, columns) of an image in pixels; what is left of it at the bottom and at the right of the last
      whole patch is not seen.
    channels: image channels.
    num_classes: number of logits; None or 0 for a model without a head, whose call returns what `embed` does.
  """
  kind: str = 'vit'
  variant: str | None = None
  width: int = derived()
  depth: int = derived()
  heads: int = derived()
  mlp_dim: int = derived()
  mlp: str = 'gelu'
  mlp_hidden_norm: bool = False
  patch_size: tuple[int, int] = derived()
  patch_bias: bool = True
  pre_norm: bool = False
  resnet: tuple[int, ...] | None = None
  resnet_width: int = 64
  resnet_numerics: str = 'vit'
  pool: str = 'token'
  position: str | None = off('none', default='learned')
  position_at: str = 'stem'
  relative_position: str | None = off('none')
  relative_position_shared: bool = False
  relative_position_dim: int = 128
  rotary: str | None = off('none')
  rotary_base: float = 100.0
  rotary_grid: tuple[int, int] | None = None
  class_token: bool = derived()
  distillation_token: bool = derived()
  token_position: bool = True
  registers: int = 0
  register_position: bool = False
  mask_token: bool = False
  representation_size: int | None = off(0)
  projection_size: int | None = off(0)
  head_bias: float = 0.0
  dropout: float = 0.0
  attention_dropout: float = 0.0
  attention_kind: str = 'full'
  attention_window: int = 3
  attention: str = 'xla'
  stochastic_depth: float = 0.0
  layer_scale: float | None = None
  qk_norm: bool = False
  qkv_bias: bool = True
  key_bias: bool = True
  norm_after_pool: bool = False
  norm_epsilon: float = 1e-6
  gelu: str = 'tanh'
  dtype: str = 'float32'
  unroll: bool = False
  remat: str | None = off('none')
  image_size: tuple[int, int] = from_data((224, 224))
  channels: int = from_data(3)
  num_classes: int | None = from_data(1000, 0)

  def __post_init__(self):
    shape = self.variant_fields(self.variant) if self.variant else {}
    self._fill(_SHAPE, shape, f"model.variant='B/16' (sizes {sorted(VARIANTS)})")
    resnet = shape.get('resnet') if self.resnet is None else self.resnet
    self._set('resnet', None if resnet is None else tuple(resnet))
    self._set('patch_size', size(self.patch_size, 'model.patch_size'))
    self._set('image_size', size(self.image_size, 'data.image_size'))
    if self.rotary_grid is not None:
      self._set('rotary_grid', size(self.rotary_grid, 'model.rotary_grid'))
    for name, pools in dict(class_token=('token', 'token_gap', 'distilled'), distillation_token=('distilled',)).items():
      self._set(name, self.pool in pools if getattr(self, name) is None else getattr(self, name))
    self._turn_off()
    self._check()

  def _check(self) -> None:
    self._check_counts('width', 'depth', 'heads', 'mlp_dim', 'channels', 'num_classes', 'representation_size',
                       'projection_size', 'relative_position_dim', 'attention_window')
    if self.width % self.heads:
      raise UserError(f'model.heads: must divide the width {self.width}, got {self.heads}')
    if self.pool in ('token', 'token_gap', 'distilled') and not self.class_token:
      raise UserError(f'model.class_token: model.pool={self.pool!r} reads the class token, but model.class_token=False')
    if self.pool == 'distilled' and not self.distillation_token:
      raise UserError("model.distillation_token: model.pool='distilled' reads the distillation token, but "
                      'model.distillation_token=False')
    if self.distillation_token and not self.class_token:
      raise UserError('model.distillation_token: needs a class token before it, but model.class_token=False')
    if self.pool == 'distilled' and self.representation_size is not None:
      raise UserError("model.representation_size: model.pool='distilled' has no hidden layer before its two heads, got "
                      f'{self.representation_size}')
    if self.distillation_token and self.register_position and not self.token_position:
      raise UserError('model.register_position: needs model.token_position=True in a model with a distillation token')
    if self.position_at != 'stem' and self.num_prefix_positions:
      raise UserError(f'model.position_at: {self.position_at!r} gives positions to patches and class token only, but '
                      'model.register_position or model.distillation_token asks for others; use model.position_at=stem')
    if self.pool == 'token_gap' and self.norm_after_pool:
      raise UserError("model.norm_after_pool: model.pool='token_gap' needs the last LayerNorm before the pooling")
    if self.representation_size is not None and self.projection_size is not None:
      raise UserError(f'model.projection_size: expected None beside representation_size={self.representation_size}, '
                      f'got {self.projection_size}')
    if self.mlp not in ('gelu', *GATED_MLPS):
      raise UserError(f"model.mlp: unknown {self.mlp!r}; choose from {['gelu', *GATED_MLPS]}")
    if self.rotary_grid is not None and self.rotary != 'eva':
      raise UserError(f"model.rotary_grid: only model.rotary='eva' scales places to a grid, got rotary={self.rotary!r}")
    if not self.rotary_base > 0:
      raise UserError(f'model.rotary_base: must be positive, got {self.rotary_base}')
    self._check_dtype(self.dtype)
    self._check_rates('dropout', 'attention_dropout', 'stochastic_depth')
    if self.registers < 0:
      raise UserError(f'model.registers: must be at least 0, got {self.registers}')
    if self.resnet_shape is not None:
      self.resnet_shape.check('model.resnet_')

  @staticmethod
  def variant_fields(name: str) -> dict[str, Any]:
    """Return the fields that a variant stands for; see the function of this name."""
    return variant_fields(name)

  @property
  def resnet_shape(self) -> ResNetShape | None:
    """The ResNet of a hybrid, a v1 as in the authors' code, or None."""
    if self.resnet is None:
      return None
    return ResNetShape(self.resnet, self.resnet_width, default_stage_widths(self.resnet, self.resnet_width),
                       self.channels, preactivation=False, groups=32, numerics=self.resnet_numerics)

  @property
  def patch_pixels(self) -> tuple[int, int]:
    """(rows, columns) of a patch in pixels of the image."""
    stride = 1 if self.resnet_shape is None else self.resnet_shape.stride
    return self.patch_size[0] * stride, self.patch_size[1] * stride

  @property
  def grid(self) -> tuple[int, int]:
    """Whole patches per image, (rows, columns).

    Raises:
      UserError: an image is smaller than a patch, or not whole patches in a hybrid.
    """
    (rows, columns), (patch_rows, patch_columns) = self.image_size, self.patch_pixels
    if self.resnet is not None and self.unseen_pixels:
      raise UserError(f'data.image_size: {self.image_size} is not divisible by the patch size {self.patch_pixels}')
    if rows < patch_rows or columns < patch_columns:
      raise UserError(f'data.image_size: {self.image_size} is smaller than a patch, {self.patch_pixels}')
    return rows // patch_rows, columns // patch_columns

  @property
  def unseen_pixels(self) -> str | None:
    """A message about the pixels that no patch covers; None if the patch size divides the image size."""
    size, patch = self.image_size, self.patch_pixels
    seen = [pixels - pixels % step for pixels, step in zip(size, patch, strict=True)]
    if tuple(seen) == size:
      return None
    return (f'image size {size[0]}×{size[1]} is not divisible by the patch size {patch[0]}×{patch[1]}: the model sees '
            f'the {seen[0]}×{seen[1]} pixels at the top left and ignores the rest')

  @property
  def pooled_size(self) -> int:
    """Features of the pooled tokens."""
    return 2 * self.width if self.pool == 'token_gap' else self.width

  @property
  def num_prefix_tokens(self) -> int:
    """Tokens before the patches: the class token, the distillation token and the registers."""
    return int(self.class_token) + int(self.distillation_token) + self.registers

  @property
  def num_prefix_positions(self) -> int:
    """Learned positions of the tokens between class token and patches."""
    if self.position not in ('learned', 'learned2d'):
      return 0
    return int(self.distillation_token and self.token_position) + self.registers * self.register_position

  @property
  def num_tokens(self) -> int:
    """Tokens that the encoder sees."""
    return self.num_prefix_tokens + int(np.prod(self.grid))
