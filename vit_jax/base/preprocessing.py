"""How an encoded image becomes a model's input; saved with every checkpoint and every exported model."""
import dataclasses

import jax
import jax.numpy as jnp

from vit_jax.base.errors import UserError
from vit_jax.base.text import count


@dataclasses.dataclass(frozen=True)
class Normalization:
  """Map from uint8 0..255 to float32, `(x / 255 - mean) / std`; the default gives the paper's [-1, 1].

  Attributes:
    mean: one number for all channels, or one per channel.
    std: likewise; positive.

  >>> Normalization(std=0.0)
  Traceback (most recent call last):
  vit_jax.base.errors.UserError: normalization.std: must be positive; got 0.0
  """
  mean: float | tuple = 0.5
  std: float | tuple = 0.5

  def __post_init__(self):
    for number in self.std if isinstance(self.std, (tuple, list)) else [self.std]:
      if not number > 0:
        raise UserError(f'normalization.std: must be positive; got {self.std}')

  def for_channels(self, channels: int) -> 'Normalization':
    """Return the same for images of another number of channels; see `adapt_statistics`."""
    return Normalization(adapt_statistics(self.mean, channels), adapt_statistics(self.std, channels))

  def check_channels(self, channels: int) -> None:
    """Raise UserError unless there is one number, or one per channel."""
    for name in ('mean', 'std'):
      numbers = getattr(self, name)
      if isinstance(numbers, (tuple, list)) and len(numbers) not in (1, channels):
        expected = '1 number' if channels == 1 else f'1 or {channels} numbers'
        raise UserError(f'normalization.{name}: expected {expected}, as the images have {count(channels, "channel")}; '
                        f'got {numbers}')

  def __call__(self, images: jax.Array) -> jax.Array:
    """Return (B, rows, columns, channels) uint8 images as float32."""
    return self.standardize(images.astype(jnp.float32) / 255.0)

  def standardize(self, pixels: jax.Array) -> jax.Array:
    """Return images of floats 0..1 as the model takes them."""
    return (pixels - jnp.asarray(self.mean, jnp.float32)) / jnp.asarray(self.std, jnp.float32)

  def pixels(self, images: jax.Array) -> jax.Array:
    """Return images as the model takes them as floats 0..1: the inverse of `standardize`."""
    return images * jnp.asarray(self.std, jnp.float32) + jnp.asarray(self.mean, jnp.float32)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
  """What happens to an image before a model sees it.

  Attributes:
    transform: chain of image transforms that gives the model's image size, see `data.transforms.spec`: 'resize' changes
      the aspect ratio, 'resize_small(256)|central_crop' keeps it.
    mean: subtracted after scaling to 0..1; one number, or one per channel.
    std: divided by after that; likewise.
  """
  transform: str = 'resize'
  mean: float | tuple = 0.5
  std: float | tuple = 0.5

  def for_channels(self, channels: int) -> 'Preprocessing':
    """Return the same for images of another number of channels; see `adapt_statistics`."""
    mean, std = (adapt_statistics(values, channels) for values in (self.mean, self.std))
    return dataclasses.replace(self, mean=mean, std=std)


def adapt_statistics(values: float | tuple[float, ...], channels: int) -> float | tuple[float, ...]:
  """Return means or standard deviations for images of another number of channels.

  One number stays one; a single channel gets the mean of all; more or fewer channels take them in turn.

  >>> adapt_statistics((0.25, 0.5, 0.75), 1), adapt_statistics((0.25, 0.5), 3), adapt_statistics(0.5, 3)
  (0.5, (0.25, 0.5, 0.25), 0.5)
  """
  if not isinstance(values, (tuple, list)) or len(values) == channels:
    return values
  return sum(values) / len(values) if channels == 1 else tuple(values[i % len(values)] for i in range(channels))
