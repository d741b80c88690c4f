"""Adapts weights to other images, patches, channels and classes: config and parameters together, with a report."""
from collections.abc import Iterable
import dataclasses
import re
from typing import Any

import numpy as np

from vit_jax.base.sections import size
from vit_jax.pretrained import resize
from vit_jax.pretrained.formats import weights as weights_lib
from vit_jax.pretrained.formats.registry import FORMATS
from vit_jax.pretrained.formats.weights import Weights

# Subtrees of the parameters that are adapted.
_STEM, _POSITIONS, _HIDDEN_HEAD, _HEAD = 'patch_embed', 'position', 'pre_logits', 'head'


@dataclasses.dataclass(frozen=True)
class Adaptation:
  """What to change about weights for a new task; None keeps what they have.

  Attributes:
    image_size: (rows, columns) in pixels; another number of patches resizes the position embedding.
    patch_size: (rows, columns) of a patch in pixels; the patch kernel is resampled (FlexiViT).
    channels: of the images; see `adapt_stem_channels`.
    num_classes: of the head, which is reset to zeros if the number changes.
    reset_head: whether to reset the head even if the number of classes is the same.
    drop_pre_logits: whether to remove the hidden tanh layer, which also resets the head.
    method: how positions are resized, a name of `resize.METHODS`; None: as the code that the weights come from does it.
  """
  image_size: int | tuple[int, int] | None = None
  patch_size: int | tuple[int, int] | None = None
  channels: int | None = None
  num_classes: int | None = None
  reset_head: bool = False
  drop_pre_logits: bool = False
  method: str | None = None


def adapt(weights: Weights, adaptation: Adaptation) -> tuple[Weights, list[str]]:
  """Return adapted weights and messages about what was resized, adapted and reset.

  Args:
    weights: not changed.
    adaptation: what to change.

  Raises:
    UserError: the patch size does not divide the image size.
  """
  lines: list[str] = []
  if adaptation.patch_size is not None or adaptation.image_size is not None:
    weights = _resize(weights, size(adaptation.image_size or weights.config.image_size, 'image_size'),
                      size(adaptation.patch_size or weights.config.patch_size, 'patch_size'),
                      adaptation.method or resize_method(weights), lines)
  if adaptation.channels not in (None, weights.config.channels):
    weights = _adapt_channels(weights, adaptation.channels, lines)
  drop = adaptation.drop_pre_logits and weights.config.representation_size is not None
  num_classes = weights.config.num_classes if adaptation.num_classes is None else adaptation.num_classes
  if drop:
    lines.append(f'pre_logits: dropped (was {weights.config.representation_size} features)')
    weights = _without(weights, _HIDDEN_HEAD, representation_size=None)
  if drop or adaptation.reset_head or num_classes != weights.config.num_classes:
    weights = _reset_head(weights, num_classes, lines)
  return weights, lines


def resize_method(weights: Weights) -> str:
  """Return how the code that the weights come from resizes position embeddings: a name of `resize.METHODS`."""
  return FORMATS[weights.source].resize_method if weights.source in FORMATS else 'bilinear'


def adapt_stem_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
  """Adapt a patch kernel (rows, columns, old, width) to another number of input channels.

  A grey image replicated over the old channels and over the new ones keeps its embedding. Fewer channels share the
  sum over the old ones, one channel takes all of it; more repeat the old ones in turn, each divided by its number of
  repetitions (at multiples of the old number that is timm's `adapt_input_conv`).

  >>> adapt_stem_channels(np.ones((1, 1, 3, 1)), 1).item()
  3.0
  """
  old = kernel.shape[2]
  if channels < old:
    return np.repeat(kernel.sum(axis=2, keepdims=True) / np.float32(channels), channels, axis=2)
  source = np.arange(channels) % old
  return kernel[:, :, source] / np.bincount(source).astype(np.float32)[source][:, None]


