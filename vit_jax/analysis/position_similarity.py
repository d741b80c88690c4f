"""Cosine similarity of position embeddings (paper, figure 7, center), before and after a resize."""
import os
from typing import Any

from flax import nnx
import numpy as np

from vit_jax.base.errors import UserError
from vit_jax.base.files import PathLike
from vit_jax.base.pictures import new_figure
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
  if source is None:
    return np.asarray(SinCos2D((14, 14), 64, class_token=False, rngs=nnx.Rngs(0))()[0])
  weights = load.read(source)
  grid = _learned_grid(weights.config, weights.params)
  if grid is None:
    raise UserError(f"{source}: has no learned table of positions (model.position='learned')")
  return grid


def grid_of(model: Any) -> np.ndarray | None:
  """Return the position embeddings of a model's patches (rows, columns, width), learned or not; None without.

  If every layer has its own, they are the first one's.
  """
  config = model.config
  if getattr(config, 'position', None) is None:
    return None
  if config.position == 'sincos2d':
    return np.asarray(SinCos2D(config.grid, config.width, class_token=False, rngs=nnx.Rngs(0))()[0])
  return _learned_grid(config, nnx.to_pure_dict(nnx.state(model, nnx.Param)))


def _learned_grid(config: Any, params: Any) -> np.ndarray | None:
  """Return the learned table of patches; one of rows and one of columns are joined as `Learned2D` does."""
  tables, leaves = abstract_model(config).positions, flatten(params)
  found = {layout: np.asarray(leaves[path], np.float32) for path, layout in tables.items()}
  if 'grid' in found:
    return found['grid'].reshape(-1, *config.grid, config.width)[0]
  if 'rows' not in found:
    return None
  rows, columns = (found[name].reshape(-1, n, config.width // 2)[0]
                   for name, n in zip(('rows', 'columns'), config.grid, strict=True))
  shape = (*config.grid, config.width // 2)
  return np.concatenate([np.broadcast_to(columns, shape), np.broadcast_to(rows[:, None], shape)], axis=-1)


def similarities(grid: np.ndarray, tiles: int = TILES) -> np.ndarray:
  """Return the cosine similarity of some positions with all positions.

  Args:
    grid: (rows, columns, width).
    tiles: number of rows, and of columns, that are compared with all; evenly spaced; all if there are fewer.

  Returns:
    (tiles, tiles, rows, columns), -1..1.
  """
  unit = grid / np.maximum(np.linalg.norm(grid, axis=-1, keepdims=True), 1e-12)
  rows, columns = (np.linspace(0, n - 1, min(n, tiles)).round().astype(int) for n in grid.shape[:2])
  return np.einsum('abw,rcw->abrc', unit[np.ix_(rows, columns)], unit)


def mosaic(tiles: np.ndarray, gap: int = 2) -> np.ndarray:
  """Return (tiles, tiles, rows, columns) as one picture, with `gap` pixels of NaN between tiles."""
  padded = np.pad(tiles, [(0, 0), (0, 0), (0, gap), (0, gap)], constant_values=np.nan)
  down, across, rows, columns = padded.shape
  return padded.transpose(0, 2, 1, 3).reshape(down * rows, across * columns)[:-gap, :-gap]


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
  figure = new_figure(13, 4.2)
  axes = figure.subplots(1, len(panels))
  for axis, (title, tiles) in zip(axes, compared.items(), strict=True):
    image = axis.imshow(mosaic(tiles), vmin=lowest, vmax=1)
    axis.set(title=title, xticks=[], yticks=[])
    axis.set_frame_on(False)
  figure.colorbar(image, ax=axes, label='cosine similarity')
  figure.savefig(path, dpi=110)
