"""Masked autoencoders ("Masked Autoencoders Are Scalable Vision Learners", MAE, arXiv 2111.06377)."""
import dataclasses
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from vit_jax.base.errors import UserError
from vit_jax.models import layers
from vit_jax.models.base import PatchModel, Tokens
from vit_jax.models.config import ViTConfig
from vit_jax.models.encoder import Encoder
from vit_jax.models.positions import embeddings
from vit_jax.objectives.base import ObjectiveContext
from vit_jax.objectives.masked import masks
from vit_jax.objectives.masked.base import MaskedObjective
from vit_jax.objectives.masked.masks import Hidden, Visible
from vit_jax.objectives.masked.targets import Pixels, Predictions, Target


@dataclasses.dataclass(frozen=True)
class MaeConfig:
  """Section `objective` of kind 'mae'.

  Attributes:
    kind: a row of `objectives.OBJECTIVES`.
    ratio: share of the patches that are hidden.
    standardize: whether each patch to predict is standardized by its own mean and variance.
    decoder_width: features of the decoder's tokens; divisible by 4 and by decoder_heads.
    decoder_depth: its blocks.
    decoder_heads: attention heads of each.
  """
  kind: str = 'mae'
  ratio: float = 0.75
  standardize: bool = True
  decoder_width: int = 512
  decoder_depth: int = 8
  decoder_heads: int = 16

  def __post_init__(self):
    masks.check_ratio(self.ratio)
    for name in ('decoder_width', 'decoder_depth', 'decoder_heads'):
      if getattr(self, name) < 1:
        raise UserError(f'objective.{name}: must be at least 1, got {getattr(self, name)}')
    for name, divisor in (('4', 4), ('objective.decoder_heads', self.decoder_heads)):
      if self.decoder_width % divisor:
        raise UserError(f'objective.decoder_width: must be divisible by {name}, got {self.decoder_width} and {divisor}')


class Mae(MaskedObjective):
  """Encodes the visible patches only; a light decoder predicts the pixels of the others, with an L2 loss.

  Args:
    config: options.
    context: of the run.

  Raises:
    UserError: as for `MaskedObjective`, or a model that can not leave out patches.
  """

  Config = MaeConfig

  def __init__(self, config: MaeConfig, context: ObjectiveContext):
    self._config, self._context = config, context
    super().__init__(context, config.kind, config.ratio)
    if isinstance(context.model, PatchModel):
      context.model.check_keep()

  def make_target(self) -> Target:
    """Return pixels by their squared error."""
    return Pixels(self.place, power=2, standardize=self._config.standardize)

  def make_own(self, rngs: nnx.Rngs) -> 'Decoder':
    """Return the decoder."""
    return Decoder(self._config, self._context.model.config, self.target.num_outputs, rngs=rngs)

  def predict(self, model: PatchModel, own: Any, tokens: jax.Array, hidden: Hidden, visible: Visible,
              corruption: jax.Array, keys: jax.Array | None) -> Predictions:
    """Return predictions of the hidden patches; see `MaskedObjective.predict`."""
    del corruption
    return own(model.encode(tokens, visible, keys), hidden, visible)


class Decoder(nnx.Module):
  """Transformer blocks over the encoded visible patches and a learned token for each hidden one.

  Args:
    config: has the sizes.
    model: config of the encoder, whose precision and compilation it shares.
    num_outputs: numbers per prediction.
    rngs: parameter stream.
  """

  def __init__(self, config: MaeConfig, model: Any, num_outputs: int, *, rngs: nnx.Rngs):
    width = config.decoder_width
    shape = ViTConfig(
        width=width, depth=config.decoder_depth, heads=config.decoder_heads, mlp_dim=4 * width, pool='gap',
        patch_size=model.patch_pixels, image_size=model.image_size, channels=model.channels, num_classes=None,
        position='sincos2d', norm_epsilon=model.norm_epsilon, gelu=model.gelu, dtype=model.dtype,
        attention=model.attention, unroll=model.unroll, remat=model.remat)
    linear = lambda inputs, outputs, dtype: nnx.Linear(
        inputs, outputs, kernel_init=nnx.initializers.xavier_uniform(), dtype=dtype, rngs=rngs)
    self.embed = linear(model.width, width, jnp.dtype(model.dtype))
    self.mask_token = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (width,), jnp.float32))
    self.position = embeddings.make(shape, 'stem', rngs)
    self.encoder = Encoder(shape, rngs=rngs)
    self.norm = nnx.LayerNorm(width, epsilon=model.norm_epsilon, dtype=jnp.dtype(model.dtype), rngs=rngs)
    self.head = linear(width, num_outputs, jnp.float32)

  def __call__(self, tokens: Tokens, hidden: Hidden, visible: Visible) -> Predictions:
    """Return predictions of the hidden patches.

    Attention does not mind the order of tokens, so the hidden ones come right after those before the patches.

    Args:
      tokens: (B, prefix + visible, width of the encoder).
      hidden, visible: indices of the patches; the visible ones in the order of their tokens.
    """
    x = layers.dense(self.embed, tokens)
    prefix, count = x.shape[1] - visible.shape[1], hidden.shape[1]
    grid = self.position()[0]
    place = grid.reshape(-1, grid.shape[-1]).astype(x.dtype)
    masked = self.mask_token[...].astype(x.dtype) + place[hidden]
    x = jnp.concatenate([x[:, :prefix], masked, x[:, prefix:] + place[visible]], axis=1)
    x = layers.layer_norm(self.norm, self.encoder(x)[:, prefix:prefix + count])
    return layers.dense(self.head, x)
