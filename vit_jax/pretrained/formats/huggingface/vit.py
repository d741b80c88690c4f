"""Hugging Face `ViTForImageClassification` and `ViTModel`: model.safetensors, config.json, preprocessor_config.json."""
from collections.abc import Mapping
import dataclasses
from typing import Any

from vit_jax.base import sections
from vit_jax.pretrained.files.tensors import Tensors
from vit_jax.pretrained.formats import infer, leaves, representable
from vit_jax.pretrained.formats.base import Configs, ImageSize, Written
from vit_jax.pretrained.formats.huggingface import preprocessing
from vit_jax.pretrained.formats.leaves import SAME, TORCH_CONV, Leaf, torch_linear_leaves, torch_norm_leaves
from vit_jax.pretrained.formats.weights import Weights

POSITIONS = 'embeddings.position_embeddings'
# transformers/activations.py; gelu_new and gelu_fast are other spellings of the tanh form.
_GELUS = {'gelu': 'exact', 'gelu_new': 'tanh', 'gelu_fast': 'tanh', 'gelu_pytorch_tanh': 'tanh'}

_BLOCK = {
    **torch_norm_leaves('attention_norm', 'layernorm_before'),
    **torch_linear_leaves('attention/query', 'attention.attention.query'),
    **torch_linear_leaves('attention/key', 'attention.attention.key'),
    **torch_linear_leaves('attention/value', 'attention.attention.value'),
    **torch_linear_leaves('attention/out', 'attention.output.dense', inputs=2),
    **torch_norm_leaves('mlp_norm', 'layernorm_after'),
    **torch_linear_leaves('mlp/up', 'intermediate.dense'),
    **torch_linear_leaves('mlp/down', 'output.dense'),
}
_TABLE = {
    'patch_embed/kernel': Leaf('embeddings.patch_embeddings.projection.weight', TORCH_CONV),
    'patch_embed/bias': Leaf('embeddings.patch_embeddings.projection.bias', SAME),
    'token': Leaf('embeddings.cls_token', leaves.leading(2)),
    **leaves.prefixed(_BLOCK, leaves.BLOCKS, 'encoder.layer.{i}.'),
    **torch_norm_leaves('norm', 'layernorm'),
    **torch_linear_leaves('pre_logits', 'pooler.dense'),
    **torch_linear_leaves('head', 'classifier'),
}


class HuggingFaceViT:
  """Hugging Face's format; see `base.Family`."""

  resize_method = 'bicubic'

  def matches(self, tensors: Tensors, configs: Configs) -> bool:
    """Return whether a file with these names is a ViT of Hugging Face's transformers."""
    del configs
    names = tensors.shapes
    return any(name.removeprefix('vit.') == _TABLE['patch_embed/kernel'].name for name in names)

  def read(self, tensors: Tensors, configs: Configs, image_size: ImageSize = None) -> Weights:
    """Read an open file; `image_size` is unused, the config says it.

    Raises:
      UserError: there is no config.json, or it is that of a model which is not a plain ViT.
    """
    del image_size
    config = configs.get('config.json')
    if config is None:
      raise tensors.error('a Hugging Face model needs its config.json beside it (heads, LayerNorm epsilon, classes)')
    notes = []
    tensors = _renamed(tensors, notes)
    fields = _read_fields(tensors, config)
    prepared = preprocessing.read(
        tensors, configs.get(preprocessing.FILE), fields['image_size'], fields['channels'], notes)
    return leaves.read_weights(tensors, fields, _TABLE, POSITIONS, notes=tuple(notes), preprocessing=prepared,
                               class_names=class_names(config, fields['num_classes']))

  def holds(self, config: Any) -> bool:
    """Return whether it is a Vision Transformer."""
    return config.kind == 'vit'

  def write(self, weights: Weights, approximate: bool = False) -> Written:
    """Lay weights out in this format; `approximate` is unused, the config holds GELU form and LayerNorm epsilon."""
    del approximate
    weights = representable.norm_before_pool(weights)
    headless = weights.config.num_classes is None
    representable.require(weights, 'huggingface', pool=('token',), registers=(0,), layer_scale=(None,), qk_norm=(False,),
                          resnet=(None,), **({} if headless else dict(representation_size=(None,))))
    weights = representable.token_position(representable.learned_positions(weights))
    arrays = leaves.to_arrays(weights, _TABLE, POSITIONS)
    if not headless:
      arrays = {name if name.startswith('classifier.') else f'vit.{name}': array for name, array in arrays.items()}
    notes = list(weights.notes)
    configs = {'config.json': _write_config(weights), preprocessing.FILE: preprocessing.write(weights, notes)}
    return Written(arrays, configs, dataclasses.replace(weights, notes=tuple(notes)))


