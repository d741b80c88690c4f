"""Finds the model in a file: below prefixes that training code puts before names, beside its EMA and training state."""
from collections.abc import Callable, Iterable
import dataclasses
import re

from vit_jax.base.errors import UserError
from vit_jax.base.text import listing
from vit_jax.pretrained.files.subtrees import select
from vit_jax.pretrained.files.tensors import Tensors
from vit_jax.pretrained.formats.base import Configs, Format
from vit_jax.pretrained.formats.registry import FORMATS, recognize

# What code puts before the names of a model: DistributedDataParallel, torch.compile, Lightning, wrappers of backbones.
PREFIXES = ('module.', 'model.', '_orig_mod.', 'state_dict.', 'timm_model.', 'backbone.', 'encoder.', 'vision_model.')
# Where code keeps the exponential moving average of the parameters (timm, DeiT, big_vision and others).
AVERAGES = ('ema', 'model_ema', 'ema_model', 'state_dict_ema', 'ema_state_dict', 'params_ema', 'ema_params')
# What else the PyTorch checkpoint of a training run holds.
_TRAINING = ('optimizer', 'optimizers', 'optimizer_states', 'optimizer_state_dict', 'lr_scheduler', 'lr_schedulers',
             'scheduler', 'scaler', 'amp_scaler', 'loss_scaler')
_MOST_NESTED = 4
_MOST_SUGGESTED = 20


@dataclasses.dataclass(frozen=True)
class Found:
  """A model in a file.

  Attributes:
    form: its format.
    tensors: its arrays, under the names that the format knows.
    notes: messages about prefixes that were stripped and sub-trees that were left out.
    problems: a message about arrays beside the model, if there are any.
  """
  form: Format
  tensors: Tensors
  notes: tuple[str, ...] = ()
  problems: tuple[str, ...] = ()


def find_model(tensors: Tensors, configs: Configs, ema: bool = False) -> Found:
  """Return the model in an open file.

  Names are tried as they are first, then without prefixes. Of a file with parameters and their EMA the parameters are
  read, unless there is only the EMA.

  Args:
    tensors: the open file, or the sub-tree that the user selected.
    configs: the config files beside it.
    ema: whether to read the EMA of the parameters.

  Raises:
    UserError: no format recognizes it, it holds several models, or no EMA; the message lists what can be selected.
  """
  averages = [name for name in AVERAGES if any(_part(other) == name for other in tensors.shapes)]
  if ema:
    if len(averages) != 1:
      raise tensors.error(f'expected one EMA of the parameters, under one of {", ".join(AVERAGES)}; found '
                          f'{listing(averages) or "none"}: ' + (_selectors(tensors, averages) if averages else
                                                                'leave out ema=True (--ema)'))
    return _noted(_require(select(tensors, averages[0]), configs), f'EMA: read from {averages[0]}')
  training = [name for name in _TRAINING if any(other.startswith(f'{name}.') for other in tensors.shapes)]
  hidden = {*averages, *training}
  rest = tensors.rename(lambda name: None if _part(name) in hidden else name) if hidden else tensors
  found = _unwrap(rest, configs)
  if found is None and len(averages) == 1:
    only = _require(select(tensors, averages[0]), configs)
    return _noted(only, f'EMA: read from {averages[0]}, the only model there')
  found = found or _require(rest, configs)
  if training:
    found = _noted(found, f'left out: training state ({", ".join(training)})')
  if averages:
    found = _noted(found, f'left out: EMA ({", ".join(averages)}); ema=True (--ema) reads it, or '
                   + _selectors(tensors, averages))
  return found


def _require(tensors: Tensors, configs: Configs) -> Found:
  """Return the model below any prefixes.

  Raises:
    UserError: there is none; the message names sub-trees that hold one.
  """
  if found := _unwrap(tensors, configs):
    return found
  try:
    return Found(recognize(tensors, configs), tensors)
  except UserError as error:
    parts = sorted({_part(name) for name in tensors.shapes})[:_MOST_SUGGESTED]
    inside = [part for part in parts if _holds_model(tensors, part)]
    if not inside:
      raise
    raise UserError(f'{error}; models are below {listing(inside)}: {_selectors(tensors, inside)}') from error


def _holds_model(tensors: Tensors, part: str) -> bool:
  try:
    return _unwrap(select(tensors, part), {}) is not None
  except UserError:
    return False


def _unwrap(tensors: Tensors, configs: Configs) -> Found | None:
  """Return the model below the fewest prefixes, or None.

  Names alone say which prefixes to strip; the config.json has a say in which format it then is.

  Raises:
    UserError: several are equally near.
  """
  paths = ['']
  for _ in range(_MOST_NESTED + 1):
    found = [path for path in paths if _is_recognized(tensors.rename(_without(path)))]
    if len(found) > 1:
      raise tensors.error('holds several models; select one: '
                          + _selectors(tensors, [path.rstrip('.') for path in found]))
    if found:
      return _stripped(tensors, found[0], configs)
    paths = [longer for path in paths for prefix in PREFIXES
             if any(name.startswith(longer := path + prefix) for name in tensors.shapes)]
  return None


def _stripped(tensors: Tensors, path: str, configs: Configs) -> Found:
  if not path:
    return Found(recognize(tensors, configs), tensors)
  beside = sorted(name for name in tensors.shapes if not name.startswith(path))
  problems = (f'unused: {listing(beside)}, beside {path}; left out by '
              + _selectors(tensors, [path.rstrip('.')]),) if beside else ()
  stripped = tensors.rename(_without(path))
  return Found(recognize(stripped, configs), stripped, (f'names: prefix {path} stripped',), problems)


def _is_recognized(tensors: Tensors) -> bool:
  return any(form.matches(tensors, {}) for form in FORMATS.values())


def _without(path: str) -> Callable[[str], str | None]:
  return lambda name: name[len(path):] if name.startswith(path) and len(name) > len(path) else None


def _part(name: str) -> str:
  """Return the first part of a name."""
  return re.split('[./]', name, maxsplit=1)[0]


def _selectors(tensors: Tensors, parts: Iterable[str]) -> str:
  return ' or '.join(f'{tensors.path}:{part}' for part in parts)


def _noted(found: Found, note: str) -> Found:
  return dataclasses.replace(found, notes=(*found.notes, note))
