"""Resampling of position grids and patch kernels, as products with small interpolation matrices."""
from collections.abc import Callable

import numpy as np

from vit_jax.base.choices import choose
from vit_jax.base.errors import UserError

Size = tuple[int, int]


def resize_grid(grid: np.ndarray, new: Size, method: str = 'bilinear') -> np.ndarray:
  """Resample a grid of position embeddings.

  Args:
    grid: (rows, columns, width) floats.
    new: (rows, columns) of the result.
    method: a name of METHODS, the code that resizes so in brackets:
      'bilinear' maps corners to corners (the official code: `scipy.ndimage.zoom(order=1)`);
      'bicubic' shrinks with antialiasing (timm; DINOv2 with registers in transformers);
      'bicubic_no_antialias' does not, and overshoots more (most models in transformers);
      'bilinear_antialias' shrinks with antialiasing (SigLIP 2 in transformers).

  Returns:
    (*new, width) of grid's dtype; a grid of that size is returned unchanged.

  Raises:
    UserError: an unknown method, a size below 1, or a grid of another rank.
  """
  weights = choose(METHODS, method, 'method')
  if grid.ndim != 3 or min(*grid.shape, *new) < 1:
    raise UserError('grid: expected shape (rows, columns, width) and a positive size, '
                    f'got {grid.shape} and {tuple(new)}')
  if grid.shape[:2] == tuple(new):
    return grid
  rows, columns = (weights(old, size) for old, size in zip(grid.shape[:2], new, strict=True))
  return np.einsum('ir,jc,rcw->ijw', rows, columns, grid.astype(np.float64), optimize=True).astype(grid.dtype)


def resize_offsets(table: np.ndarray, old: Size, new: Size) -> np.ndarray:
  """Resample a table of relative positions as timm and BEiT's fine-tuning code do.

  Near offsets keep their meaning and far ones are stretched: the old offsets are placed at ±1, ±(1 + q), ±(1 + q + q²),
  … with the q (1.01 to 1.5) for which the last one reaches the edge of the new grid, and read by linear interpolation
  (timm's `resize_rel_pos_bias_table`).

  Args:
    table: (offsets [+ extra rows, which are kept], heads) floats, as `positions.relative.TableBias` has them.
    old: grid of patches, (rows, columns), that the table is for.
    new: grid of the result.

  Returns:
    ((2 rows - 1) (2 columns - 1) [+ extra], heads) of table's dtype; the table itself for the same grid.
  """
  if tuple(old) == tuple(new):
    return table
  spans = [2 * n - 1 for n in old]
  count = spans[0] * spans[1]
  rows, columns = (_stretched(before, after) for before, after in zip(old, new, strict=True))
  by_offset = table[:count].reshape(*spans, -1).astype(np.float64)
  resized = np.einsum('ir,jc,rch->ijh', rows, columns, by_offset, optimize=True)
  return np.concatenate([resized.reshape(-1, table.shape[1]).astype(table.dtype), table[count:]])


def _stretched(old: int, new: int) -> np.ndarray:
  """Return the (2 new - 1, 2 old - 1) matrix of the interpolation of offsets; see `resize_offsets`."""
  low, high = 1.01, 1.5
  q = (low + high) / 2
  while high - low > 1e-6:
    q = (low + high) / 2
    if (1 - q ** (old - 1)) / (1 - q) > new - 1:
      high = q
    else:
      low = q
  far = np.cumsum(q ** np.arange(old - 1))
  at = np.concatenate([-far[::-1], [0.0], far])
  return np.stack([np.interp(np.arange(1 - new, new), at, row) for row in np.eye(len(at))], axis=1)


