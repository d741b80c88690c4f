"""Fits weights to other images, patches, channels and classes: fields and parameters together, and says what it did."""
import dataclasses
import re

import numpy as np

from vit_jax.base.sections import size
from vit_jax.pretrained import resize
from vit_jax.pretrained.formats import weights as weights_lib


def adapt(weights, *, image_size=None, patch_size=None, channels=None, num_classes=None, reset_head=False,
          drop_pre_logits=False, method='bilinear'):
  """Fits weights to a new task; what is None stays.

  Args:
    weights: `Weights`, which are not changed.
    image_size: rows and columns in pixels; another number of patches resizes the position grid.
    patch_size: of the new model; the patch kernel is resampled (FlexiViT).
    channels: of the new images; see `stem_channels`.
    num_classes: of the new head, which is reset to zeros if the number differs.
    reset_head: reset it even if the number of classes is the same.
    drop_pre_logits: take the hidden tanh layer away, and reset the head after it.
    method: a name of `resize.METHODS`.

  Returns:
    (weights, lines that say what was resized, adapted and reset).

  Raises:
    ValueError: sizes that do not divide.
  """
  lines = []
  if patch_size is not None or image_size is not None:
    weights = _resized(weights, image_size or weights.fields['image_size'], patch_size or weights.fields['patch_size'],
                       method, lines)
  if channels not in (None, weights.fields['channels']):
    weights = _with_channels(weights, channels, lines)
  drop = drop_pre_logits and weights.fields['representation_size'] is not None
  wanted = weights.fields['num_classes'] if num_classes is None else num_classes
  if drop:
    lines.append(f"pre_logits: dropped (was {weights.fields['representation_size']} features)")
    weights = _changed(weights, dict(representation_size=None), drop=('pre_logits',))
  if drop or reset_head or wanted != weights.fields['num_classes']:
    weights = _with_new_head(weights, wanted, lines)
  return weights, lines


def stem_channels(kernel, channels):
  """Adapts a patch kernel (rows, columns, old, width) to another number of input channels.

  A grey image replicated over the old channels and over the new ones keeps its embedding.  Fewer channels share the
  sum over the old ones, one channel takes all of it; more repeat the old ones in turn, each divided by its repetitions
  (at multiples of the old number that is timm's `adapt_input_conv`).
  """
  old = kernel.shape[2]
  if channels < old:
    return np.repeat(kernel.sum(axis=2, keepdims=True) / np.float32(channels), channels, axis=2)
  source = np.arange(channels) % old
  return kernel[:, :, source] / np.bincount(source).astype(np.float32)[source][:, None]


def _resized(weights, image_size, patch_size, method, lines):
  fields = weights.fields
  image_size, patch_size = size(image_size, 'image_size'), size(patch_size, 'patch_size')
  new = dict(image_size=image_size, patch_size=patch_size)
  weights_lib.shapes(dict(fields, **new))  # raises if the sizes do not divide
  params, old_grid, grid = dict(weights.params), weights_lib.grid_of(fields), weights_lib.grid_of(new)
  if patch_size != fields['patch_size']:
    params['patch_embed'] = dict(params['patch_embed'], kernel=resize.resize_patch_kernel(params['patch_embed']['kernel'], patch_size))
    lines.append(f"patch kernel: resampled from {_by(fields['patch_size'])} to {_by(patch_size)} pixels")
  if grid != old_grid:
    learned = 'position' in params
    if learned:
      params['position'] = _resized_positions(params['position'], grid, method)
    lines.append(f"position embedding ({fields['position']}): grid {_by(old_grid)} to {_by(grid)}, "
                 + (f'resized, {method}' if learned else 'nothing to resize'))
  if image_size != fields['image_size']:
    lines.append(f"image size: {_by(fields['image_size'])} to {_by(image_size)}")
  transform = _resized_transform(weights.preprocessing.transform, fields['image_size'], image_size)
  return dataclasses.replace(weights, fields=dict(fields, **new), params=params,
                             preprocessing=dataclasses.replace(weights.preprocessing, transform=transform))


def _resized_positions(position, grid, method):
  """The tables of 'learned' and of 'learned2d' positions at another grid; the class token's own stays."""
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


def _resized_transform(transform, old, new):
  """The evaluation transform with the same margin around the crop; other aspects are squashed."""
  found = re.search(r'resize_small\((\d+)(?:, (interpolation=\S+))?\)\|central_crop', transform)
  if not found or old == new:
    return transform
  if new[0] != new[1]:
    return f'resize({found[2]})' if found[2] else 'resize'
  smaller = max(round(int(found[1]) * new[0] / min(old)), new[0])
  return transform.replace(f'resize_small({found[1]}', f'resize_small({smaller}')


def _with_channels(weights, channels, lines):
  old, embed = weights.fields['channels'], weights.params['patch_embed']
  how = 'summed' if channels < old else 'repeated and scaled'
  lines.append(f'stem: {old} input channels {how} to {channels}')
  preprocessing = dataclasses.replace(weights.preprocessing, **{
      name: _statistics(getattr(weights.preprocessing, name), channels) for name in ('mean', 'std')})
  return dataclasses.replace(
      weights, fields=dict(weights.fields, channels=channels), preprocessing=preprocessing,
      params=dict(weights.params, patch_embed=dict(embed, kernel=stem_channels(embed['kernel'], channels))))


def _statistics(values, channels):
  """Normalisation of each channel for other channels: their mean for one, else in turn."""
  if not isinstance(values, tuple):
    return values
  return sum(values) / len(values) if channels == 1 else tuple(values[i % len(values)] for i in range(channels))


def _with_new_head(weights, num_classes, lines):
  """A head of zeros, which the paper fine-tunes from (appendix B.1.1); a model without a head stays so."""
  old = weights.fields['num_classes']
  weights = _changed(weights, dict(num_classes=num_classes), drop=('head',))
  if num_classes is None:
    return weights
  lines.append(f'head: reset to zeros for {num_classes} classes' + (f' (was {old})' if old is not None else ''))
  shapes = weights_lib.shapes(weights.fields)
  head = {name: np.zeros(shapes[f'head/{name}'], np.float32) for name in ('kernel', 'bias')}
  return dataclasses.replace(weights, params=dict(weights.params, head=head), class_names=None)


def _changed(weights, fields, drop):
  params = {name: leaf for name, leaf in weights.params.items() if name not in drop}
  return dataclasses.replace(weights, fields=dict(weights.fields, **fields), params=params)


def _by(size):
  return f'{size[0]}×{size[1]}'
