"""The health panel of a run as a picture: every statistic as a heat map of layers and steps."""
from collections.abc import Mapping
import io
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vit_jax.base import pictures
from vit_jax.base.errors import UserError
from vit_jax.base.files import PathLike
from vit_jax.rundir.layout import RunDir

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

# Statistic: (title, scale of its colors); a share begins at 0 and ends at 0.1 at least.
TITLES = {
    'entropy': ('attention entropy (nats)', 'linear'),
    'distance': ('mean attention distance (pixels)', 'linear'),
    'dead_units': ('share of dead hidden units', 'share'),
    'token_norm': ('token norm, mean', 'linear'),
    'token_norm_max': ('token norm, largest', 'linear'),
    'grad_norm': ('gradient norm', 'log'),
    'update_ratio': ('norm of update / norm of parameters', 'log'),
    'logits': ('logits', 'linear'),
}
_COLUMNS = 4
_PREFIX = 'health/'


def read(workdir: PathLike) -> dict[str, dict[str, dict[int, float]]]:
  """Return {statistic: {layer: {step: value}}} of a run, layers from the stem to the head; NaN for a null.

  Raises:
    UserError: it is not the directory of a run, or the run has logged no panel.
  """
  run_dir = RunDir(workdir)
  run_dir.read_config()  # a clear error if it is not the directory of a run
  found: dict[str, dict[str, dict[int, float]]] = {}
  for _, line in run_dir.read_metrics():
    for name, value in line.items():
      if name.startswith(_PREFIX):
        statistic, layer = name.removeprefix(_PREFIX).split('/', 1)
        number = math.nan if value is None else value
        found.setdefault(statistic, {}).setdefault(layer, {})[line['step']] = number
  if not found:
    raise UserError(f'--health: {run_dir} has no health panel in {run_dir.metrics_path.name}; train with '
                    '--config.health.every=1')
  return {statistic: {layer: found[statistic][layer] for layer in sorted(found[statistic], key=_place)}
          for statistic in sorted(found, key=lambda name: [*TITLES, name].index(name))}


def _place(layer: str) -> tuple[int, str]:
  """Return the place of a layer's row: the stem first, then blocks, head and the rest."""
  number = {'stem': 0, 'head': 2, 'all': 4}.get(layer, 1 if layer.startswith('block_') else 3)
  return number, layer


def draw(panels: Mapping[str, Mapping[str, Mapping[int, float]]]) -> 'Figure':
  """Draw the statistics that `read` returned; the means of all layers are left out.

  Raises:
    UserError: matplotlib is not installed.
  """
  rows = -(-len(panels) // _COLUMNS)
  figure = pictures.new_figure(4.6 * min(_COLUMNS, len(panels)), 3.4 * rows)
  axes = list(figure.subplots(rows, min(_COLUMNS, len(panels)), squeeze=False).flat)
  for axis, (statistic, layers) in zip(axes, panels.items(), strict=False):
    title, scale = TITLES.get(statistic, (statistic, 'linear'))
    axis.set_title(title, fontsize=10)
    if statistic == 'logits':
      _lines(axis, layers)
    else:
      shown = {layer: row for layer, row in layers.items() if layer != 'all' or len(layers) == 1}
      figure.colorbar(_heat_map(axis, shown, scale), ax=axis)
    axis.set_xlabel('step', fontsize=8)
    axis.tick_params(labelsize=8)
  for axis in axes[len(panels):]:
    axis.set_axis_off()
  return figure


def save(figure: 'Figure', path: PathLike) -> None:
  """Write a figure as PNG or JPEG, see `pictures.save`."""
  figure.savefig(buffer := io.BytesIO(), format='png', dpi=110)
  pictures.save(Image.open(buffer).convert('RGB'), path)


def _lines(axis: 'Axes', layers: Mapping[str, Mapping[int, float]]) -> None:
  for name, values in layers.items():
    axis.plot(list(values), list(values.values()), marker='.', label=name)
  axis.set_ylim(bottom=0)
  axis.legend(fontsize=8)


def _heat_map(axis: 'Axes', layers: Mapping[str, Mapping[int, float]], scale: str) -> Any:
  """Draw a row per layer, the first at the bottom, and a column per step."""
  from matplotlib.colors import LogNorm, Normalize
  steps = sorted({step for values in layers.values() for step in values})
  table = np.array([[values.get(step, math.nan) for step in steps] for values in layers.values()], np.float64)
  if scale == 'log':
    table = np.where(table > 0, table, math.nan)
  shown = table[np.isfinite(table)]
  low, high = (shown.min(), shown.max()) if shown.size else (1.0, 1.0)
  norm = LogNorm(low, high) if scale == 'log' else Normalize(low, high)
  if scale == 'share':
    norm = Normalize(0.0, max(0.1, high))
  image = axis.imshow(table, aspect='auto', origin='lower', interpolation='nearest', norm=norm)
  axis.set_xticks(places := _some(len(steps), 5), [f'{steps[i]:,}' for i in places])
  axis.set_yticks(places := _some(len(layers), 14), [list(layers)[i].replace('_', ' ') for i in places])
  return image


def _some(count: int, most: int) -> list[int]:
  """Return evenly spaced indices below `count`, at most `most`, with the first and the last."""
  return sorted(set(np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()))