def resize_patch_kernel(kernel: np.ndarray, new: Size) -> np.ndarray:
  """Resample the kernel of the patch embedding so that enlarged patches have the embedding of the small ones.

  With B the matrix that enlarges a patch bilinearly, the new kernel k' minimizes |B'k' - k|: patches x and Bx then
  have the same product with the old and the new kernel (FlexiViT, arXiv 2212.08013, section 3.4, PI-resize). B is the
  plain half-pixel bilinear resize.

  Args:
    kernel: (rows, columns, channels, width) floats.
    new: (rows, columns) of the result.

  Returns:
    (*new, channels, width) of kernel's dtype; a kernel of that size is returned unchanged.

  Raises:
    UserError: a size below 1.
  """
  if min(new) < 1:
    raise UserError(f'patch_size: expected a positive patch size, got {tuple(new)}')
  if kernel.shape[:2] == tuple(new):
    return kernel
  # The pseudo-inverse of a Kronecker product is that of its factors.
  rows, columns = (np.linalg.pinv(bilinear_half_pixel(old, size).T)
                   for old, size in zip(kernel.shape[:2], new, strict=True))
  return np.einsum('ip,jq,pqcw->ijcw', rows, columns, kernel.astype(np.float64), optimize=True).astype(kernel.dtype)


def bilinear_aligned(old: int, new: int) -> np.ndarray:
  """Return the (new, old) matrix of linear interpolation that maps first to first and last to last."""
  at = np.arange(new) * ((old - 1) / max(new - 1, 1))
  return _hats(at, old)


def bilinear_half_pixel(old: int, new: int) -> np.ndarray:
  """Return the (new, old) matrix of linear interpolation between pixel centers, not antialiased, edges repeated."""
  at = (np.arange(new) + 0.5) * (old / new) - 0.5
  return _hats(np.clip(at, 0, old - 1), old)


def bicubic_antialias(old: int, new: int) -> np.ndarray:
  """Return the (new, old) matrix of cubic interpolation (a = -1/2), with a wider kernel for shrinking.

  This is `torch.nn.functional.interpolate(mode='bicubic', antialias=True, align_corners=False)`, which follows Pillow;
  timm resizes positions with it.
  """
  return _antialias(_cubic, old, new)


def bilinear_antialias(old: int, new: int) -> np.ndarray:
  """Return the (new, old) matrix of linear interpolation between pixel centers, with a wider kernel for shrinking.

  This is `torch.nn.functional.interpolate(mode='bilinear', antialias=True, align_corners=False)`.
  """
  return _antialias(lambda x: np.maximum(0.0, 1.0 - np.abs(x)), old, new)


def bicubic_no_antialias(old: int, new: int) -> np.ndarray:
  """Return the (new, old) matrix of cubic interpolation (a = -3/4) between pixel centers, edges repeated.

  This is `torch.nn.functional.interpolate(mode='bicubic', align_corners=False)`; transformers 5 calls it with the size
  of the grid, not with a scale factor.
  """
  at = (np.arange(new) + 0.5) * (old / new) - 0.5
  matrix = np.zeros((new, old))
  for tap in range(-1, 3):
    source = np.floor(at).astype(int) + tap
    np.add.at(matrix, (np.arange(new), np.clip(source, 0, old - 1)), _cubic(at - source, a=-0.75))
  return matrix


def _antialias(kernel: Callable[[np.ndarray], np.ndarray], old: int, new: int) -> np.ndarray:
  scale = old / new
  stretch = max(scale, 1.0)
  centers = (np.arange(new) + 0.5) * scale
  weights = kernel((np.arange(old)[None] + 0.5 - centers[:, None]) / stretch)
  return weights / weights.sum(axis=1, keepdims=True)


def _hats(at: np.ndarray, old: int) -> np.ndarray:
  return np.maximum(0.0, 1.0 - np.abs(at[:, None] - np.arange(old)[None]))


def _cubic(x: np.ndarray, a: float = -0.5) -> np.ndarray:
  x = np.abs(x)
  near, far = ((a + 2) * x - (a + 3)) * x * x + 1, ((x - 5) * x + 8) * x * a - 4 * a
  return np.where(x < 1, near, np.where(x < 2, far, 0.0))


METHODS: dict[str, Callable[[int, int], np.ndarray]] = {
    'bicubic': bicubic_antialias,
    'bicubic_no_antialias': bicubic_no_antialias,
    'bilinear': bilinear_aligned,
    'bilinear_antialias': bilinear_antialias,
}
