"""Config fields inferred from names and shapes, shared by the formats."""
from collections.abc import Iterable
import math
import re
from typing import Any

from vit_jax.base.errors import UnstatedSizeError
from vit_jax.base.preprocessing import adapt_statistics
from vit_jax.base.sections import size
from vit_jax.base.text import count
from vit_jax.models.variants import VARIANTS
from vit_jax.pretrained.files.tensors import Tensors

# The end of a message about preprocessing that was assumed.
SET_PREPROCESSING = ('set it with load(preprocessing=dict(transform=, mean=, std=)), predict --transform --mean --std, '
                     'or training --config.normalization.mean and std')


def depth(tensors: Tensors, pattern: str) -> int:
  """Return the number of blocks; the first group of `pattern` matches a block's number in a name.

  Raises:
    UserError: there is no block, or the numbers are not 0, 1, 2, ….
  """
  numbers = {int(match[1]) for name in tensors.shapes if (match := re.match(pattern, name)) and len(match[1]) < 6}
  if not numbers or numbers != set(range(len(numbers))):
    raise tensors.error(f'expected encoder blocks numbered 0, 1, 2, …; found the numbers {sorted(numbers)[:20]}')
  return len(numbers)


def heads(tensors: Tensors, width: int, depth: int, mlp_dim: int, notes: list[str]) -> int:
  """Return the heads of a file that does not say them: those of the published size, else 64 features per head.

  Either is an assumption, which is added to `notes`.

  Raises:
    UserError: not a published size and not a multiple of 64.
  """
  published = {(row['width'], row['depth'], row['mlp_dim']): row['heads'] for row in VARIANTS.values()}
  known = published.get((width, depth, mlp_dim))
  if known is None and width % 64:
    raise tensors.error(f'cannot infer the number of heads of width {width}; put a config.json with num_heads beside '
                        'it')
  assumed = known or width // 64
  notes.append(f'heads: not in the file, assumed {assumed}, ' + ('as in the published model of this size' if known else
               '64 features per head') + '; another number needs a config.json with num_heads beside the file')
  return assumed


def grid(tensors: Tensors, patches: int, patch_size: tuple[int, int],
         requested: int | tuple[int, int] | None) -> tuple[int, int]:
  """Return rows and columns of the position grid of a file that stores only their product.

  Args:
    tensors: the file, for messages.
    patches: number of positions.
    patch_size: (rows, columns) of a patch in pixels.
    requested: image size that the model was trained at; None: square.

  Raises:
    UserError: an image of this size has another number of patches.
    UnstatedSizeError: no square image has that many, and no size is given.
  """
  if requested is not None:
    if not fits(requested, patch_size, patches):
      raise tensors.error(f'trained_at: an image of {size(requested, "trained_at")} pixels does not have the file\'s '
                          f'{patches} positions of {patch_size[0]}×{patch_size[1]} patches; give the size (rows, '
                          'columns) that the model was trained at')
    rows, columns = size(requested, 'trained_at')
    return rows // patch_size[0], columns // patch_size[1]
  # A square image: rows · patch rows = columns · patch columns.
  rows = math.isqrt(patches * patch_size[1] // patch_size[0])
  if rows and patches % rows == 0 and rows * patch_size[0] == patches // rows * patch_size[1]:
    return rows, patches // rows
  raise UnstatedSizeError(
      f'{tensors.path}: its {patches} positions of {patch_size[0]}×{patch_size[1]} patches are not those of a square '
      'image; give the size (rows, columns) that it was trained at: trained_at=(ROWS, COLUMNS), on the command line '
      '--trained_at=ROWS --trained_at=COLUMNS')


def fits(image_size: Any, patch_size: Iterable[int], patches: int) -> bool:
  """Return whether an image of this size has that many patches; False for None."""
  if image_size is None:
    return False
  return math.prod(n // p for n, p in zip(size(image_size, 'trained_at'), patch_size, strict=True)) == patches


def image_size(tensors: Tensors, patch_size: Iterable[int], requested: int | tuple[int, int] | None,
               notes: list[str]) -> tuple[int, int]:
  """Return the image size of a file without positions.

  That is the requested one, else 224 or the next smaller multiple of a patch: an assumption, which is added to `notes`.
  """
  if requested is not None:
    return size(requested, 'trained_at')
  rows, columns = (max(224 // p, 1) * p for p in patch_size)
  notes.append(f'{tensors.path} does not say the image size: {(rows, columns)} is assumed; give trained_at')
  return rows, columns


def statistic(tensors: Tensors, values: Any, channels: int, name: str,
              notes: list[str]) -> float | tuple[float, ...]:
  """Return a mean or standard deviation for `Preprocessing`: one float if all channels have the same, else a tuple.

  Numbers for another count of channels are adapted, which is added to `notes`.

  Raises:
    UserError: not numbers, none at all, or a standard deviation that is not positive.
  """
  values = tuple(values) if isinstance(values, (list, tuple)) else (values,)
  valid = values and all(type(v) in (int, float) and math.isfinite(v) for v in values)
  if not valid or (name == 'std' and min(values) <= 0):
    raise tensors.error(f'its config files say {name}={values!r}; expected 1 or {channels} numbers, std above 0')
  if len(set(values)) == 1:
    return float(values[0])
  adapted = adapt_statistics(tuple(float(value) for value in values), channels)
  if len(values) != channels:
    notes.append(f'{name}: the config files have {len(values)} numbers for {count(channels, "channel")}; assumed '
                 f'{adapted}; {SET_PREPROCESSING}')
  return adapted
