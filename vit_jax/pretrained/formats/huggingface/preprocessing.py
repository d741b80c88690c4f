"""Hugging Face's preprocessor_config.json: how its image processors prepare images for evaluation.

A transform computes what the Pillow backend of transformers does (`…ImageProcessorPil` in version 5, the "slow" image
processors before), with which the published models were evaluated. Its torchvision backend resizes tensors instead:
the same filters, a few pixels one grey level off.
"""
from collections.abc import Mapping
import re
from typing import Any

from vit_jax.base.preprocessing import Preprocessing
from vit_jax.data.transforms import evaluation, spec
from vit_jax.data.transforms.spec import Call
from vit_jax.pretrained.files.tensors import Tensors
from vit_jax.pretrained.formats import infer
from vit_jax.pretrained.formats.weights import Weights

FILE = 'preprocessor_config.json'

# PIL.Image.Resampling.
_INTERPOLATIONS = ('nearest', 'lanczos', 'bilinear', 'bicubic', 'box', 'hamming')
_STANDARD = dict(image_mean=0.5, image_std=0.5)
_IMAGENET = dict(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
_CLIP = dict(image_mean=[0.48145466, 0.4578275, 0.40821073], image_std=[0.26862954, 0.26130258, 0.27577711],
             size={'shortest_edge': 224}, crop_size=224, do_center_crop=True, resample=3)
# What an image processor does unless its file says otherwise: the class attributes in transformers 5.24; a number as
# `size` is that of both sides or of the shorter one.
_DEFAULTS: dict[str, dict[str, Any]] = {
    'Beit': dict(_STANDARD, resample=3),
    'Bit': dict(_CLIP),
    'CLIP': dict(_CLIP),
    'ConvNext': dict(_STANDARD, size={'shortest_edge': 384}, resample=3, crop_pct=224 / 256),
    'DINOv3ViT': dict(_IMAGENET),
    'DeiT': dict(_STANDARD, size=256, crop_size=224, do_center_crop=True, resample=3),
    'Siglip': dict(_STANDARD, resample=3),
    'Siglip2': dict(_STANDARD),
    'ViT': dict(_STANDARD),
}
# Sides from which ConvNext's processor resizes without a crop.
_UNCROPPED = 384
_KNOWN_STEPS = frozenset({'do_resize', 'do_center_crop', 'do_rescale', 'do_normalize', 'do_convert_rgb',
                          'do_reduce_labels'})


def read(tensors: Tensors, config: Mapping[str, Any] | None, image_size: tuple[int, int], channels: int,
         notes: list[str]) -> Preprocessing:
  """Return what an image processor does.

  Args:
    tensors: the array file beside it, for messages.
    config: the JSON object; None if there is none.
    image_size: (rows, columns) of the model.
    channels: of the images.
    notes: messages about what was assumed or cannot be honored are added to it.

  Raises:
    UserError: a value of the wrong type or range; the message names it.
  """
  if not config:
    notes.append(f'no {FILE}: assumed a resize to the image size, mean 0.5 and std 0.5; put the file beside the '
                 f'weights, or {infer.SET_PREPROCESSING}')
    return Preprocessing()
  defaults = _class_defaults(config, notes)
  values = {'do_resize': True, 'do_rescale': True, 'rescale_factor': 1 / 255, 'do_normalize': True,
            'size': 224, 'resample': 2, **defaults,
            **{key: value for key, value in config.items() if value is not None}}
  if defaults is _DEFAULTS['Siglip2']:
    notes.append(f'image_processor_type: Siglip2ImageProcessor keeps the aspect ratio, which is ignored: images are '
                 f'resized to {_by(image_size)}')
    values['size'] = list(image_size)
  if isinstance(values['size'], int) and isinstance(defaults.get('size'), dict):
    values['size'] = {'shortest_edge': values['size']}
  for key in sorted(key for key, value in values.items() if key.startswith('do_') and value):
    if key not in _KNOWN_STEPS:
      notes.append(f'{key}: {FILE} asks for it, which is ignored: vit_jax does not do it')
  if values.get('rescale_offset'):
    notes.append(f'rescale_offset: {FILE} asks for it, which is ignored: vit_jax does not do it')
  transform = spec.join(_read_calls(tensors, values, image_size, notes))
  factor = values['rescale_factor'] if values['do_rescale'] else 1.0
  if type(factor) not in (int, float) or not 0 < factor < float('inf'):
    raise tensors.error(f'rescale_factor: expected a positive number in its {FILE}, got {factor!r}')
  mean, std = 0.0, 1.0
  if values['do_normalize']:
    mean, std = (infer.statistic(tensors, values[f'image_{name}'], channels, name, notes) for name in ('mean', 'std'))
  # We scale by 1 / 255: x · factor - mean is proportional to x / 255 - mean / (255 · factor).
  return Preprocessing(transform, _divided(mean, 255 * factor), _divided(std, 255 * factor))


def write(weights: Weights, notes: list[str], processor: str = 'ViTImageProcessor') -> dict[str, Any]:
  """Return the preprocessor_config.json of weights.

  Args:
    weights: whose preprocessing is written.
    notes: messages about what Hugging Face does slightly differently are added to it.
    processor: name of the image processor's class; for a crop, which not every class does, it may be another.
  """
  channels = weights.config.channels
  per_channel = lambda value: list(value) if isinstance(value, (tuple, list)) else [value] * channels
  steps = _write_steps(weights, notes)
  if steps.get('do_center_crop') and not re.match('Bit|CLIP|DeiT', processor):
    processor = 'BitImageProcessor'
  return {'image_processor_type': processor, **steps, 'do_rescale': True, 'rescale_factor': 1 / 255,
          'do_normalize': True, 'image_mean': per_channel(weights.preprocessing.mean),
          'image_std': per_channel(weights.preprocessing.std)}


def _class_defaults(config: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
  """Return the defaults of the class that a file names; files of transformers before 4.27 name a FeatureExtractor."""
  name = config.get('image_processor_type') or config.get('feature_extractor_type') or 'ViTImageProcessor'
  kind = re.sub('(ImageProcessor(Fast|Pil)?|FeatureExtractor)$', '', str(name))
  if kind not in _DEFAULTS:
    notes.append(f'image_processor_type: {name!r} is unknown; assumed ViTImageProcessor for what {FILE} does not say')
  return _DEFAULTS.get(kind, _DEFAULTS['ViT'])


def _read_calls(tensors: Tensors, values: Mapping[str, Any], image_size: tuple[int, int],
                notes: list[str]) -> list[Call]:
  """Return the resize and the crop."""
  if not values['do_resize'] and not values.get('do_center_crop'):
    notes.append(f'do_resize: {FILE} says false, which is ignored: images are resized to {_by(image_size)}')
    return [('resize', {})]
  resize, crop = _read_resize(tensors, values, notes) if values['do_resize'] else ([], None)
  if values.get('do_center_crop'):
    crop = _pair(tensors, values.get('crop_size', 224), 'crop_size')
  if crop is None:
    # The only call is a plain resize: to the image size.
    prepared, chain = resize[0][1]['to'], [('resize', dict(resize[0][1], to=None))]
  else:
    prepared, chain = crop, [*resize, ('central_crop', dict(rule='huggingface'))]
  if prepared == image_size:
    return chain
  notes.append(f'{"size" if crop is None else "crop_size"}: {FILE} prepares images of {_by(prepared)}, the model has '
               f'{_by(image_size)}: assumed {_by(image_size)} with the same margin; '
               f'image_size={prepared} makes a model for the other size')
  return evaluation.scaled(chain, prepared, image_size)


def _read_resize(tensors: Tensors, values: Mapping[str, Any],
                 notes: list[str]) -> tuple[list[Call], tuple[int, int] | None]:
  """Return the resize, and the size of the crop that belongs to it."""
  resample = values['resample']
  if type(resample) is not int or not 0 <= resample < len(_INTERPOLATIONS):
    raise tensors.error(f'resample: expected 0 to {len(_INTERPOLATIONS) - 1} in its {FILE}, got {resample!r}')
  interpolation, size = dict(interpolation=_INTERPOLATIONS[resample]), values['size']
  if not isinstance(size, dict) or 'shortest_edge' not in size:
    return [('resize', dict(interpolation, to=_pair(tensors, size, 'size')))], None
  shortest = size['shortest_edge']
  if type(shortest) is not int or shortest < 1:
    raise tensors.error(f'size: expected a positive shortest_edge in its {FILE}, got {shortest!r}')
  if size.get('longest_edge'):
    notes.append(f'size: {FILE} says longest_edge {size["longest_edge"]!r}, which is ignored')
  crop_pct, square = values.get('crop_pct', 1.0), (shortest, shortest)
  if type(crop_pct) not in (int, float) or not 0 < crop_pct <= 1:
    raise tensors.error(f'crop_pct: expected a fraction above 0, up to 1, in its {FILE}, got {crop_pct!r}')
  if 'crop_pct' not in values and not values.get('do_center_crop'):
    notes.append(f'do_center_crop: {FILE} does not ask for it, but for images of different shapes (shortest_edge); '
                 'assumed a crop of their center')
  # transformers/models/convnext/image_processing_pil_convnext.py: large images are not cropped.
  if 'crop_pct' in values and shortest >= _UNCROPPED:
    return [('resize', dict(interpolation, to=square))], None
  return [('resize_small', dict(interpolation, smaller=int(shortest / crop_pct), rounding='down'))], square


def _pair(tensors: Tensors, value: Any, key: str) -> tuple[int, int]:
  """Return (rows, columns) of a number, a pair, or an object with height and width."""
  if isinstance(value, dict):
    value = [value.get('height'), value.get('width')]
  pair = tuple(value) if isinstance(value, (list, tuple)) else (value, value)
  if len(pair) != 2 or any(type(side) is not int or side < 1 for side in pair):
    raise tensors.error(f'{key}: expected pixels, or height and width, in its {FILE}, got {value!r}')
  return pair


def _write_steps(weights: Weights, notes: list[str]) -> dict[str, Any]:
  """Return the keys that say how images are resized and cropped."""
  config, transform = weights.config, weights.preprocessing.transform
  chain = spec.calls(transform)
  names, arguments = tuple(name for name, _ in chain), {key: value for _, call in chain for key, value in call.items()}
  crop = {}
  if names[-1:] == ('central_crop',):
    crop, names = {'do_center_crop': True, 'crop_size': _edges(config.image_size)}, names[:-1]
  if names == ('resize',) and not (arguments['to'] and not crop):
    size: dict[str, int] | None = _edges(arguments['to'] or config.image_size)
  elif names == ('resize_small',) and crop:
    size = {'shortest_edge': arguments['smaller']}
    if arguments['rounding'] != 'down':
      notes.append(f'preprocessing: {transform}: Hugging Face rounds the longer side down')
  elif not names and crop:
    size = None
  else:
    notes.append(f'preprocessing: {transform}: Hugging Face cannot do that; written as a resize to the image size')
    size, crop, arguments = _edges(config.image_size), {}, {'interpolation': arguments.get('interpolation', 'bilinear')}
  if crop and (arguments['rule'] == 'torchvision' or arguments['fill'] != 0):
    notes.append(f'preprocessing: {transform}: Hugging Face rounds the offset of the crop down, and fills with 0')
  if size is None:
    return {'do_resize': False, **crop}
  return {'do_resize': True, 'size': size, 'resample': _INTERPOLATIONS.index(arguments['interpolation']), **crop}


def _edges(size: tuple[int, int]) -> dict[str, int]:
  return {'height': size[0], 'width': size[1]}


def _by(size: tuple[int, int]) -> str:
  return '×'.join(map(str, size))


def _divided(value: float | tuple[float, ...], divisor: float) -> float | tuple[float, ...]:
  return tuple(number / divisor for number in value) if isinstance(value, tuple) else value / divisor