def _renamed(tensors: Tensors, notes: list[str]) -> Tensors:
  """Return the arrays under names without `vit.`; the pooler of a classifier, which does not use it, is left out."""
  pooler = [name for name in tensors.shapes if name.startswith('vit.pooler.') and 'classifier.weight' in tensors]
  notes.extend(f'left out: {name} (a classifier does not use it)' for name in pooler)
  return tensors.rename(lambda name: None if name in pooler else name.removeprefix('vit.'))


def _read_fields(tensors: Tensors, config: Mapping[str, Any]) -> dict[str, Any]:
  if config.get('model_type', 'vit') != 'vit':
    raise tensors.error(f"model_type: expected 'vit' in its config.json, got {config['model_type']!r}")
  gelu = config.get('hidden_act', 'gelu')
  if gelu not in _GELUS or config.get('pooler_act', 'tanh') != 'tanh':
    raise tensors.error(f'hidden_act: unknown {gelu!r} in its config.json, or pooler_act; choose from {sorted(_GELUS)} '
                        'and tanh')
  width, channels, *patch_size = tensors.shape(_TABLE['patch_embed/kernel'].name, 4)
  fields: dict[str, Any] = dict(
      width=width, channels=channels, patch_size=tuple(patch_size),
      depth=infer.depth(tensors, r'encoder\.layer\.(\d+)\.'),
      mlp_dim=tensors.shape('encoder.layer.0.intermediate.dense.weight', 2)[0],
      qkv_bias='encoder.layer.0.attention.attention.query.bias' in tensors,
      representation_size=tensors.shape('pooler.dense.weight', 2)[0] if 'pooler.dense.weight' in tensors else None,
      num_classes=tensors.shape('classifier.weight', 2)[0] if 'classifier.weight' in tensors else None,
      heads=config.get('num_attention_heads', 0), gelu=_GELUS[gelu],
      norm_epsilon=float(config.get('layer_norm_eps', 1e-12)),
      image_size=sections.size(config.get('image_size', 224), 'image_size'))
  if not 0 <= fields['norm_epsilon'] < 1:
    raise tensors.error('layer_norm_eps: expected 0 or more, below 1, in its config.json, '
                        f"got {config['layer_norm_eps']!r}")
  stated = dict(width='hidden_size', channels='num_channels', mlp_dim='intermediate_size', depth='num_hidden_layers')
  for field, key in stated.items():
    if config.get(key, fields[field]) != fields[field]:
      raise tensors.error(f'{key}: its config.json says {config[key]!r}, its arrays {fields[field]}')
  return fields


def class_names(config: Mapping[str, Any], num_classes: int | None) -> tuple[str, ...] | None:
  """Return the names of the classes in a config.json, or None if it has none."""
  labels = config.get('id2label') or {}
  names = [labels.get(str(i)) for i in range(num_classes or 0)]
  # LABEL_0, LABEL_1, … are what transformers writes for unknown names.
  generic = all(name is None or name == f'LABEL_{i}' for i, name in enumerate(names))
  return None if generic else tuple(str(i) if name is None else str(name) for i, name in enumerate(names))


def _write_config(weights: Weights) -> dict[str, Any]:
  config, names = weights.config, weights.class_names
  labels = names or [f'LABEL_{i}' for i in range(config.num_classes or 0)]
  rows, columns = config.image_size
  return {
      'architectures': ['ViTModel' if config.num_classes is None else 'ViTForImageClassification'],
      'model_type': 'vit', 'hidden_size': config.width, 'num_hidden_layers': config.depth,
      'num_attention_heads': config.heads, 'intermediate_size': config.mlp_dim,
      'hidden_act': 'gelu' if config.gelu == 'exact' else 'gelu_pytorch_tanh',
      'layer_norm_eps': config.norm_epsilon,
      'image_size': rows if rows == columns else [rows, columns],
      'patch_size': config.patch_size[0] if len(set(config.patch_size)) == 1 else list(config.patch_size),
      'num_channels': config.channels, 'qkv_bias': config.qkv_bias, 'pooler_act': 'tanh',
      'pooler_output_size': config.representation_size or config.width,
      'hidden_dropout_prob': 0.0, 'attention_probs_dropout_prob': 0.0, 'dtype': 'float32',
      'id2label': {str(i): name for i, name in enumerate(labels)},
      'label2id': {name: i for i, name in enumerate(labels)}}
