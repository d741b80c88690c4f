"""Random sequences of operations: RandAugment and TrivialAugment.

RandAugment (Cubuk et al. 2019, arXiv 1909.13719) as AugReg (arXiv 2106.10270) and "Better plain ViT baselines"
(arXiv 2205.01580) used it: google-research/big_vision, pp/autoaugment.py, a copy of TensorFlow's for EfficientNet. We
keep its results rather than its intentions, except for rounding (two levels of 255 in color and sharpness); three are
odd:

  contrast blends with the gray (rows · columns) / 256, at most 255, not with the image's mean: 196 at 224 x 224;
  solarize's threshold 25.6 m is taken modulo 256, as NumPy 1 does in uint8: 0 at m = 10, which inverts all, 128 at 15;
  posterize keeps 0.4 m bits, so a larger magnitude does less; below one it keeps one bit (tf.bitwise), above eight all.

TrivialAugment (Müller & Hutter 2021, arXiv 2103.10158), the wide space: automl/trivialaugment, aug_lib.py. Both shift
images by pixels, whatever their size.
"""
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from PIL import Image

from vit_jax.data.images.pillow import from_pillow, to_pillow
from vit_jax.data.transforms import color, erase, warp
from vit_jax.data.transforms.base import Size, Transform, require

T = TypeVar('T')


def randaugment(size: Size, layers: int, magnitude: float) -> Transform:
  """Apply `layers` operations of RANDAUGMENT, each chosen uniformly and with replacement.

  Args:
    size: not used.
    layers: number of operations, 0 or more; 0 leaves images unchanged.
    magnitude: of all of them, 0..30. At 0 some operations still change the image: colors fade, for example.
  """
  del size
  require(isinstance(layers, int) and layers >= 0, 'layers', layers, 'an int of 0 or more')
  require(0 <= magnitude <= 30, 'magnitude', magnitude, '0..30')
  operations = list(RANDAUGMENT.values())

  def transform(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if layers == 0:
      return image
    changed = to_pillow(image)
    for _ in range(layers):
      changed = _choose(operations, rng)(changed, magnitude, rng)
    return from_pillow(changed)

  return transform


def trivial_augment(size: Size) -> Transform:
  """Apply one operation of TRIVIAL_WIDE, chosen uniformly, at a strength chosen uniformly from 0, 1, …, 30."""
  del size
  operations = list(TRIVIAL_WIDE.values())

  def transform(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    operation, strength = _choose(operations, rng), int(rng.random() * 31)
    return from_pillow(operation(to_pillow(image), strength, rng))

  return transform


def _choose(operations: Sequence[T], rng: np.random.Generator) -> T:
  return operations[int(rng.random() * len(operations))]


def _signed(value: float, rng: np.random.Generator) -> float:
  return value if rng.random() < 0.5 else -value


# Operations by name: (image, magnitude m, rng) -> image. Pixels from outside the image are gray.
_GRAY = 128
RANDAUGMENT: Mapping[str, Callable[[Image.Image, float, np.random.Generator], Image.Image]] = {
    'autocontrast': lambda image, m, rng: color.autocontrast(image),
    'equalize': lambda image, m, rng: color.equalize(image),
    'invert': lambda image, m, rng: color.invert(image),
    'rotate': lambda image, m, rng: warp.rotate(image, _signed(3 * m, rng), _GRAY),
    'posterize': lambda image, m, rng: color.posterize(image, min(max(int(m / 10 * 4), 1), 8)),
    'solarize': lambda image, m, rng: color.solarize(image, int(m / 10 * 256) % 256),
    'solarize_add': lambda image, m, rng: color.solarize_add(image, int(m / 10 * 110)),
    'color': lambda image, m, rng: color.saturation(image, 0.18 * m + 0.1),
    'contrast': lambda image, m, rng: color.contrast(
        image, 0.18 * m + 0.1, min(image.width * image.height // 256, 255)),
    'brightness': lambda image, m, rng: color.brightness(image, 0.18 * m + 0.1),
    'sharpness': lambda image, m, rng: color.sharpness(image, 0.18 * m + 0.1),
    'shear_x': lambda image, m, rng: warp.shear_x(image, _signed(0.03 * m, rng), _GRAY),
    'shear_y': lambda image, m, rng: warp.shear_y(image, _signed(0.03 * m, rng), _GRAY),
    'translate_x': lambda image, m, rng: warp.translate_x(image, _signed(10 * m, rng), _GRAY),
    'translate_y': lambda image, m, rng: warp.translate_y(image, _signed(10 * m, rng), _GRAY),
    'cutout': lambda image, m, rng: erase.cutout(image, int(4 * m), _GRAY, rng),
}

# Likewise, with strengths s = 0..30. Pixels from outside the image are black.
TRIVIAL_WIDE: Mapping[str, Callable[[Image.Image, int, np.random.Generator], Image.Image]] = {
    'identity': lambda image, s, rng: image,
    'autocontrast': lambda image, s, rng: color.autocontrast(image),
    'equalize': lambda image, s, rng: color.equalize(image),
    'rotate': lambda image, s, rng: warp.rotate(image, _signed(s * 135 // 30, rng), 0),
    'solarize': lambda image, s, rng: color.solarize(image, 256 - s * 256 // 30),
    'color': lambda image, s, rng: color.saturation(image, 0.01 + 1.99 * s / 30),
    'posterize': lambda image, s, rng: color.posterize(image, 8 - s * 6 // 30),
    'contrast': lambda image, s, rng: color.contrast(image, 0.01 + 1.99 * s / 30),
    'brightness': lambda image, s, rng: color.brightness(image, 0.01 + 1.99 * s / 30),
    'sharpness': lambda image, s, rng: color.sharpness(image, 0.01 + 1.99 * s / 30),
    'shear_x': lambda image, s, rng: warp.shear_x(image, _signed(0.99 * s / 30, rng), 0),
    'shear_y': lambda image, s, rng: warp.shear_y(image, _signed(0.99 * s / 30, rng), 0),
    'translate_x': lambda image, s, rng: warp.translate_x(image, _signed(s * 32 // 30, rng), 0),
    'translate_y': lambda image, s, rng: warp.translate_y(image, _signed(s * 32 // 30, rng), 0),
}
