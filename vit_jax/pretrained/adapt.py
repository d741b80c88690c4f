"""Adapts weights to other images, patches, channels and classes: config and parameters together, with a report."""
from collections.abc import Iterable
import dataclasses
import functools
from typing import Any

import numpy as np

from vit_jax.base.errors import UserError
from vit_jax.base.preprocessing import adapt_statistics
from vit_jax.base.sections import size
from vit_jax.base.text import listing
from vit_jax.data.transforms import spec
from vit_jax.data.transforms.evaluation import for_image_size
from vit_jax.models.base import flatten
from vit_jax.pretrained import resize
from vit_jax.pretrained.formats.weights import Weights, abstract_model, missing_or_different, shapes, unflatten


@dataclasses.dataclass(frozen=True)
class Adaptation:
  """What to change about weights for a new task; None keeps what they have.

  Attributes:
    image_size: (rows, columns) in pixels; another number of patches resizes the position embedding.
    patch_size: (rows, columns) of a patch in pixels; the patch kernel is resampled (FlexiViT).
    channels: of the images; see `adapt_stem_channels`.
    num_classes: of the head, which is reset to zeros if the number changes; 0: no head, so that the model's call gives
      what the head would read.
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
    UserError: an image is smaller than a patch, a patch size is given although the model has no
      patches, or the model fits only one number of patches.
  """
  lines: list[str] = []
  if adaptation.patch_size is not None or adaptation.image_size is not None:
    weights = _resize(weights, size(adaptation.image_size or weights.config.image_size, 'image_size'),
                      adaptation.patch_size,
                      adaptation.method or weights.resize_method or 'bilinear', lines)
  if adaptation.channels not in (None, weights.config.channels):
    weights = _adapt_channels(weights, adaptation.channels, lines)
  hidden = abstract_model(weights.config).hidden_head_paths
  drop = adaptation.drop_pre_logits and any(_is_below(path, hidden) for path in shapes(weights.config))
  num_classes = weights.config.num_classes if adaptation.num_classes is None else adaptation.num_classes or None
  if drop:
    lines.append(f'{", ".join(hidden)}: dropped (was {weights.config.representation_size} features)')
    weights = _without(weights, hidden, representation_size=None)
  if drop or adaptation.reset_head or num_classes != weights.config.num_classes:
    weights = _reset_head(weights, num_classes, lines)
  return weights, lines


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


def _resize(weights: Weights, image_size: tuple[int, int], requested: int | tuple[int, int] | None, method: str,
            lines: list[str]) -> Weights:
  old, kernel = weights.config, abstract_model(weights.config).patch_kernel
  new, leaves = dataclasses.replace(old, image_size=image_size), flatten(weights.params)
  if requested is not None:
    if kernel is None:
      raise UserError(f'patch_size: a model of kind {old.kind!r} has no patches; leave it out')
    patch_size = size(requested, 'patch_size')
    new = dataclasses.replace(new, patch_size=patch_size)
    if patch_size != old.patch_size:
      leaves[kernel] = resize.resize_patch_kernel(leaves[kernel], patch_size)
      lines.append(f'patch kernel: resampled from {_by(old.patch_size)} to {_by(patch_size)} pixels')
  model = abstract_model(new)  # raises if the sizes do not fit
  if fixed := sorted(set(missing_or_different(new, weights.params)) - {kernel, *model.positions}):
    raise UserError(f'image_size: a model of kind {new.kind!r} fits one number of patches, here {_by(old.grid)} '
                    f'(images of {_by(old.image_size)} pixels), got {_by(new.grid)}; {listing(fixed, 2)} depend on it')
  if new.grid != old.grid and hasattr(old, 'position'):
    for path, layout in model.positions.items():
      resize_one = functools.partial(_resize_positions, layout=layout, old=old, new=new, method=method)
      stacked = any(path.startswith(f'{subtree}/') for subtree in model.stacked)
      leaves[path] = np.stack(list(map(resize_one, leaves[path]))) if stacked else resize_one(leaves[path])
    relative = {path for path, layout in model.positions.items() if layout in ('offsets', 'places')}
    for what, name, resized in (('position embedding', old.position, model.positions.keys() - relative),
                                ('relative positions', old.relative_position, relative)):
      if name is not None or what == 'position embedding':
        how = 'nothing to resize' if not resized else 'resized' if 'offsets' in map(model.positions.get, resized) else (
            f'resized, {method}')
        lines.append(f'{what} ({name}): grid {_by(old.grid)} to {_by(new.grid)}, {how}')
  if image_size != old.image_size:
    lines.append(f'image size: {_by(old.image_size)} to {_by(image_size)}')
    unseen = getattr(new, 'unseen_pixels', None)  # models of patches have it
    lines += [unseen] if unseen else []
  transform = for_image_size(weights.preprocessing.transform, old.image_size, image_size)
  return dataclasses.replace(weights, config=new, params=unflatten(leaves),
                             preprocessing=dataclasses.replace(weights.preprocessing, transform=transform))