def _resize(weights: Weights, image_size: tuple[int, int], patch_size: tuple[int, int], method: str,
            lines: list[str]) -> Weights:
  old, new = weights.config, dataclasses.replace(weights.config, image_size=image_size, patch_size=patch_size)
  params, grid = dict(weights.params), new.grid  # raises if the sizes do not divide
  if patch_size != old.patch_size:
    kernel = resize.resize_patch_kernel(params[_STEM]['kernel'], patch_size)
    params[_STEM] = dict(params[_STEM], kernel=kernel)
    lines.append(f'patch kernel: resampled from {_by(old.patch_size)} to {_by(patch_size)} pixels')
  if grid != old.grid:
    learned = _POSITIONS in params
    if learned:
      params[_POSITIONS] = _resize_positions(params[_POSITIONS], grid, method)
    lines.append(f'position embedding ({old.position}): grid {_by(old.grid)} to {_by(grid)}, '
                 + (f'resized, {method}' if learned else 'nothing to resize'))
  if image_size != old.image_size:
    lines.append(f'image size: {_by(old.image_size)} to {_by(image_size)}')
  transform = _resize_transform(weights.preprocessing.transform, old.image_size, image_size)
  return dataclasses.replace(weights, config=new, params=params,
                             preprocessing=dataclasses.replace(weights.preprocessing, transform=transform))


def _resize_positions(position: dict[str, np.ndarray], grid: tuple[int, int], method: str) -> dict[str, np.ndarray]:
  """Return the tables of 'learned' or 'learned2d' positions for another grid; the class token's row stays."""
  resized = {}
  for name, leaf in position.items():
    if name == 'grid':
      resized[name] = resize.resize_grid(leaf, grid, method)
    elif name in ('rows', 'columns'):
      length = grid[name == 'columns']
      resized[name] = resize.resize_grid(leaf[:, None], (length, 1), method)[:, 0]
    else:
      resized[name] = leaf
  return resized


def _resize_transform(transform: str, old: tuple[int, int], new: tuple[int, int]) -> str:
  """Return the evaluation transform for a new image size, with the same margin around the crop.

  An image size that is not square gets a plain resize.
  """
  found = re.search(r'resize_small\((\d+)(?:, (interpolation=\S+))?\)\|central_crop', transform)
  if not found or old == new:
    return transform
  if new[0] != new[1]:
    return f'resize({found[2]})' if found[2] else 'resize'
  smaller = max(round(int(found[1]) * new[0] / min(old)), new[0])
  return transform.replace(f'resize_small({found[1]}', f'resize_small({smaller}')


def _adapt_channels(weights: Weights, channels: int, lines: list[str]) -> Weights:
  old, stem = weights.config.channels, weights.params[_STEM]
  how = 'summed' if channels < old else 'repeated and scaled'
  lines.append(f'stem: {old} input channels {how} to {channels}')
  preprocessing = dataclasses.replace(weights.preprocessing, **{
      name: _adapt_statistics(getattr(weights.preprocessing, name), channels) for name in ('mean', 'std')})
  params = dict(weights.params, **{_STEM: dict(stem, kernel=adapt_stem_channels(stem['kernel'], channels))})
  return dataclasses.replace(weights, config=dataclasses.replace(weights.config, channels=channels),
                             preprocessing=preprocessing, params=params)


def _adapt_statistics(values: float | tuple[float, ...], channels: int) -> float | tuple[float, ...]:
  """Return per-channel means or deviations for other channels: their mean for one channel, else repeated in turn."""
  if not isinstance(values, tuple):
    return values
  return sum(values) / len(values) if channels == 1 else tuple(values[i % len(values)] for i in range(channels))


def _reset_head(weights: Weights, num_classes: int | None, lines: list[str]) -> Weights:
  """Return the weights with a head of zeros, which the paper fine-tunes from (appendix B.1.1); None: without a head."""
  old = weights.config.num_classes
  weights = _without(weights, _HEAD, num_classes=num_classes)
  if num_classes is None:
    return weights
  lines.append(f'head: reset to zeros for {num_classes} classes' + (f' (was {old})' if old is not None else ''))
  leaves = {path: np.zeros(shape, np.float32) for path, shape in weights_lib.shapes(weights.config).items()
            if path.startswith(f'{_HEAD}/')}
  params = {**weights.params, **weights_lib.unflatten(leaves)}
  return dataclasses.replace(weights, params=params, class_names=None)


def _without(weights: Weights, subtree: str, **changes: Any) -> Weights:
  """Return the weights without a subtree of their parameters, and with some config fields changed."""
  params = {name: leaf for name, leaf in weights.params.items() if name != subtree}
  return dataclasses.replace(weights, config=dataclasses.replace(weights.config, **changes), params=params)


def _by(size: Iterable[int]) -> str:
  return '×'.join(map(str, size))
