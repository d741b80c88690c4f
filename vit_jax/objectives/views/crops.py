"""Random resized crops on the device: each is two products with a small matrix of bilinear weights.

A crop belongs to the example: its box, flip, blur and colors come from the example's own key, so that one device and
many make the same crops.
"""
import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vit_jax.objectives.views import colors
from vit_jax.objectives.views.colors import ColorJitter, between

Size = tuple[int, int]
Matrix = Float[Array, 'new old']


@dataclasses.dataclass(frozen=True)
class CropKind:
  """Crops that differ only in what is random.

  Attributes:
    count: crops per image.
    size: (rows, columns) of a crop.
    area: smallest and largest share of the image that a crop covers; uniform in between.
    flip: whether a crop is mirrored, left and right, with probability 0.5.
    colors: what happens to colors; see `colors.jitter`.
    blur: largest standard deviation of a Gaussian blur, in pixels of the crop; uniform from 0.1; 0: none.
    blur_chance: probability of a blur, for each of the crops in turn.
    solarize_chance: probability that what is brighter than 0.5 is inverted, likewise.
  """
  count: int
  size: Size
  area: tuple[float, float]
  flip: bool = True
  colors: ColorJitter = ColorJitter()
  blur: float = 0.0
  blur_chance: tuple[float, ...] = (0.0,)
  solarize_chance: tuple[float, ...] = (0.0,)


def crop(images: Float[Array, 'batch rows columns channels'], keys: Key[Array, ' batch'],
         kind: CropKind) -> Float[Array, 'batch crops new_rows new_columns channels']:
  """Return random crops of images.

  Differs from torchvision's pipeline, as the authors of DINO use it, in that boxes are not rounded to whole pixels,
  interpolation is bilinear, a side that a box's aspect ratio makes longer than the image is cut instead of drawn again,
  and the blur comes before the colors.

  Args:
    images: 0..1.
    keys: one per example.
    kind: how many, and of which kind.

  Returns:
    0..1, crops of an image next to each other.
  """
  blur_chance, solarize_chance = (jnp.asarray([chances[i % len(chances)] for i in range(kind.count)], jnp.float32)
                                  for chances in (kind.blur_chance, kind.solarize_chance))

  def one(image: Array, draws: Array, blur: Array, solarize: Array) -> Array:
    rows, columns = _weights(draws[:5], image.shape[0], image.shape[1], kind)
    if kind.blur:
      # A crop and its blur are one product.
      sigma = jnp.where(draws[5] < blur, between(draws[6], min(0.1, kind.blur), kind.blur), 1e-3)
      rows, columns = (gaussian_weights(sigma, len(x)) @ x for x in (rows, columns))
    view = colors.jitter(resample(image, rows, columns), draws[8:], kind.colors)
    return colors.solarize(view, draws[7] < solarize) if max(kind.solarize_chance) else view

  def all_of_one(image: Array, key: Array) -> Array:
    draws = jax.random.uniform(key, (kind.count, 8 + colors.NUM_DRAWS))
    return jax.vmap(one, in_axes=(None, 0, 0, 0))(image, draws, blur_chance, solarize_chance)

  return jax.vmap(all_of_one)(images, keys)


def resample(image: Float[Array, 'rows columns channels'], rows: Float[Array, 'new_rows rows'],
             columns: Float[Array, 'new_columns columns']) -> Float[Array, 'new_rows new_columns channels']:
  """Return an image resampled by a matrix of weights along each axis."""
  # By default TPUs would round the pixels to 8 bits for each product.
  narrow = jnp.einsum('jc,rck->rjk', columns, image, precision=jax.lax.Precision.HIGH)
  return jnp.einsum('ir,rjk->ijk', rows, narrow, precision=jax.lax.Precision.HIGH)


def bilinear_weights(start: Float[Array, ''], length: Float[Array, ''], old: int, new: int) -> Matrix:
  """Return the weights of bilinear interpolation, (new, old); each row sums to 1.

  Args:
    start: where the box begins, in pixels; 0 is the outer edge of the first.
    length: of the box, in pixels.
    old: pixels of the image.
    new: pixels of the crop; their centers are spread evenly over the box, and the image's edge pixels are repeated.
  """
  at = start + (jnp.arange(new) + 0.5) * (length / new) - 0.5
  at = jnp.clip(at, 0.0, old - 1.0)
  return jnp.maximum(0.0, 1.0 - jnp.abs(at[:, None] - jnp.arange(old)))


def gaussian_weights(sigma: Float[Array, ''], size: int) -> Float[Array, 'size size']:
  """Return the matrix of a Gaussian blur of `sigma` pixels; each row sums to 1, also at the edges."""
  distance = jnp.arange(size)[:, None] - jnp.arange(size)
  weights = jnp.exp(-0.5 * jnp.square(distance / sigma))
  return weights / weights.sum(axis=1, keepdims=True)


def random_box(draws: Float[Array, '4'], rows: int, columns: int,
               area: tuple[float, float]) -> tuple[Array, Array, Array, Array]:
  """Return a random box inside an image as (top, height, left, width) in pixels, not rounded.

  Its share of the area is uniform, the logarithm of its aspect ratio is uniform from 3:4 to 4:3, its place is uniform.

  Args:
    draws: uniform in [0, 1).
    rows, columns: of the image.
    area: smallest and largest share.
  """
  pixels = rows * columns * between(draws[0], *area)
  ratio = jnp.exp(between(draws[1], -math.log(4 / 3), math.log(4 / 3)))
  height, width = jnp.minimum(jnp.sqrt(pixels / ratio), rows), jnp.minimum(jnp.sqrt(pixels * ratio), columns)
  return draws[2] * (rows - height), height, draws[3] * (columns - width), width


def _weights(draws: Float[Array, '5'], rows: int, columns: int, kind: CropKind) -> tuple[Matrix, Matrix]:
  """Return the matrices of a random box, mirrored or not."""
  top, height, left, width = random_box(draws[:4], rows, columns, kind.area)
  across = bilinear_weights(left, width, columns, kind.size[1])
  if kind.flip:
    across = jnp.where(draws[4] < 0.5, across[::-1], across)
  return bilinear_weights(top, height, rows, kind.size[0]), across
