"""What a transform is, and the argument checks that all share.

A transform is a callable `(image, rng) -> image`. `image` is (H, W, C) uint8 with C = 1 or 3 and is never written to;
`rng` is the example's own random generator. A builder, a row of `registry.TRANSFORMS`, makes a transform from the
config's image size and its own arguments; `spec.parse` chains them.
"""
from collections.abc import Callable

import numpy as np

from vit_jax.base.errors import UserError
from vit_jax.data.images.decode import Picture

Size = tuple[int, int]  # (rows, columns)
Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]
# Also takes a JPEG of which it decodes only the rows it needs.
PictureTransform = Callable[[np.ndarray | Picture, np.random.Generator], np.ndarray]


# A transform may not make an image of more pixels: a picture of one row can ask for gigabytes when it is enlarged.
MAX_PIXELS = 1 << 25


def require_pixels(rows: int, columns: int) -> None:
  """Raise UserError if an image of this size would have more than MAX_PIXELS."""
  if rows * columns > MAX_PIXELS:
    raise UserError(f'a transform would make an image of {rows:,} × {columns:,} pixels; at most {MAX_PIXELS:,} are '
                    'made. Leave the image out, or choose smaller sizes')


def require(valid: bool, name: str, value: object, expected: str) -> None:
  """Raise UserError unless an argument is valid.

  >>> require(False, 'p', 2, 'a probability, 0..1')
  Traceback (most recent call last):
  vit_jax.base.errors.UserError: p: expected a probability, 0..1, got 2
  """
  if not valid:
    raise UserError(f'{name}: expected {expected}, got {value!r}')
