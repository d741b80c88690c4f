"""Draws a position grid before and after it is resized for fine-tuning: `python -m experiments.position_resize`.

Each tile is the cosine similarity of one position with all others (paper, figure 7, centre).  After the resize a
position must still be most like its neighbours, at the finer grid.
"""
from absl import app
from absl import flags
from flax import nnx
from matplotlib.figure import Figure
import numpy as np

from vit_jax.models import positions
from vit_jax.pretrained import load
from vit_jax.pretrained import resize

TILES = 5
NEW = (24, 24)


def grid_of(source=None):
  """A position grid (rows, columns, width): that of `source`, or 14×14 sines and cosines."""
  if source is not None:
    return load.read(source).params['position']['grid']
  return np.asarray(positions.SinCos2D((14, 14), 64, class_token=False, rngs=nnx.Rngs(0))()[0])


def similarities(grid, tiles=TILES):
  """(tiles, tiles, rows, columns): cosine similarity of some positions with all of grid (rows, columns, width)."""
  unit = grid / np.linalg.norm(grid, axis=-1, keepdims=True)
  rows, columns = (np.linspace(0, n - 1, tiles).round().astype(int) for n in grid.shape[:2])
  return np.einsum('abw,rcw->abrc', unit[np.ix_(rows, columns)], unit)


def mosaic(tiles, gap=2):
  """One picture of (tiles, tiles, rows, columns), not-a-number pixels between them."""
  padded = np.pad(tiles, [(0, 0), (0, 0), (0, gap), (0, gap)], constant_values=np.nan)
  count, _, rows, columns = padded.shape
  return padded.transpose(0, 2, 1, 3).reshape(count * rows, count * columns)[:-gap, :-gap]


def draw(grid, new, path):
  """Saves the tiles of a grid and of its two resizes to `new`, side by side."""
  panels = {f'{grid.shape[0]}×{grid.shape[1]}, before': grid}
  for method in ('bilinear', 'bicubic'):
    panels[f'{new[0]}×{new[1]}, {method}'] = resize.resize_grid(grid, new, method)
  lowest = min(similarities(panel).min() for panel in panels.values())
  figure = Figure(figsize=(13, 4.2), layout='constrained')
  figure.get_layout_engine().set(wspace=0.04)
  axes = figure.subplots(1, len(panels))
  for axis, (title, panel) in zip(axes, panels.items()):
    image = axis.imshow(mosaic(similarities(panel)), vmin=lowest, vmax=1)
    axis.set(title=title, xticks=[], yticks=[])
    axis.set_frame_on(False)
  figure.colorbar(image, ax=axes, label='cosine similarity')
  figure.savefig(path, dpi=110)


def main(argv):
  """Draws and says where."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  draw(grid_of(flags.FLAGS.model), NEW, flags.FLAGS.output)
  print(f'wrote {flags.FLAGS.output}')


if __name__ == '__main__':  # flags are the process's: not on import, as from a test or notebook
  flags.DEFINE_string('model', None, 'Weights with learned positions; by default sines and cosines on 14×14.')
  flags.DEFINE_string('output', 'docs/position_resize.png', 'Where the picture goes.')
  app.run(main)
