"""What the formats have in common when they tell a model's fields from names and shapes."""
import math
import re

from vit_jax.base.sections import size
from vit_jax.models.config import VARIANTS


def depth(tensors, pattern):
  """The number of blocks, whose numbers the first group of `pattern` finds in the names.

  Raises:
    ValueError: no block, or numbers that are not 0, 1, 2, ….
  """
  numbers = {int(match[1]) for name in tensors.shapes if (match := re.match(pattern, name)) and len(match[1]) < 6}
  if not numbers or numbers != set(range(len(numbers))):
    raise tensors.error(f'expected encoder blocks numbered 0, 1, 2, …; found the numbers {sorted(numbers)[:20]}')
  return len(numbers)


def heads(tensors, width, depth, mlp_dim):
  """Attention heads where a file does not tell: those of the published size, else 64 features a head.

  Raises:
    ValueError: no published size and no multiple of 64.
  """
  published = {(row['width'], row['depth'], row['mlp_dim']): row['heads'] for row in VARIANTS.values()}
  if (width, depth, mlp_dim) in published:
    return published[width, depth, mlp_dim]
  if width % 64:
    raise tensors.error(f'cannot tell the number of heads of width {width}: put a config.json with num_heads beside it')
  return width // 64


def grid(tensors, patches, patch_size, asked):
  """Rows and columns of the position grid of a file that stores only their product.

  Args:
    tensors: the file, for messages.
    patches: number of positions.
    patch_size: rows and columns of a patch in pixels.
    asked: image size that the caller wants, or None.  It may be that of a fine-tune, so a square image comes before it.

  Raises:
    ValueError: neither of them has as many patches.
  """
  # A square image: rows · patch rows = columns · patch columns.
  rows = math.isqrt(patches * patch_size[1] // patch_size[0])
  if rows and patches % rows == 0 and rows * patch_size[0] == patches // rows * patch_size[1]:
    return rows, patches // rows
  if fits(asked, patch_size, patches):
    return tuple(n // p for n, p in zip(size(asked, 'image_size'), patch_size))
  raise tensors.error(f'its {patches} positions of {patch_size[0]}×{patch_size[1]} patches are no square image; '
                      'give the image_size (rows, columns) that it was trained at')


def fits(image_size, patch_size, patches):
  """Whether an image of this size, or None, has that many patches."""
  if image_size is None:
    return False
  return math.prod(n // p for n, p in zip(size(image_size, 'image_size'), patch_size, strict=True)) == patches


def image_size(tensors, patch_size, asked, notes):
  """Image size of a file without positions: what was asked for, else 224 or the next smaller multiple of a patch."""
  if asked is not None:
    return size(asked, 'image_size')
  assumed = tuple(max(224 // p, 1) * p for p in patch_size)
  notes.append(f'{tensors.path} does not say the image size: {assumed} is assumed; give image_size')
  return assumed


def statistic(tensors, values, channels, what):
  """A mean or standard deviation for Preprocessing: one float if all channels have the same, else a tuple.

  Raises:
    ValueError: no numbers, not one or one for each channel, or a standard deviation that is not positive.
  """
  values = tuple(values) if isinstance(values, (list, tuple)) else (values,)
  valid = len(values) in (1, channels) and all(type(v) in (int, float) and math.isfinite(v) for v in values)
  if not valid or (what == 'std' and min(values) <= 0):
    raise tensors.error(f'its config files say {what}={values!r}; expected 1 or {channels} numbers, std above 0')
  return float(values[0]) if len(set(values)) == 1 else tuple(float(value) for value in values)
