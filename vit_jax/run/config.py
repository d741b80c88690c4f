"""From a recipe to a resolved config: every key checked, every default filled in, before anything compiles.

A section of the config holds the arguments of one builder.  Which keys are valid, their types and their defaults are
read off the builder's signature; the arguments in `Section.given` come from the loop instead.
"""
import dataclasses
import inspect
import json
import os
import types
import typing
from typing import Any, Callable

import ml_collections

from vit_jax.base import durations
from vit_jax import evaluators
from vit_jax.base.choices import choose
from vit_jax.data.sources import registry as sources
from vit_jax.data.loading.dataset import Dataset
from vit_jax.base.durations import Interval, Minutes, Steps
from vit_jax.models.vit import VisionTransformer
from vit_jax.base.normalization import Normalization
from vit_jax.objectives import batch_mixing as mix
from vit_jax.training import optim
from vit_jax.distributed import strategy as parallel
from vit_jax.rundir.checkpoint import Checkpoints
from vit_jax.objectives.classification import Classification
from vit_jax.pretrained.transfer import Transfer


@dataclasses.dataclass(frozen=True)
class Run:
  """What belongs to no part: the keys at the top of a config.

  Attributes:
    seed: of parameters, order, augmentation and dropout.
    init: weights to start from, anything that `vit_jax.load` reads; None starts from random numbers.
    platform: 'cpu', 'gpu' or 'tpu' if it must be that; None takes what is there.
  """
  seed: int = 0
  init: str | None = None
  platform: str | None = None

  def __post_init__(self):
    if not 0 <= self.seed < 1 << 32:
      raise ValueError(f'seed must be in 0..2**32 - 1, got {self.seed}')


@dataclasses.dataclass(frozen=True)
class Train:
  """The loop.

  Attributes:
    duration: length of the run.
    log_every: between two lines of training metrics.
    eval_every: between two evaluations; the last step is always evaluated.
    micro_batch: images that one device holds at once, a divisor of its share of the batch; the gradients of the parts
      are summed. None, or more than the share: the whole share. The loss and the update stay those of the whole batch.
    ema_decay: of the exponential moving average of the parameters, a step; None keeps none.
  """
  duration: Steps
  log_every: Steps = 50
  eval_every: Steps = 1000
  micro_batch: int | None = None
  ema_decay: float | None = None

  def __post_init__(self):
    for name in ('duration', 'log_every', 'eval_every'):
      if getattr(self, name) < 1:
        raise ValueError(f'train.{name} must be at least 1, got {getattr(self, name)}')
    if self.ema_decay is not None and not 0.0 < self.ema_decay < 1.0:
      raise ValueError(f'train.ema_decay must be between 0 and 1, got {self.ema_decay}')


@dataclasses.dataclass(frozen=True)
class Section:
  """A section: its builder, and those of the builder's arguments that are no config keys."""
  builder: Callable[..., Any]
  given: tuple[str, ...] = ()


SECTIONS = {
    'checkpoint': Section(Checkpoints, ('directory', 'read_only')),
    'data': Section(Dataset, ('seed', 'process_index', 'process_count')),
    'mix': Section(mix.build, ('num_classes',)),
    'model': Section(VisionTransformer, ('image_size', 'channels', 'num_classes', 'rngs')),
    'normalization': Section(Normalization),
    'objective': Section(Classification),
    'optim': Section(optim.build, ('total_steps',)),
    'parallel': Section(parallel.build, ('devices',)),
    'train': Section(Train),
    'transfer': Section(Transfer),
}
EVALUATOR_GIVEN = ('graphdef', 'objective', 'normalize', 'strategy', 'data', 'batch_size')

# Where a run runs and what it tells, not what it is: these may differ when it is taken up again.
FREE = ('platform', 'data.data_dir', 'data.cache', 'data.threads', 'data.workers', 'train.log_every', 'train.eval_every')
FREE_SECTIONS = ('checkpoint', 'evaluators', 'parallel')

# What may differ between the hosts of one run.
FREE_BETWEEN_HOSTS = ('data.data_dir', 'data.cache', 'data.threads', 'data.workers')


def resolve(config):
  """Checks a recipe and fills in the defaults.

  Args:
    config: ConfigDict or dict; its `evaluators` section maps a name to {'kind': …, **arguments}.

  Returns:
    A frozen ConfigDict that holds every key.

  Raises:
    ValueError: an unknown key (the message lists the valid ones), a missing one, or one of the wrong type.
  """
  config = as_dict(config)
  top = [field.name for field in dataclasses.fields(Run)]
  _reject_unknown(config, [*SECTIONS, 'evaluators', *top], '')
  resolved = _fill(Section(Run), {name: config[name] for name in top if name in config}, '')
  Run(**resolved)  # a bad value is an error here
  for name, section in SECTIONS.items():
    resolved[name] = _fill(section, config.get(name, {}), f'{name}.')
  resolved['data'].update(_anchored(**resolved['data']))
  named = _section(config.get('evaluators', {}), 'evaluators')
  resolved['evaluators'] = {name: _fill_evaluator(name, keys) for name, keys in named.items()}
  return ml_collections.FrozenConfigDict(resolved)


def with_sections(config):
  """Gives a recipe, a ConfigDict, the sections it leaves out, empty, so that the command line can set keys in them."""
  for name in SECTIONS:
    if name not in config:
      config[name] = {}
  if config.optim.get('options') is None:
    config.optim.options = {}
  return config


