"""Starting from trained weights: which model they make, and which of their parameters a fine-tune keeps."""
from collections.abc import Mapping
import dataclasses
from typing import Any

from absl import logging
import jax
import numpy as np

from vit_jax.base import sections
from vit_jax.base.choices import choose
from vit_jax.base.errors import UserError
from vit_jax.base.text import listing
from vit_jax.models.base import flatten, path_of
from vit_jax.models.registry import MODELS
from vit_jax.pretrained.adapt import Adaptation, adapt
from vit_jax.pretrained.classes import names
from vit_jax.pretrained.formats.weights import Params, Weights, abstract_model, read_config
from vit_jax.pretrained.load import log_notes, read
from vit_jax.pretrained.resize import METHODS
from vit_jax.rundir.layout import RunDir

_WARNING = 'warning: '
_FIX = ('name the classes of the weights with --config.transfer.classes=FILE, or start from a new head with '
        '--config.transfer.reset_head=True')


@dataclasses.dataclass(frozen=True)
class TransferConfig:
  """Section `transfer`: how the weights of `config.init` are adapted to the new task; unused without `config.init`.

  Attributes:
    reset_head: whether to start from a zero head even if the number of classes is the same; if it differs, the head is
      always reset.
    resize: how position embeddings are resized, see `resize.resize_grid`: 'bilinear' as the official checkpoints
      expect, 'bicubic' as in timm, 'bicubic_no_antialias' as in transformers; None: as the code that the weights come
      from does it.
    trained_at: image size, (rows, columns), that the weights were trained at, for files that do not say it and were not
      trained on square images.
    classes: file with the names of the weights' classes, see `classes.names.read_file`; None: those that come with the
      weights. A head that is kept is matched with the classes of the data by name.
  """
  reset_head: bool = False
  resize: str | None = None
  trained_at: tuple[int, int] | None = None
  classes: str | None = None

  def __post_init__(self) -> None:
    if self.resize is not None:
      choose(METHODS, self.resize, 'transfer.resize')


def fill_model(config: dict[str, Any], run_dir: RunDir | None = None) -> tuple[dict[str, Any], Weights | None]:
  """Complete the sections `model` and `normalization` of a recipe from the weights that `config['init']` names.

  What the recipe itself gives wins. A run that is resumed has everything in its own config, so the weights may be gone.

  Args:
    config: the recipe, as a dict.
    run_dir: of the run, which need not exist yet; None if there is no run.

  Returns:
    (config, the weights, or None if none were read).

  Raises:
    UserError: the weights cannot be read, or are not of the kind or variant that the recipe names.
  """
  init = config.get('init')
  if init is None:
    return config, None
  if not init:
    raise UserError('init: this recipe starts from weights; name them: --config.init=PATH_OR_NAME')
  recorded = run_dir.read_config() if run_dir is not None and run_dir.has_config() else {}
  weights = None
  if recorded.get('init') == init:
    model, normalization = recorded['model'], recorded['normalization']
  else:
    weights = read_init(init, sections.read(TransferConfig, config.get('transfer'), 'transfer'))
    model = sections.to_dict(weights.config)
    normalization = dict(mean=weights.preprocessing.mean, std=weights.preprocessing.std)
  # A key that is off and that models of this kind lack, such as representation_size, says nothing.
  given = {key: value for key, value in (config.get('model') or {}).items() if value is not None or key in model}
  _check_same_model(given, read_config(model), init)
  return dict(config, model={**model, **given},
              normalization={**normalization, **(config.get('normalization') or {})}), weights


def read_init(init: str, transfer: TransferConfig) -> Weights:
  """Read the weights that `config.init` names; errors as of `load.read`."""
  weights = read(init, trained_at=transfer.trained_at,
                 class_names=names.read_file(transfer.classes) if transfer.classes else None)
  log_notes(weights, init)
  return weights


