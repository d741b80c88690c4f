"""Hugging Face `BitForImageClassification`, `BitModel` and `BitBackbone`: model.safetensors and config.json."""
from collections.abc import Mapping
import dataclasses
from typing import Any

from vit_jax.base.errors import UserError
from vit_jax.base.sections import size
from vit_jax.pretrained.files.tensors import Tensors
from vit_jax.pretrained.formats import infer, leaves, representable, resnet
from vit_jax.pretrained.formats.base import Configs, ImageSize, Written
from vit_jax.pretrained.formats.huggingface import preprocessing
from vit_jax.pretrained.formats.huggingface.config import class_names
from vit_jax.pretrained.formats.leaves import TORCH_CONV, Leaf, Table, torch_linear_leaves, torch_norm_leaves
from vit_jax.pretrained.formats.weights import Weights

ROOT = 'embedder.convolution.weight'
_NAMES = resnet.Names(ROOT, r'encoder\.stages\.(\d+)\.layers\.(\d+)\.',
                      lambda stage: f'encoder.stages.{stage - 1}.layers.0.conv3.weight', 'classifier.1.weight', first=0,
                      is_torch=True)
# (layer_type, global_padding, embedding_dynamic_padding) → numerics. The zeros that pad its max-pool never win over
# what a ReLU returns.
_NUMERICS = {
    ('preactivation', None, False): 'bit_timm',
    ('preactivation', 'SAME', False): 'bit_same',
    ('bottleneck', 'SAME', False): 'bit_same',
    ('bottleneck', 'SAME', True): 'vit_timm',
}


class HuggingFaceBiT:
  """Hugging Face's format of BiT; see `base.Family`."""

  resize_method = 'bicubic'

  def matches(self, tensors: Tensors, configs: Configs) -> bool:
    """Return whether a file with these names is a BiT of transformers."""
    del configs
    return any(name.removeprefix('bit.') == ROOT for name in tensors.shapes)

  def read(self, tensors: Tensors, configs: Configs, image_size: ImageSize = None) -> Weights:
    """Read an open file.

    Args:
      tensors: the open file.
      configs: {'config.json': dict, 'preprocessor_config.json': dict}, the latter if there is one.
      image_size: what the model was trained at, if neither says it.

    Raises:
      UserError: there is no config.json, or it is that of a model which vit_jax does not have.
    """
    config = configs.get('config.json')
    if config is None:
      raise tensors.error('a Hugging Face model needs its config.json beside it (padding, groups, classes)')
    processor, notes = configs.get(preprocessing.FILE), []
    tensors = tensors.rename(lambda name: name.removeprefix('bit.'))
    fields = _read_fields(tensors, config)
    fields['image_size'] = _crop_size(processor) or infer.image_size(tensors, (1, 1), image_size, notes)
    read = preprocessing.read(tensors, processor, fields['image_size'], fields['channels'], notes)
    return leaves.read_weights(tensors, fields, _table(fields['blocks']), '', notes=tuple(notes),
                               class_names=class_names(config, fields['num_classes']), preprocessing=read)

  def holds(self, config: Any) -> bool:
    """Return whether it is a ResNet."""
    return config.kind == 'bit'

  def write(self, weights: Weights, approximate: bool = False) -> Written:
    """Lay weights out in this format; see `base.Family.write`."""
    config = weights.config
    representable.require(weights, 'huggingface', representation_size=(None,))
    layer_type = 'preactivation' if config.preactivation else 'bottleneck'
    known = [key for key, numerics in _NUMERICS.items() if key[0] == layer_type]
    used = next((key for key in known if _NUMERICS[key] == config.numerics), known[0] if approximate else None)
    if used is None:
      computed = ' or '.join(repr(_NUMERICS[key]) for key in known)
      raise UserError(f'model.numerics: the huggingface format computes {computed}, got {config.numerics!r}; outputs '
                      'would differ slightly: --approximate accepts that')
    arrays = leaves.to_arrays(weights, _table(config.blocks), '')
    if config.num_classes is not None:
      arrays = {name if name.startswith('classifier.') else f'bit.{name}': array for name, array in arrays.items()}
    notes = list(weights.notes)
    configs = {'config.json': _write_config(weights, *used),
               preprocessing.FILE: preprocessing.write(weights, notes)}
    return Written(arrays, configs, dataclasses.replace(weights, notes=tuple(notes)))


