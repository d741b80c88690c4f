"""Evaluation transforms, a resize and a crop of the center, for models of another image size."""
import math
from typing import Any

from vit_jax.data.transforms import spec
from vit_jax.data.transforms.base import Size
from vit_jax.data.transforms.spec import Call

_STEPS = frozenset({'central_crop', 'resize', 'resize_ratio', 'resize_small'})


def for_image_size(transform: str, old: Size, new: Size) -> str:
  """Return an evaluation transform for another image size, with the same margin around the crop.

  A new image size that is not square covers the crop if the old one did; with the strict crop of our own recipes it
  gets a plain resize. Other chains than a resize and a crop are returned unchanged.

  >>> for_image_size("resize_small(248, interpolation='bicubic')|central_crop", (224, 224), (384, 384))
  "resize_small(426, interpolation='bicubic')|central_crop"
  """
  chain = spec.calls(transform)
  if old == new or not all(name in _STEPS for name, _ in chain):
    return transform
  return spec.join(scaled(chain, old, new))


def scaled(chain: list[Call], old: Size, new: Size) -> list[Call]:
  """Return resizes and crops with their sizes in pixels scaled from one image size to another."""
  small = any(name == 'resize_small' for name, _ in chain)
  if small and new[0] != new[1]:
    arguments = dict(chain)['resize_small']
    interpolation = dict(interpolation=arguments.get('interpolation', 'bilinear'))
    if dict(chain).get('central_crop', {}).get('rule', 'strict') == 'strict':
      return [('resize', interpolation)]
    to = tuple(_scaled(arguments['smaller'], min(old), side) for side in new)
    return [('resize_ratio', dict(interpolation, to=to)) if name == 'resize_small' else (name, arguments)
            for name, arguments in chain]
  return [(name, _scaled_arguments(arguments, old, new)) for name, arguments in chain]


def crop_fraction(resized: int, cropped: int) -> float:
  """Return the fraction p, with as few decimals as possible, for which floor(cropped / p) = resized, as timm computes.

  >>> crop_fraction(248, 224), crop_fraction(256, 224), crop_fraction(224, 224)
  (0.9, 0.875, 1.0)
  """
  for decimals in (1, 2, 3, 4):
    scale = 10 ** decimals
    nearest = math.floor(cropped / resized * scale + 1e-9)
    if nearest and math.floor(cropped / (nearest / scale)) == resized:
      return nearest / scale
  fraction = cropped / resized
  return fraction if math.floor(cropped / fraction) == resized else math.nextafter(fraction, 0)


def _scaled_arguments(arguments: dict[str, Any], old: Size, new: Size) -> dict[str, Any]:
  changed = {}
  if arguments.get('smaller') is not None:
    changed['smaller'] = _scaled(arguments['smaller'], min(old), min(new))
  if arguments.get('to') is not None:
    changed['to'] = tuple(_scaled(*sides) for sides in zip(arguments['to'], old, new, strict=True))
  return {**arguments, **changed}


def _scaled(pixels: int, old: int, new: int) -> int:
  """Return the size that is resized to for a crop of `new` pixels, if it is `pixels` for one of `old`."""
  return math.floor(new / crop_fraction(pixels, old))