def as_dict(config):
  """A ConfigDict, frozen or not, or a dict, as a dict."""
  if isinstance(config, (ml_collections.ConfigDict, ml_collections.FrozenConfigDict)):
    return config.to_dict()
  return {key: as_dict(value) if hasattr(value, 'items') else value for key, value in config.items()}


def in_steps(section, values, *, batch_size, examples):
  """The arguments of a section with its durations converted to steps.

  Args:
    section: name in `SECTIONS`.
    values: the resolved section.
    batch_size: global examples a step.
    examples: examples an epoch.
  """
  hints = typing.get_type_hints(_function(SECTIONS[section].builder))
  return {key: durations.to_steps(value, f'{section}.{key}', hints[key], batch_size=batch_size, examples=examples)
          if hints[key] in (Steps, Interval) else value for key, value in values.items()}


def to_json(config):
  """A resolved config as indented JSON; `json.loads` and `resolve` give it back."""
  return json.dumps(config.to_dict(), indent=2, sort_keys=True) + '\n'


def difference(theirs, ours, free=(*FREE, *FREE_SECTIONS)):
  """Lines that say where two resolved configs (dicts) differ, save in the keys and sections `free`; '' if nowhere."""
  theirs, ours = _flatten(theirs), _flatten(ours)
  lines = [f'  {key}: {json.dumps(theirs.get(key))} there, {json.dumps(ours.get(key))} here'
           for key in sorted(theirs.keys() | ours.keys())
           if not {key, key.split('.')[0]} & set(free) and json.dumps(theirs.get(key)) != json.dumps(ours.get(key))]
  return '\n'.join(lines)


def _flatten(tree, prefix=''):
  flat = {}
  for key, value in tree.items():
    flat.update(_flatten(value, f'{prefix}{key}.') if isinstance(value, dict) else {prefix + key: value})
  return flat


def _anchored(name, data_dir, exclude, **_):
  """What a run is told of its data relative to the working directory, for whoever reads its config from elsewhere."""
  here = exclude if exclude is None or '://' in exclude else os.path.abspath(os.path.expanduser(exclude))
  return {'data_dir': sources.data_dir_of(name, data_dir), 'exclude': here}


def _fill_evaluator(name, keys):
  path = f'evaluators.{name}.'
  keys = _section(keys, path[:-1])
  if 'kind' not in keys:
    raise ValueError(f'{path}kind is missing; choose from {sorted(evaluators.EVALUATORS)}')
  builder = choose(evaluators.EVALUATORS, str(keys['kind']), f'{path}kind')
  rest = {key: value for key, value in keys.items() if key != 'kind'}
  return dict(kind=keys['kind'], **_fill(Section(builder, EVALUATOR_GIVEN), rest, path))


def _fill(section, values, path):
  """The builder's defaults overlaid with `values`, all checked."""
  values = _section(values, path[:-1])
  function = _function(section.builder)
  hints = typing.get_type_hints(function)
  parameters = {name: p for name, p in inspect.signature(function).parameters.items()
                if name not in ('self', *section.given)}
  _reject_unknown(values, parameters, path)
  filled = {}
  for name, parameter in parameters.items():
    if name not in values and parameter.default is parameter.empty:
      raise ValueError(f'{path}{name} is missing ({_text(hints[name])})')
    filled[name] = _check(values.get(name, _written(parameter.default, hints[name])), hints[name], path + name)
  return filled


def _section(values, name):
  if not isinstance(values, dict):
    raise ValueError(f'{name} is a section, a dict; got {values!r}')
  return values


def _reject_unknown(values, valid, path):
  if unknown := sorted(map(str, set(values) - set(valid))):
    names = ', '.join(path + name for name in unknown)
    raise ValueError(f'unknown config key {names}; valid keys are {sorted(path + name for name in valid)}')


def _written(default, annotation):
  """A default as a config writes it: 50 steps as '50 steps'."""
  if annotation not in (Steps, Interval):
    return default
  return f'{default:g} minutes' if isinstance(default, Minutes) else f'{default} steps'


def _check(value, annotation, key):
  """Returns the value, lists as tuples and durations as text; raises unless it is of the annotated type."""
  if annotation in (Steps, Interval):
    if isinstance(value, int) and not isinstance(value, bool):
      raise ValueError(f"{key}: expected a duration such as '{value} steps', got {value!r}")
    durations.parse(value, key, annotation)
    return value
  value = tuple(value) if isinstance(value, list) else value
  value = {} if value is None and _may_be(dict, annotation) else value  # left out and empty are the same run
  kinds = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
  fits = isinstance(value, tuple(kinds)) or (float in kinds and isinstance(value, int))
  if not fits or (isinstance(value, bool) and bool not in kinds):
    raise ValueError(f'{key}: expected {_text(annotation)}, got {value!r}')
  # 1 and 1.0 are the same run.
  return float(value) if float in kinds and isinstance(value, int) and int not in kinds else value


def _may_be(kind, annotation):
  return kind in typing.get_args(annotation)


def _function(builder):
  """The function whose signature counts: a class's __init__ (an NNX module's own signature is *args, **kwargs)."""
  return builder.__init__ if inspect.isclass(builder) else builder


def _text(annotation):
  return 'a duration' if annotation in (Steps, Interval) else getattr(annotation, '__name__', None) or str(annotation)
