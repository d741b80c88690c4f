"""timm's `pretrained_cfg`: how its evaluation prepares images (timm/data/transforms_factory.py)."""
from collections.abc import Mapping
import math
from typing import Any

from vit_jax.base.preprocessing import Preprocessing
from vit_jax.data.transforms import evaluation, spec
from vit_jax.data.transforms.spec import Call
from vit_jax.pretrained.files.tensors import Tensors
from vit_jax.pretrained.formats import infer
from vit_jax.pretrained.formats.weights import Weights

# What timm takes for keys that a pretrained_cfg does not have: its dataclass PretrainedCfg.
_DEFAULTS: dict[str, Any] = dict(interpolation='bicubic', crop_pct=0.875, crop_mode='center',
                                 mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
# What most of timm's Vision Transformers have: `_cfg` of timm/models/vision_transformer.py.
_VIT: dict[str, Any] = dict(crop_pct=0.9, mean=(0.5,), std=(0.5,))
_KEYS = frozenset({'input_size', *_DEFAULTS})
_INTERPOLATIONS = ('bicubic', 'bilinear', 'box', 'hamming', 'lanczos', 'nearest')


def find(config: Mapping[str, Any]) -> dict[str, Any]:
  """Return the `pretrained_cfg` of a config.json; old files have its keys at the top level."""
  found = config.get('pretrained_cfg')
  if found is None:
    return dict(config) if 'architecture' in config and _KEYS & config.keys() else {}
  return dict(found)


def read(tensors: Tensors, cfg: Mapping[str, Any], image_size: tuple[int, int], channels: int,
         notes: list[str]) -> Preprocessing:
  """Return timm's evaluation of a model; like `timm.data.resolve_data_config`, it ignores `test_input_size`.

  Args:
    tensors: the array file beside it, for messages.
    cfg: the pretrained_cfg, see `find`; {} if there is none.
    image_size: (rows, columns) of the model.
    channels: of the images.
    notes: messages about what was assumed are added to it.

  Raises:
    UserError: a value of the wrong type or range; the message names it.
  """
  values = {**_DEFAULTS, **({} if cfg else _VIT), **{key: value for key, value in cfg.items() if value is not None}}
  if not cfg:
    notes.append("no pretrained_cfg in a config.json: assumed mean 0.5, std 0.5 and crop_pct 0.9, as in most of timm's "
                 f'Vision Transformers; {infer.SET_PREPROCESSING}')
  mean, std = (infer.statistic(tensors, values[name], channels, name, notes) for name in ('mean', 'std'))
  interpolation, crop_mode, crop_pct = (values[name] for name in ('interpolation', 'crop_mode', 'crop_pct'))
  if interpolation not in _INTERPOLATIONS:
    notes.append(f'interpolation: unknown {interpolation!r} in its config.json; assumed bicubic')
    interpolation = 'bicubic'
  if type(crop_pct) not in (int, float) or not 0 < crop_pct <= 4:
    raise tensors.error(f'crop_pct: expected a fraction above 0 in its config.json, got {crop_pct!r}')
  to = tuple(math.floor(side / crop_pct) for side in image_size)
  filtered: dict[str, Any] = dict(interpolation=interpolation)
  crop: Call = ('central_crop', dict(rule='torchvision'))
  if crop_mode == 'squash':
    chain = [('resize', filtered)] if to == image_size else [('resize', dict(filtered, to=to)), crop]
  elif crop_mode == 'border':
    crop = (crop[0], dict(rule='torchvision', fill=_border(mean)))
    chain = [('resize_ratio', dict(filtered, to=to, fit='inside')), crop]
  elif to[0] == to[1]:
    chain = [('resize_small', dict(filtered, smaller=to[0], rounding='down')), crop]
  else:
    chain = [('resize_ratio', dict(filtered, to=to)), crop]
  return Preprocessing(spec.join(chain), mean, std)


def write(weights: Weights, notes: list[str]) -> dict[str, Any]:
  """Return the keys of a pretrained_cfg that say how images are prepared.

  Args:
    weights: whose preprocessing is written.
    notes: messages about what timm does slightly differently are added to it.
  """
  config, preprocessing = weights.config, weights.preprocessing
  per_channel = lambda value: list(value) if isinstance(value, (tuple, list)) else [value] * config.channels
  return dict(input_size=[config.channels, *config.image_size], **_write_chain(weights, notes),
              mean=per_channel(preprocessing.mean), std=per_channel(preprocessing.std))


def _write_chain(weights: Weights, notes: list[str]) -> dict[str, Any]:
  """Return interpolation, crop_pct and crop_mode."""
  size, transform = weights.config.image_size, weights.preprocessing.transform
  chain = spec.calls(transform)
  names, arguments = tuple(name for name, _ in chain), {key: value for _, call in chain for key, value in call.items()}
  interpolation = arguments.get('interpolation', 'bilinear')
  if names == ('resize',) and arguments['to'] in (None, size):
    return dict(interpolation=interpolation, crop_pct=1.0, crop_mode='squash')
  to = (arguments['smaller'],) * 2 if 'smaller' in arguments else arguments.get('to')
  modes = {'resize': 'squash', 'resize_small': 'center',
           'resize_ratio': 'border' if arguments.get('fit') == 'inside' else 'center'}
  crop_pct = None if to is None else _crop_pct(to, size)
  if len(names) != 2 or names[0] not in modes or names[1] != 'central_crop' or crop_pct is None:
    notes.append(f'preprocessing: {transform}: timm cannot do that; written as a resize to the image size')
    return dict(interpolation=interpolation, crop_pct=1.0, crop_mode='squash')
  differences = []
  if arguments.get('rounding', 'down') != 'down':
    differences.append('rounds the longer side down')
  if arguments['rule'] != 'torchvision':
    differences.append('rounds half of an odd margin to even')
  mode = modes[names[0]]
  if arguments['fill'] != (_border(weights.preprocessing.mean) if mode == 'border' else 0):
    differences.append('fills with the mean' if mode == 'border' else 'fills with 0')
  if differences:
    notes.append(f'preprocessing: {transform}: timm {" and ".join(differences)}')
  return dict(interpolation=interpolation, crop_pct=crop_pct, crop_mode=mode)


def _crop_pct(to: tuple[int, int], size: tuple[int, int]) -> float | None:
  """Return the crop_pct by which timm resizes to `to` before it crops to `size`; None: there is none."""
  for resized, cropped in zip(to, size, strict=True):
    crop_pct = evaluation.crop_fraction(resized, cropped)
    if tuple(math.floor(side / crop_pct) for side in size) == to:
      return crop_pct
  return None


def _border(mean: float | tuple[float, ...]) -> int | tuple[int, ...]:
  """Return the grey levels of timm's border."""
  return tuple(round(255 * value) for value in mean) if isinstance(mean, tuple) else round(255 * mean)
