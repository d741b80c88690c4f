"""Cosine similarity of position embeddings (paper, figure 7, center), before and after a resize."""
import os

from flax import nnx
from matplotlib.figure import Figure
import numpy as np

from vit_jax.base.errors import UserError
from vit_jax.base.files import PathLike
from vit_jax.models.base import flatten
from vit_jax.models.positions.embeddings import SinCos2D
from vit_jax.pretrained import load, resize
from vit_jax.pretrained.formats.weights import abstract_model

TILES = 5


def read_grid(source: PathLike | None = None) -> np.ndarray:
  """Return a position grid (rows, columns, width): that of a model, or 14×14 sines and cosines.

  Args:
    source: of a model with learned positions, see `load.read`; None for sines and cosines. If every layer has its own,
      they are the first one's.

  Raises:
    UserError: the model has no such positions.
  """
  if source is not None:
    weights = load.read(source)
    for path, layout in abstract_model(weights.config).positions.items():
      if layout == 'grid':
        return flatten(weights.params)[path].reshape(-1, *weights.config.grid, weights.config.width)[0]
    raise UserError(f"{source}: has no learned table of positions (model.position='learned')")
  return np.asarray(SinCos2D((14, 14), 64, class_token=False, rngs=nnx.Rngs(0))()[0])


def similarities(grid: np.ndarray, tiles: int = TILES) -> np.ndarray:
  """Return the cosine similarity of some positions with all positions.

  Args:
    grid: (rows, columns, width).
    tiles: number of rows, and of columns, that are compared with all; evenly spaced.

  Returns:
    (tiles, tiles, rows, columns), -1..1.
  """
  unit = grid / np.linalg.norm(grid, axis=-1, keepdims=True)
  rows, columns = (np.linspace(0, n - 1, tiles).round().astype(int) for n in grid.shape[:2])
  return np.einsum('abw,rcw->abrc', unit[np.ix_(rows, columns)], unit)


def mosaic(tiles: np.ndarray, gap: int = 2) -> np.ndarray:
  """Return (tiles, tiles, rows, columns) as one picture, with `gap` pixels of NaN between tiles."""
  padded = np.pad(tiles, [(0, 0), (0, 0), (0, gap), (0, gap)], constant_values=np.nan)
  count, _, rows, columns = padded.shape
  return padded.transpose(0, 2, 1, 3).reshape(count * rows, count * columns)[:-gap, :-gap]


def draw_resizes(grid: np.ndarray, new: tuple[int, int], path: str | os.PathLike[str]) -> None:
  """Save a figure of a grid's similarities and of those after each way to resize it, side by side.

  Args:
    grid: (rows, columns, width).
    new: (rows, columns) after the resize.
    path: of the picture.
  """
  panels = {f'{grid.shape[0]}×{grid.shape[1]}, before': grid}
  for method in ('bilinear', 'bicubic'):
    panels[f'{new[0]}×{new[1]}, {method}'] = resize.resize_grid(grid, new, method)
  compared = {title: similarities(panel) for title, panel in panels.items()}
  lowest = min(tiles.min() for tiles in compared.values())
  figure = Figure(figsize=(13, 4.2))
  figure.set_layout_engine('constrained', wspace=0.04)
  axes = figure.subplots(1, len(panels))
  for axis, (title, tiles) in zip(axes, compared.items(), strict=True):
    image = axis.imshow(mosaic(tiles), vmin=lowest, vmax=1)
    axis.set(title=title, xticks=[], yticks=[])
    axis.set_frame_on(False)
  figure.colorbar(image, ax=axes, label='cosine similarity')
  figure.savefig(path, dpi=110)
