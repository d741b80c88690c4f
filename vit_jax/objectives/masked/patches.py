"""Images as patches, row by row, and back; and patches as a few means."""
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float, Shaped
import numpy as np


def patchify(images: Float[Array, 'batch rows columns channels'],
             size: tuple[int, int]) -> Float[Array, 'batch patches pixels']:
  """Return the whole patches of images, each with its pixels row by row and the channels of a pixel side by side.

  Args:
    images: what is left of them at the bottom and at the right is not returned.
    size: of a patch, (rows, columns).
  """
  (height, width), (batch, rows, columns, channels) = size, images.shape
  x = images[:, :rows - rows % height, :columns - columns % width]
  x = x.reshape(batch, rows // height, height, columns // width, width, channels)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, height * width * channels)


def unpatchify(patches: Shaped[Array, 'batch patches pixels'], size: tuple[int, int],
               grid: tuple[int, int]) -> Shaped[Array, 'batch rows columns channels']:
  """Return images from all their patches; the inverse of `patchify` for images of whole patches.

  Args:
    patches: as `patchify` returns them.
    size: of a patch, (rows, columns).
    grid: patches per image, (rows, columns).
  """
  (height, width), (rows, columns) = size, grid
  x = patches.reshape(len(patches), rows, columns, height, width, -1)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(len(patches), rows * height, columns * width, -1)


def cell_means(patches: Float[Array, '*shape pixels'], size: tuple[int, int],
               cells: int) -> Float[Array, '*shape cells channels']:
  """Return the mean of each channel over the cells that a patch is divided into, row by row.

  Args:
    patches: as `patchify` returns them.
    size: of a patch, (rows, columns).
    cells: per side of a patch; a pixel that lies in two counts to each with its share.
  """
  x = patches.reshape(*patches.shape[:-1], *size, -1)
  rows, columns = (jnp.asarray(_shares(n, cells)) for n in size)
  return jnp.einsum('ar,bc,...rck->...abk', rows, columns, x).reshape(*patches.shape[:-1], cells**2, x.shape[-1])


def fill_cells(values: Float[Array, '*shape cells channels'], size: tuple[int, int]) -> Float[Array, '*shape pixels']:
  """Return patches whose cells have one color each, given row by row; a pixel takes that of its center."""
  cells = int(values.shape[-2] ** 0.5)
  row, column = (((np.arange(n) + 0.5) * cells / n).astype(int) for n in size)
  index = (row[:, None] * cells + column).reshape(-1)
  return values[..., index, :].reshape(*values.shape[:-2], -1)


def _shares(pixels: int, cells: int) -> np.ndarray:
  """Return the share of each pixel in the mean of each cell along one side, (cells, pixels) float32."""
  edges = np.arange(cells + 1) * pixels / cells
  first, last = np.maximum(edges[:-1, None], np.arange(pixels)), np.minimum(edges[1:, None], np.arange(pixels) + 1)
  return (np.maximum(last - first, 0.0) * cells / pixels).astype(np.float32)
