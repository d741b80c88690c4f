"""Hugging Face's preprocessor_config.json: how its image processors prepare images for evaluation."""
from collections.abc import Mapping
from typing import Any

from vit_jax.base.preprocessing import Preprocessing
from vit_jax.pretrained.files.tensors import Tensors
from vit_jax.pretrained.formats import infer
from vit_jax.pretrained.formats.weights import Weights

# PIL.Image.Resampling.
_INTERPOLATIONS = {2: 'bilinear', 3: 'bicubic'}


def read(tensors: Tensors, config: Mapping[str, Any] | None, image_size: tuple[int, int], channels: int,
         notes: list[str]) -> Preprocessing:
  """Return what an image processor does: resize to `size`, or with a shortest edge keep the aspect ratio and crop.

  Args:
    tensors: the array file beside it, for messages.
    config: the JSON object; None if there is none.
    image_size: (rows, columns) of the model.
    channels: of the images.
    notes: messages about what was assumed or cannot be honoured are added to it.

  Raises:
    UserError: a value of the wrong type or range; the message names it.
  """
  del image_size, notes
  if not config:
    return Preprocessing()
  interpolation = _INTERPOLATIONS.get(config.get('resample', 2), 'bilinear')
  argument = [] if interpolation == 'bilinear' else [f"interpolation='{interpolation}'"]
  size = config.get('size')
  if isinstance(size, dict) and 'shortest_edge' in size:
    transform = f'resize_small({", ".join([str(int(size["shortest_edge"])), *argument])})|central_crop'
  else:
    transform = f'resize({argument[0]})' if argument else 'resize'
  if not config.get('do_normalize', True):
    return Preprocessing(transform, 0.0, 1.0)
  return Preprocessing(transform, *(
      infer.statistic(tensors, config.get(f'image_{name}', 0.5), channels, name) for name in ('mean', 'std')))


def write(weights: Weights, processor: str = 'ViTImageProcessor') -> dict[str, Any]:
  """Return the preprocessor_config.json of weights.

  Args:
    weights: whose preprocessing is written.
    processor: name of the image processor's class.
  """
  rows, columns = weights.config.image_size
  per_channel = lambda value: list(value) if isinstance(value, (tuple, list)) else [value] * weights.config.channels
  return {'image_processor_type': processor, 'do_resize': True, 'size': {'height': rows, 'width': columns},
          'resample': 3 if 'bicubic' in weights.preprocessing.transform else 2, 'do_rescale': True,
          'rescale_factor': 1 / 255, 'do_normalize': True,
          'image_mean': per_channel(weights.preprocessing.mean), 'image_std': per_channel(weights.preprocessing.std)}
