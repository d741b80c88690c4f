"""The keys of config.json that most vision models of transformers share."""
from collections.abc import Mapping
from typing import Any

from vit_jax.base import sections
from vit_jax.pretrained.files.tensors import Tensors
from vit_jax.pretrained.formats.weights import Weights

# transformers/activations.py; gelu_new, gelu_fast and gelu_python_tanh are other spellings of the tanh form.
_GELUS = {'gelu': 'exact', 'gelu_python': 'exact', 'gelu_new': 'tanh', 'gelu_fast': 'tanh', 'gelu_python_tanh': 'tanh',
          'gelu_pytorch_tanh': 'tanh', 'quick_gelu': 'quick'}
_NAMES = {'exact': 'gelu', 'tanh': 'gelu_pytorch_tanh', 'quick': 'quick_gelu'}
_SILU = ('silu', 'swish')
_MULTI_LABEL = 'multi_label_classification'


def read_fields(tensors: Tensors, config: Mapping[str, Any], gated: bool) -> dict[str, Any]:
  """Return the config fields that neither names nor shapes of the arrays determine.

  Args:
    tensors: the file, for messages.
    config: the JSON object, defaults filled in.
    gated: whether the MLP has a gate, with `hidden_act` as its activation.

  Raises:
    UserError: an activation that vit_jax does not have, or a value out of range.
  """
  activation = config['hidden_act']
  choices = [*_GELUS, *(_SILU if gated else ())]
  if activation not in choices or config.get('pooler_act', 'tanh') != 'tanh':
    raise tensors.error(f'hidden_act: unknown {activation!r} in its config.json, or pooler_act; choose from '
                        f'{sorted(choices)} and tanh')
  epsilon = float(config['layer_norm_eps'])
  if not 0 <= epsilon < 1:
    raise tensors.error('layer_norm_eps: expected 0 or more, below 1, in its config.json, '
                        f"got {config['layer_norm_eps']!r}")
  kind = {True: 'swiglu' if activation in _SILU else 'geglu', False: 'gelu'}[gated]
  return dict(heads=config['num_attention_heads'], gelu=_GELUS.get(activation, 'exact'), mlp=kind, norm_epsilon=epsilon,
              image_size=sections.size(config['image_size'], 'image_size'))


def check(tensors: Tensors, config: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
  """Raise UserError if config.json says another size than the arrays have."""
  stated = dict(width='hidden_size', channels='num_channels', mlp_dim='intermediate_size', depth='num_hidden_layers')
  for field, key in stated.items():
    if config.get(key, fields[field]) != fields[field]:
      raise tensors.error(f'{key}: its config.json says {config[key]!r}, its arrays {fields[field]}')


def class_names(config: Mapping[str, Any], num_classes: int | None) -> tuple[str, ...] | None:
  """Return the names of the classes; None if they are LABEL_0, LABEL_1, …: as transformers calls unknown ones."""
  labels = config.get('id2label') or {}
  names = [labels.get(str(i)) for i in range(num_classes or 0)]
  generic = all(name is None or name == f'LABEL_{i}' for i, name in enumerate(names))
  return None if generic else tuple(str(i) if name is None else str(name) for i, name in enumerate(names))


def loss(tensors: Tensors, config: Mapping[str, Any]) -> str:
  """Return what `problem_type` says about logits: 'sigmoid' for several labels per image, else 'softmax'.

  Raises:
    UserError: a regression.
  """
  problem = config.get('problem_type')
  if problem == 'regression':
    raise tensors.error("problem_type: its config.json says 'regression', which vit_jax does not have")
  return 'sigmoid' if problem == _MULTI_LABEL else 'softmax'


def activation(gelu: str) -> str:
  """Return transformers' name of a form of GELU."""
  return _NAMES[gelu]


def write(weights: Weights, model_type: str, model_class: str) -> dict[str, Any]:
  """Return the keys that all architectures have.

  Args:
    weights: to be written.
    model_type: of transformers.
    model_class: name of the class that loads the model.
  """
  config = weights.config
  keys: dict[str, Any] = {
      'architectures': [model_class], 'model_type': model_type, 'hidden_size': config.width,
      'num_hidden_layers': config.depth, 'num_attention_heads': config.heads, 'intermediate_size': config.mlp_dim,
      'hidden_act': 'silu' if config.mlp == 'swiglu' else _NAMES[config.gelu], 'layer_norm_eps': config.norm_epsilon,
      'image_size': _int_or_list(config.image_size), 'patch_size': _int_or_list(config.patch_size),
      'num_channels': config.channels, 'dtype': 'float32'}
  return {**keys, **_labels(weights)}


def _labels(weights: Weights) -> dict[str, Any]:
  if weights.config.num_classes is None:
    return {}
  names = weights.class_names or [f'LABEL_{i}' for i in range(weights.config.num_classes)]
  problem = {'problem_type': _MULTI_LABEL} if weights.loss == 'sigmoid' else {}
  return {'id2label': {str(i): name for i, name in enumerate(names)},
          'label2id': {name: i for i, name in enumerate(names)}, **problem}


def _int_or_list(pair: tuple[int, int]) -> int | list[int]:
  return pair[0] if pair[0] == pair[1] else list(pair)