def _resize_positions(table: np.ndarray, layout: str, old: Any, new: Any, method: str) -> np.ndarray:
  """Return one layer's table of positions for another config; layouts as in `models.base.ParamTree.positions`."""
  grid = new.grid
  if layout == 'grid':
    return resize.resize_grid(table, grid, method)
  if layout == 'offsets':
    return resize.resize_offsets(table, old.grid, grid)
  if layout == 'places':
    flat = table.reshape(len(table), 1, -1)
    return resize.resize_grid(flat, (2 * new.num_tokens - 1, 1), method).reshape(-1, *table.shape[1:])
  if layout in ('rows', 'columns'):
    length = grid[layout == 'columns']
    return resize.resize_grid(table[:, None], (length, 1), method)[:, 0]
  return table  # the class token's


def _adapt_channels(weights: Weights, channels: int, lines: list[str]) -> Weights:
  old, leaves, stem = weights.config.channels, flatten(weights.params), abstract_model(weights.config).stem
  how = 'summed' if channels < old else 'repeated and scaled'
  lines.append(f'stem: {old} input channels {how} to {channels}')
  leaves[stem] = adapt_stem_channels(leaves[stem], channels)
  before = weights.preprocessing
  transform = _adapt_border(before.transform, channels)
  preprocessing = dataclasses.replace(before.for_channels(channels), transform=transform)
  if preprocessing != before:
    lines.append(f'normalization: mean {before.mean} and std {before.std} to {preprocessing.mean} and '
                 f'{preprocessing.std}')
  return dataclasses.replace(weights, config=dataclasses.replace(weights.config, channels=channels),
                             preprocessing=preprocessing, params=unflatten(leaves))


def _adapt_border(transform: str, channels: int) -> str:
  """Return an evaluation transform whose border has the color of other channels."""
  chain = spec.calls(transform)
  for _, arguments in chain:
    if isinstance(arguments.get('fill'), tuple):
      adapted = adapt_statistics(arguments['fill'], channels)
      arguments['fill'] = adapted if isinstance(adapted, tuple) else round(adapted)
      return spec.join(chain)
  return transform


def _reset_head(weights: Weights, num_classes: int | None, lines: list[str]) -> Weights:
  """Return the weights with a head of zeros, which the paper fine-tunes from (appendix B.1.1); None: without a head."""
  old, head = weights.config.num_classes, abstract_model(weights.config).head_paths
  weights = dataclasses.replace(_without(weights, head, num_classes=num_classes), class_names=None)
  if num_classes is None:
    lines.append(f'head: removed (was {old} classes)')
    return weights
  lines.append(f'head: reset to zeros for {num_classes} classes' + (f' (was {old})' if old is not None else ''))
  zeros = {path: np.zeros(shape, np.float32) for path, shape in shapes(weights.config).items() if _is_below(path, head)}
  return dataclasses.replace(weights, params={**weights.params, **unflatten(zeros)})


def _without(weights: Weights, subtrees: Iterable[str], **changes: Any) -> Weights:
  """Return the weights without some subtrees of their parameters, and with some config fields changed."""
  leaves = {path: leaf for path, leaf in flatten(weights.params).items() if not _is_below(path, subtrees)}
  return dataclasses.replace(weights, config=dataclasses.replace(weights.config, **changes), params=unflatten(leaves))


def _is_below(path: str, subtrees: Iterable[str]) -> bool:
  return any(path.startswith(f'{subtree}/') for subtree in subtrees)


def _by(size: Iterable[int]) -> str:
  return '×'.join(map(str, size))
