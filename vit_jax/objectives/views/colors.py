"""Random changes of colors on the device, of images 0..1."""
import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
import numpy as np

Image = Float[Array, 'rows columns channels']

# Luma and two chromas of RGB, the YIQ of NTSC television: a turn of the chromas changes the hue, a factor the
# saturation; the weights of luma are those of ITU-R BT.601.
_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


@dataclasses.dataclass(frozen=True)
class ColorJitter:
  """Random colors; the defaults are those of DINO (arXiv 2104.14294; the authors' `DataAugmentationDINO`), BYOL's.

  Attributes:
    brightness, contrast, saturation: largest distance of a factor from 1; uniform.
    hue: largest turn of the hue, as a share of the circle; uniform.
    chance: probability that an image gets any of these.
    gray_chance: probability that an RGB image loses its colors.
  """
  brightness: float = 0.4
  contrast: float = 0.4
  saturation: float = 0.2
  hue: float = 0.1
  chance: float = 0.8
  gray_chance: float = 0.2

  def scaled(self, strength: float) -> 'ColorJitter':
    """Return the same with all factors' ranges multiplied by a strength; 0 is off, also for grayscale."""
    ranges = {name: strength * getattr(self, name) for name in ('brightness', 'contrast', 'saturation', 'hue')}
    return dataclasses.replace(self, **ranges, gray_chance=self.gray_chance if strength else 0.0)


NUM_DRAWS = 6  # random numbers that `jitter` takes


def jitter(image: Image, draws: Float[Array, '6'], config: ColorJitter) -> Image:
  """Return an image with other brightness, contrast, saturation and hue, in this order, clipped to 0..1 after each.

  torchvision's `ColorJitter` has a random order and turns the hue in HSV instead of YIQ. Images with another number of
  channels than 3 have no saturation, hue and grayscale.

  Args:
    image: 0..1.
    draws: uniform in [0, 1).
    config: what is random.
  """
  if not any((config.brightness, config.contrast, config.saturation, config.hue, config.gray_chance)):
    return image
  around = lambda i, span: between(draws[i], -span, span)
  x = with_contrast(jnp.clip(image * (1 + around(0, config.brightness)), 0, 1), 1 + around(1, config.contrast))
  if image.shape[-1] == 3:
    x = with_chroma(x, 1 + around(2, config.saturation), around(3, config.hue))
  x = jnp.where(draws[4] < config.chance, x, image)
  if image.shape[-1] == 3:
    x = jnp.where(draws[5] < config.gray_chance, luma(x), x)
  return x


def between(draw: Float[Array, ''], low: float, high: float) -> Float[Array, '']:
  """Return a number in [low, high) for one in [0, 1)."""
  return low + (high - low) * draw


def luma(image: Image) -> Float[Array, 'rows columns 1']:
  """Return the brightness of every pixel: of RGB by ITU-R BT.601, of other images the mean of the channels."""
  if image.shape[-1] != 3:
    return image.mean(axis=-1, keepdims=True)
  return (image * jnp.asarray(_YIQ[0], jnp.float32)).sum(axis=-1, keepdims=True)


def with_contrast(image: Image, factor: Float[Array, '']) -> Image:
  """Return an image with its distance to the mean brightness multiplied by a factor."""
  mean = luma(image).mean()
  return jnp.clip(mean + factor * (image - mean), 0, 1)


def with_chroma(image: Image, factor: Float[Array, ''], turn: Float[Array, '']) -> Image:
  """Return an RGB image with its saturation multiplied by a factor, and its hue turned by a share of the circle."""
  cos, sin = (factor * f(2 * math.pi * turn) for f in (jnp.cos, jnp.sin))
  one, zero = jnp.ones(()), jnp.zeros(())
  turned = jnp.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos]).reshape(3, 3)
  exact = jax.lax.Precision.HIGHEST
  matrix = jnp.matmul(jnp.matmul(jnp.asarray(np.linalg.inv(_YIQ), jnp.float32), turned, precision=exact),
                      jnp.asarray(_YIQ, jnp.float32), precision=exact)
  return jnp.clip(jnp.einsum('rck,lk->rcl', image, matrix, precision=exact), 0, 1)


def solarize(image: Image, where: Bool[Array, '']) -> Image:
  """Return an image whose values from 0.5 on are inverted, if `where`."""
  return jnp.where(where & (image >= 0.5), 1 - image, image)