def _table(blocks: tuple[int, ...]) -> Table:
  root = {'conv_root/kernel': Leaf(ROOT, TORCH_CONV), **torch_norm_leaves('norm_root', 'embedder.norm')}
  prefix = lambda stage, unit: f'encoder.stages.{stage - 1}.layers.{unit - 1}.'
  return {**resnet.table(blocks, root, resnet.torch_unit(), prefix), **torch_norm_leaves('norm', 'norm'),
          **torch_linear_leaves('head', 'classifier.1')}


def _read_fields(tensors: Tensors, config: Mapping[str, Any]) -> dict[str, Any]:
  if config.get('model_type', 'bit') != 'bit':
    raise tensors.error(f"model_type: expected 'bit' in its config.json, got {config['model_type']!r}")
  padding = config.get('global_padding')
  layer_type = config.get('layer_type', 'preactivation')
  numerics = (layer_type, padding.upper() if isinstance(padding, str) else padding,
              bool(config.get('embedding_dynamic_padding', False)))
  if numerics not in _NUMERICS or config.get('hidden_act', 'relu') != 'relu':
    raise tensors.error('layer_type, global_padding, embedding_dynamic_padding and hidden_act: its config.json says '
                        f'{(*numerics, config.get("hidden_act"))}, a ResNet that vit_jax does not have; it has '
                        f'{sorted(map(str, _NUMERICS))} with relu')
  shape = resnet.shape_fields(tensors, _NAMES)
  if config.get('output_stride', 32) < 2 ** (len(shape['blocks']) + 1):
    raise tensors.error(f'output_stride: its config.json says {config["output_stride"]!r}: dilated convolutions, which '
                        'vit_jax does not have')
  return dict(shape, preactivation=layer_type == 'preactivation', groups=config.get('num_groups', 32),
              numerics=_NUMERICS[numerics])


def _crop_size(processor: Mapping[str, Any] | None) -> tuple[int, int] | None:
  """Return the image size that an image processor makes, or None."""
  crop = (processor or {}).get('crop_size') if (processor or {}).get('do_center_crop', True) else None
  found = crop or (processor or {}).get('size')
  if isinstance(found, dict) and {'height', 'width'} <= found.keys():
    return size((found['height'], found['width']), 'crop_size')
  shortest = found.get('shortest_edge') if isinstance(found, dict) else found
  return None if shortest is None else size(shortest, 'crop_size')


def _write_config(weights: Weights, layer_type: str, padding: str | None, dynamic: bool) -> dict[str, Any]:
  config, names = weights.config, weights.class_names
  labels = names or [f'LABEL_{i}' for i in range(config.num_classes or 0)]
  stages = ['stem', *(f'stage{stage}' for stage in range(1, len(config.blocks) + 1))]
  return {
      'architectures': ['BitModel' if config.num_classes is None else 'BitForImageClassification'],
      'model_type': 'bit', 'depths': list(config.blocks), 'hidden_sizes': list(config.stage_widths),
      'embedding_size': config.stem_width, 'num_groups': config.groups, 'num_channels': config.channels,
      'layer_type': layer_type, 'global_padding': padding, 'embedding_dynamic_padding': dynamic, 'hidden_act': 'relu',
      'drop_path_rate': 0.0, 'output_stride': 32, 'width_factor': 1, 'stage_names': stages, 'dtype': 'float32',
      'id2label': {str(i): name for i, name in enumerate(labels)},
      'label2id': {name: i for i, name in enumerate(labels)}}
