"""BiT, a ResNet classifier ("Big Transfer (BiT): General Visual Representation Learning", arXiv 1912.11370)."""
from typing import NoReturn

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float

from vit_jax.base.errors import UserError
from vit_jax.models import layers
from vit_jax.models.base import ImageModel, Images, Reduce, Rngs, Tokens, as_they_are
from vit_jax.models.bit.config import BiTConfig
from vit_jax.models.bit.resnet import GroupNorm, ResNet
from vit_jax.models.bit.shape import NUMERICS
from vit_jax.models.bit.tree import BiTTree


class BiT(nnx.Module, ImageModel, BiTTree):
  """A BiT ResNet: `model(images)` gives logits.

  Args:
    config: shape and options; see `BiTConfig`.
    rngs: parameter stream, `nnx.Rngs(seed)`.

  Raises:
    UserError: an unknown choice of `remat`.
  """

  Config = BiTConfig

  def __init__(self, config: BiTConfig, *, rngs: nnx.Rngs):
    self.config = config
    dtype, width = jnp.dtype(config.dtype), config.resnet.width
    self.resnet = ResNet(config.resnet, dtype=dtype, remat=config.remat, rngs=rngs)
    epsilon = NUMERICS[config.numerics].norm_epsilon
    self.norm = GroupNorm(width, groups=config.groups, epsilon=epsilon) if config.preactivation else None
    self.embedding = None if config.representation_size is None else nnx.Linear(
        width, config.representation_size, rngs=rngs)
    self.head = layers.make_head(config.representation_size or width, config.num_classes, config.head_bias, rngs)

  def __call__(self, images: Images, rngs: Rngs = None) -> Float[Array, 'batch outputs']:
    """Classify images.

    Args:
      images: floats, already normalized.
      rngs: unused: nothing in this model is random.

    Returns:
      float32 logits, or the representation without a head.
    """
    del rngs
    x = self.embed(images)
    return x if self.head is None else self.head(x)

  def embed(self, images: Images) -> Float[Array, 'batch features']:
    """Return the representation that the head reads, float32: the mean of the last feature map over its places.

    Args:
      images: floats, already normalized.
    """
    x = self.features(images).astype(jnp.float32).mean(axis=1)
    return x if self.embedding is None else self.embedding(x)

  def features(self, images: Images, layer: int | None = None) -> Tokens:
    """Return the feature map after some of the stages as tokens, row by row: (batch, rows · columns, features).

    Args:
      images: floats, already normalized; of any size, `image_size` is that of the data.
      layer: number of stages, 0..num_layers, 0 being the root; None: all of them, and the last norm and ReLU.

    Raises:
      UserError: another layer, or images of another number of channels.
    """
    if layer is not None and not 0 <= layer <= self.num_layers:
      raise UserError(f'layer: expected a number of stages, 0..{self.num_layers}, got {layer}')
    if images.ndim != 4 or images.shape[-1] != self.channels:
      raise UserError(f'images: expected shape (B, rows, columns, {self.channels}), got {images.shape}')
    x = self.resnet(images, layer)
    if layer is None and self.norm is not None:
      x = jax.nn.relu(self.norm(x))
    return x.reshape(x.shape[0], -1, x.shape[-1])

  def attention_weights(self, images: Images, reduce: Reduce = as_they_are) -> NoReturn:
    """Raise UserError: a ResNet has no attention."""
    raise UserError("attention_weights: a model of kind 'bit' has no attention")
