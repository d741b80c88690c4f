"""The MLP-Mixer ("MLP-Mixer: An all-MLP Architecture for Vision", arXiv 2105.01601)."""
from typing import Any, NoReturn

from flax import nnx
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float

from vit_jax.base.errors import UserError
from vit_jax.models import layers
from vit_jax.models.base import ImageModel, Images, Read, Reduce, Rngs, Tokens, as_they_are
from vit_jax.models.encoder import Encoder
from vit_jax.models.mixer.config import MixerConfig
from vit_jax.models.mixer.tree import MixerTree
from vit_jax.models.mlp import Mlp


class MixerBlock(nnx.Module):
  """x + token_mixing(norm(x)), across patches, then x + channel_mixing(norm(x)), within each (paper, equation 1)."""

  def __init__(self, config: MixerConfig, *, rngs: nnx.Rngs):
    dtype = jnp.dtype(config.dtype)
    norm = lambda: nnx.LayerNorm(config.width, epsilon=config.norm_epsilon, dtype=dtype, rngs=rngs)
    # The authors' code has the initial values of Flax's dense layer, not those of the Vision Transformer.
    mlp = lambda features, hidden: Mlp(
        features, hidden, dropout=0.0, gelu=config.gelu, kernel_init=nnx.initializers.lecun_normal(),
        bias_init=nnx.initializers.zeros, dtype=dtype, rngs=rngs)
    self.token_norm = norm()
    self.token_mixing = mlp(config.num_tokens, config.token_mlp_dim)
    self.channel_norm = norm()
    self.channel_mixing = mlp(config.width, config.channel_mlp_dim)

  def __call__(self, x: Tokens, rngs: Rngs = None, drop_rate: float | Float[Array, ''] = 0.0) -> Tokens:
    """Return the block's output.

    Args:
      x: tokens.
      rngs: one PRNG key per example in training, None in evaluation.
      drop_rate: stochastic depth rate of this block. What is kept is not scaled up, as in the authors' code
        (big_vision, models/mlp_mixer.py).
    """
    token_rngs, channel_rngs = layers.split(rngs, 2)
    y = self.token_mixing(layers.layer_norm(self.token_norm, x).swapaxes(1, 2)).swapaxes(1, 2)
    x += layers.drop_path(y, drop_rate, token_rngs, scale=False)
    y = self.channel_mixing(layers.layer_norm(self.channel_norm, x))
    return x + layers.drop_path(y, drop_rate, channel_rngs, scale=False)

  def attention_weights(self, x: Tokens) -> NoReturn:
    """Raise UserError: there is no attention."""
    raise UserError("attention_weights: a model of kind 'mixer' has no attention")

  def slopes(self, x: Tokens) -> list[Float[Array, 'batch _ hidden']]:
    """Return `Mlp.slopes` of both MLPs; the first one's are (batch, width, token_mlp_dim)."""
    y = layers.layer_norm(self.token_norm, x).swapaxes(1, 2)
    x += self.token_mixing(y).swapaxes(1, 2)
    return [self.token_mixing.slopes(y), self.channel_mixing.slopes(layers.layer_norm(self.channel_norm, x))]


class Mixer(nnx.Module, ImageModel, MixerTree):
  """An MLP-Mixer: `model(images)` gives logits.

  It has no attention weights, and no position embedding: its parameters fit one number of patches.

  Args:
    config: shape and options; see `MixerConfig`.
    rngs: parameter stream, `nnx.Rngs(seed)`.

  Raises:
    UserError: an unknown choice; sizes that do not divide.
  """

  Config = MixerConfig

  def __init__(self, config: MixerConfig, *, rngs: nnx.Rngs):
    self.config = config
    width, dtype = config.width, jnp.dtype(config.dtype)
    self.patch_embed = nnx.Conv(config.channels, width, config.patch_size, strides=config.patch_size, padding='VALID',
                                dtype=dtype, rngs=rngs)
    self.encoder = Encoder(config, MixerBlock, rngs=rngs)
    self.norm = nnx.LayerNorm(width, epsilon=config.norm_epsilon, dtype=dtype, rngs=rngs)
    self.head = layers.make_head(width, config.num_classes, config.head_bias, rngs)

  def __call__(self, images: Images, rngs: Rngs = None) -> Float[Array, 'batch outputs']:
    """Return float32 logits, or the representation without a head; see `base.Model`."""
    x = self._represent(images, rngs)
    return (x if self.head is None else self.head(x)).astype(jnp.float32)

  def embed(self, images: Images) -> Float[Array, 'batch features']:
    """Return the mean over the patches, which the head reads, float32.

    Args:
      images: floats, already normalized.
    """
    return self._represent(images, None).astype(jnp.float32)

  def features(self, images: Images, layer: int | None = None) -> Tokens:
    """Return the tokens after some of the blocks, patches row by row.

    Args:
      images: floats, already normalized.
      layer: number of blocks, 0..depth; None: all of them and the last LayerNorm.

    Raises:
      UserError: another layer.
    """
    if layer is not None and not 0 <= layer <= self.config.depth:
      raise UserError(f'layer: expected 0..{self.config.depth}, got {layer}')
    x = self.encoder(self.tokens(images), num_layers=layer)
    return layers.layer_norm(self.norm, x) if layer is None else x

  def attention_weights(self, images: Images, reduce: Reduce = as_they_are) -> NoReturn:
    """Raise UserError: there is no attention."""
    raise UserError("attention_weights: a model of kind 'mixer' has no attention")

  def collect(self, images: Images, read: Read) -> tuple[Tokens, Any]:
    """Return the tokens after the last block, and what is read at every block; see `encoder.BlockModel`."""
    return self.encoder.collect(self.tokens(images), read)

  def tokens(self, images: Images) -> Tokens:
    """Return what the blocks take: the embedded patches.

    Args:
      images: floats, already normalized.

    Raises:
      UserError: images of another size or number of channels.
    """
    expected = (*self.config.image_size, self.config.channels)
    if images.shape[1:] != expected:
      raise UserError(f'images: expected shape (B, {", ".join(map(str, expected))}), got {images.shape}')
    return layers.embed_patches(self.patch_embed, images)

  def _represent(self, images: Images, rngs: Rngs) -> Float[Array, 'batch features']:
    """Return what the head reads, in the model's dtype."""
    return layers.layer_norm(self.norm, self.encoder(self.tokens(images), rngs)).mean(axis=1)
