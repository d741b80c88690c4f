"""Starting from trained weights: which model they make, and which of their parameters a fine-tune keeps."""
import dataclasses
import json

from etils import epath
import jax
import numpy as np

from vit_jax.base.choices import choose
from vit_jax.models.config import variant_fields
from vit_jax.pretrained import adapt
from vit_jax.pretrained import load
from vit_jax.pretrained.resize import METHODS

# What follows from the data, whatever the weights were trained on.
_FROM_DATA = ('image_size', 'channels', 'num_classes')


@dataclasses.dataclass(frozen=True)
class TransferConfig:
  """Section `transfer`: how the weights of `config.init` are fitted to the new task; unused without `config.init`.

  Attributes:
    reset_head: whether to start from a zero head even if the number of classes is the same; if it differs, the head is
      always reset.
    resize: how position embeddings are resized: 'bilinear' with aligned corners, as the official checkpoints expect, or
      'bicubic' with antialiasing, as in timm; None: as the code that the weights come from does it.
  """
  reset_head: bool = False
  resize: str | None = None

  def __post_init__(self):
    if self.resize is not None:
      choose(METHODS, self.resize, 'transfer.resize')


Transfer = TransferConfig


def fill_model(config, workdir=None):
  """Completes sections `model` and `normalization` from the weights that `config['init']` names.

  What the config gives itself wins. A run that is taken up again has it all in its own config: the weights need not be
  there any more.

  Args:
    config: dict, unresolved.
    workdir: of the run; may not exist yet. None: of no run.

  Returns:
    (config, the weights or None if there are none to read).

  Raises:
    ValueError: the weights cannot be read, or are not of the variant that the config names.
  """
  if config.get('init') is None:
    return config, None
  if not config['init']:
    raise ValueError('this recipe starts from weights; name them: --config.init=PATH_OR_NAME')
  path = None if workdir is None else epath.Path(workdir) / 'config.json'
  recorded = json.loads(path.read_text()) if path is not None and path.exists() else {}
  weights = None
  if recorded.get('init') == config['init']:
    model, normalization = recorded['model'], recorded['normalization']
  else:
    weights = load.read(config['init'])
    model = {name: value for name, value in weights.fields.items() if name not in _FROM_DATA}
    normalization = dict(mean=weights.preprocessing.mean, std=weights.preprocessing.std)
  asked = config.get('model') or {}
  _check_variant(asked.get('variant'), model, config['init'])
  return dict(config, model={**model, **asked},
              normalization={**normalization, **(config.get('normalization') or {})}), weights


def fit(weights, fresh, source, image_size, fields, transfer):
  """The parameters to start from.

  Args:
    weights: what was read.
    fresh: newly initialised parameters of the model to train.
    source: the training data: channels, classes and their names.
    image_size: (rows, columns).
    fields: section `model` of the config.
    transfer: a `Transfer`.

  Returns:
    (parameters, lines that say what was resized, reset, left out).
  """
  weights, lines = adapt.adapt(
      weights, image_size=image_size, patch_size=fields['patch_size'] or variant_fields(fields['variant'])['patch_size'],
      channels=source.channels, num_classes=source.num_classes, reset_head=transfer.reset_head,
      drop_pre_logits=fields['representation_size'] is None, method=transfer.resize or load.resize_method(weights))
  lines = list(lines)
  if weights.class_names and not any('head' in line for line in lines) and weights.class_names != source.class_names:
    lines.append('head: kept, although its classes have other names; --config.transfer.reset_head=True starts it anew')
  loaded = dict(jax.tree_util.tree_leaves_with_path(weights.params))
  anew = []

  def choose(path, leaf):
    value = loaded.pop(path, None)
    if value is None or np.shape(value) != leaf.shape:
      anew.append(_name(path))
      return leaf
    return np.asarray(value, leaf.dtype)

  params = jax.tree_util.tree_map_with_path(choose, fresh)
  lines += [f'not in the weights, initialised anew: {", ".join(anew)}'] if anew else []
  lines += [f'not in the model, left out: {", ".join(map(_name, loaded))}'] if loaded else []
  return params, lines


def _check_variant(variant, model, init):
  if not variant:
    return
  pair = lambda value: list(value) if isinstance(value, (list, tuple)) else [value, value]
  for name, value in variant_fields(variant).items():
    same = pair(model[name]) == pair(value) if name == 'patch_size' else model[name] == value
    if not same:
      raise ValueError(f'model.variant is {variant!r}, {name} {value}, but {init} has {name} {model[name]}; '
                       "leave the variant out (configs/finetune.py:any,DATA does) or give the right weights")


def _name(path):
  return jax.tree_util.keystr(path, simple=True, separator='/')