def fit(weights: Weights, params: Params, config: Any, class_names: tuple[str, ...],
        transfer: TransferConfig) -> tuple[Params, list[str]]:
  """Return the parameters that a fine-tune starts from, and messages about what was resized, reset and left out.

  A head that is kept gets the order of the data's classes, if both have the same names. Messages that start with
  'warning' say that a head may not be one for these classes; they are logged as warnings, too.

  Args:
    weights: what was read.
    params: newly initialized parameters of the model to train; leaves that the weights lack are taken from here.
    config: of the model to train.
    class_names: of the training data.
    transfer: options.
  """
  model = abstract_model(config)
  hidden = tuple(f'{path}/' for path in model.hidden_head_paths)
  old, theirs = weights.config, weights.class_names
  weights, lines = adapt(weights, Adaptation(
      image_size=config.image_size, patch_size=config.patch_size if model.patch_kernel else None,
      channels=config.channels, num_classes=config.num_classes or 0, reset_head=transfer.reset_head,
      drop_pre_logits=not any(path.startswith(hidden) for path in flatten(params)), method=transfer.resize))
  if config.num_classes is None:
    pass  # nothing that depends on classes is trained
  elif old.num_classes != config.num_classes:
    lines += _describe_lost_classes(theirs, class_names)
  elif not any(line.startswith('head: reset') for line in lines):
    weights, more = _match_head(weights, class_names)
    lines += more
  for line in lines:
    if line.startswith(_WARNING):
      logging.warning('%s', line.removeprefix(_WARNING))
  loaded = flatten(weights.params)
  initialized = []

  def pick(key_path: jax.tree_util.KeyPath, leaf: jax.Array) -> Any:
    path = path_of(key_path)
    value = loaded.pop(path, None)
    if value is None or np.shape(value) != leaf.shape:
      initialized.append(path)
      return leaf
    return np.asarray(value, leaf.dtype)

  params = jax.tree_util.tree_map_with_path(pick, params)
  lines += [f'not in the weights, newly initialized: {", ".join(initialized)}'] if initialized else []
  lines += [f'not in the model, left out: {", ".join(loaded)}'] if loaded else []
  return params, lines


def _match_head(weights: Weights, class_names: tuple[str, ...]) -> tuple[Weights, list[str]]:
  """Return weights whose head has the classes of the data in its order, as far as names can say, and messages."""
  if weights.class_names is None:
    if not all(name.isdecimal() for name in class_names):
      return weights, ['head: kept; the weights have no class names, so nothing was checked; '
                       '--config.transfer.classes=FILE names them']
    return weights, [f'{_WARNING}head: kept, but the weights have no class names and those of the data are numbers '
                     f'({listing(class_names, 5)}): the order may be another. {_FIX}']
  order = names.find_order(weights.class_names, class_names)
  if order == list(range(len(class_names))):
    return weights, []
  if order is not None:
    params = names.permute_head(weights.params, abstract_model(weights.config).head_paths, order)
    moved = sum(old != new for new, old in enumerate(order))
    return dataclasses.replace(weights, params=params, class_names=class_names), [
        f'head: the data has the same classes in another order; {moved:,} of {len(order):,} rows moved, by name']
  if set(weights.class_names) & set(class_names):
    lost = _describe_lost_classes(weights.class_names, class_names)
    weights, lines = adapt(weights, Adaptation(reset_head=True))
    return weights, [*lines, *lost]
  return weights, [f'{_WARNING}head: kept, although its classes have other names: '
                   f'{listing(weights.class_names, 5, "; ")}; those of the data: {listing(class_names, 5, "; ")}. If '
                   f'they are not the same classes in the same order: {_FIX}']


def _describe_lost_classes(theirs: tuple[str, ...] | None, ours: tuple[str, ...]) -> list[str]:
  """Return a warning about classes of the data that a head knew before it was reset."""
  known = set(theirs or ()) & set(ours)
  return [f'{_WARNING}head: reset, although {len(known):,} of its {len(theirs or ()):,} classes are among the '
          f'{len(ours):,} of the data: a head is kept only if all are the same'] if known else []


def _check_same_model(given: Mapping[str, Any], config: Any, init: str) -> None:
  """Raise UserError if a recipe names another kind or variant than that of the weights."""
  if given.get('kind') not in (None, config.kind):
    raise UserError(f"model.kind: the recipe says {given['kind']!r}, but {init} holds {config.kind!r}")
  variant = given.get('variant')
  named = MODELS[config.kind].Config.variant_fields(variant) if variant else {}
  for name, value in named.items():
    expected = sections.size(value, name) if name == 'patch_size' else value
    found = getattr(config, name)
    if found != expected:
      raise UserError(f'model.variant: {variant!r} has {name} {expected}, but {init} has {name} {found}; leave the '
                      'variant out (configs/finetune.py:any,DATA does) or give the right weights')
