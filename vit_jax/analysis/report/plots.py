"""Figures of an analysis, drawn by matplotlib: each takes arrays by the name of their model.

Colors are told apart by color-blind readers too: those of Okabe and Ito for lines, viridis for values.
"""
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.analysis import position_similarity
from vit_jax.base.pictures import new_figure

COLORS = ('#0072B2', '#D55E00')
_GRAY = '#666666'
_MAP = 'viridis'
_COLUMNS = 7  # of filters, as in the paper
_MARGIN = 0.85  # gray between them


def _panels(names: Sequence[str], width: float, height: float, **options: Any) -> tuple[Any, list[Any]]:
  """Return a figure with a panel per name, side by side, titled if there are several."""
  figure = new_figure(width * len(names), height)
  axes = list(figure.subplots(1, len(names), squeeze=False, **options)[0])
  for axis, name in zip(axes, names, strict=True):
    if len(names) > 1:
      axis.set_title(name, fontsize=10)
  return figure, axes


def draw_filters(pictures: Mapping[str, np.ndarray]) -> Any:
  """Draw components, (count, rows, columns, 3) 0..1 each, in rows of seven."""
  figure, axes = _panels(list(pictures), 5.6, 3.4)
  for axis, found in zip(axes, pictures.values(), strict=True):
    count, rows, columns, _ = found.shape
    gap = max(rows // 8, 1)
    # A margin of gray: components may be white at their edges, and those of another model stand beside them.
    sheet = np.full((-(-count // _COLUMNS) * (rows + gap) + gap, _COLUMNS * (columns + gap) + gap, 3), _MARGIN)
    for k, picture in enumerate(found):
      top, left = gap + k // _COLUMNS * (rows + gap), gap + k % _COLUMNS * (columns + gap)
      sheet[top:top + rows, left:left + columns] = picture
    axis.imshow(sheet, interpolation='nearest')
    axis.set_anchor('N')
    axis.set_axis_off()
  return figure


def draw_positions(tiles: Mapping[str, np.ndarray]) -> Any:
  """Draw similarities, (tiles, tiles, rows, columns) -1..1 each, a tile per position."""
  figure, axes = _panels(list(tiles), 5.2, 4.4)
  for axis, found in zip(axes, tiles.values(), strict=True):
    image = axis.imshow(position_similarity.mosaic(found, gap=max(found.shape[-1] // 7, 1)), cmap=_MAP, vmin=-1,
                        vmax=1)  # as in the paper
    axis.set(xlabel='column of the patch', ylabel='row of the patch', xticks=[], yticks=[])
    axis.set_frame_on(False)
  figure.colorbar(image, ax=axes, label='cosine similarity')
  return figure


def draw_heads(heads: Mapping[str, np.ndarray], uniform: Mapping[str, float], label: str) -> Any:
  """Draw a value per head, (depth, heads) each, over the depth.

  Args:
    heads: by model.
    uniform: the value of a head that attends to all tokens alike, by model.
    label: of the value.
  """
  figure, axes = _panels(list(heads), 5.2, 3.6, sharey=True)
  for axis, (name, found) in zip(axes, heads.items(), strict=True):
    blocks = np.arange(1, len(found) + 1)
    axis.scatter(np.repeat(blocks, found.shape[1]), found.ravel(), s=18, color=COLORS[0], alpha=0.6, linewidths=0,
                 label='head')
    axis.plot(blocks, found.mean(axis=1), color=COLORS[1], label='mean of the heads')
    axis.axhline(uniform[name], color=_GRAY, linestyle='--', linewidth=1, label='attends to all tokens alike')
    axis.set_xlabel('block')
    _whole_ticks(axis)
    axis.grid(alpha=0.25)
  highest = max(max(found.max(), uniform[name]) for name, found in heads.items())
  axes[0].set(ylabel=label, ylim=(0, 1.3 * highest))  # the legend is above the points
  axes[-1].legend(fontsize=8, loc='upper right', ncols=2)
  return figure


def draw_rollout(images: np.ndarray, overlays: Mapping[str, np.ndarray]) -> Any:
  """Draw images (count, rows, columns, 3) uint8, and below them what each model attends to, likewise."""
  figure = new_figure(1.7 * len(images) + 0.4, 1.75 * (1 + len(overlays)))
  rows = figure.subplots(1 + len(overlays), len(images), squeeze=False)
  for axes, (name, pictures) in zip(rows, {'image': images, **overlays}.items(), strict=True):
    for axis, picture in zip(axes, pictures, strict=True):
      axis.imshow(picture)
      axis.set(xticks=[], yticks=[])
      axis.set_frame_on(False)
    axes[0].set_ylabel(_shorten(name if name == 'image' or len(overlays) > 1 else 'attention'), fontsize=9)
  return figure


def draw_norms(norms: Mapping[str, np.ndarray]) -> Any:
  """Draw norms of patch tokens by layer and the share of outliers, (layers, 5) each; see `measure.NORMS`."""
  figure = new_figure(10.4, 3.6)
  left, right = figure.subplots(1, 2)
  for color, (name, found) in zip(COLORS, norms.items(), strict=False):
    layers = np.arange(len(found))
    left.fill_between(layers, found[:, 0], found[:, 2], color=color, alpha=0.2, linewidth=0)
    left.plot(layers, found[:, 1], color=color, label=name if len(norms) > 1 else 'median, and 5 % to 95 %')
    left.plot(layers, found[:, 3], color=color, linestyle=':', label=None if len(norms) > 1 else 'largest of an image')
    right.plot(layers, 100 * found[:, 4], color=color, marker='o', markersize=3, label=name)
  low, high = (reduce([reduce(found[:, :4]) for found in norms.values()]) for reduce in (np.min, np.max))
  left.set(xlabel='layer', ylabel='norm of a patch token')
  if low > 0 and high > 30 * low:
    left.set_yscale('log')
  else:
    left.set_ylim(0, None)
  most = max(found[:, 4].max() for found in norms.values())
  right.set(xlabel='layer', ylabel='outliers (% of patches)', ylim=(0, None if most else 1),
            title=None if most else 'no outliers')
  for axis in (left, right):
    _whole_ticks(axis)
    axis.grid(alpha=0.25)
  left.legend(fontsize=8)
  return figure


def draw_cka(similar: Mapping[tuple[str, str], np.ndarray]) -> Any:
  """Draw CKA between layers, (layers, layers) each, by (model on the vertical axis, model on the horizontal one)."""
  figure, axes = _panels([' '] * len(similar), 4.4, 4.0)
  for axis, ((down, across), found) in zip(axes, similar.items(), strict=True):
    image = axis.imshow(found, cmap=_MAP, vmin=0, vmax=1, origin='lower', aspect='auto')
    several = len(similar) > 1
    axis.set(xlabel=f'layer of {_shorten(across)}' if several else 'layer',
             ylabel=f'layer of {_shorten(down)}' if several else 'layer')
    for ticks in (axis.xaxis, axis.yaxis):
      _whole(ticks)
  figure.colorbar(image, ax=axes, label='CKA')
  return figure


def draw_probe(accuracies: Mapping[tuple[str, str], np.ndarray], chance: float) -> Any:
  """Draw accuracies by layer, (layers,) 0..1 each, by (model, kind of features).

  Args:
    accuracies: solid lines for the mean over patches, dashed ones for the class token.
    chance: accuracy of the most frequent class.
  """
  figure = new_figure(6.4, 3.8)
  axis = figure.subplots()
  models = list(dict.fromkeys(name for name, _ in accuracies))
  for (name, kind), found in accuracies.items():
    axis.plot(np.arange(len(found)), 100 * found, marker='o', markersize=3, color=COLORS[models.index(name)],
              linestyle='-' if kind == 'mean of patches' else '--',
              label=f'{_shorten(name)}: {kind}' if len(models) > 1 else kind)
  axis.axhline(100 * chance, color=_GRAY, linestyle=':', linewidth=1, label='most frequent class')
  axis.set(xlabel='layer', ylabel='accuracy on held-out images (%)', ylim=(0, 101))
  _whole_ticks(axis)
  axis.grid(alpha=0.25)
  figure.legend(fontsize=8, loc='outside lower center', ncols=2)  # curves may run anywhere
  return figure


def _whole_ticks(axis: Any) -> None:
  _whole(axis.xaxis)


def _whole(ticks: Any) -> None:
  """Put ticks at whole numbers only."""
  from matplotlib.ticker import MaxNLocator
  ticks.set_major_locator(MaxNLocator(integer=True))


def _shorten(name: str, longest: int = 24) -> str:
  """Return the end of a long name."""
  return name if len(name) <= longest else f'…{name[1 - longest:]}'
