"""The config of a run: from a recipe to one checked, complete dataclass, before anything compiles."""
from collections.abc import Iterable, Mapping
import dataclasses
import json
from typing import Any

import ml_collections

from vit_jax.base import sections
from vit_jax.base.choices import choose
from vit_jax.base.durations import Duration, Interval
from vit_jax.base.errors import UserError
from vit_jax.base.platform import PLATFORMS
from vit_jax.base.preprocessing import Normalization
from vit_jax.base.sections import section
from vit_jax.data.loading.config import DataConfig
from vit_jax.distributed.strategy import ParallelConfig
from vit_jax.evaluators import EVALUATORS
from vit_jax.guards.losses import GuardConfig
from vit_jax.models.registry import MODELS
from vit_jax.objectives import OBJECTIVES
from vit_jax.objectives.batch_mixing import MixConfig
from vit_jax.pretrained import source as weights_source
from vit_jax.pretrained.transfer import TransferConfig
from vit_jax.rundir.checkpoint import CheckpointConfig
from vit_jax.training.health import HealthConfig
from vit_jax.training.optim import OptimConfig

Recipe = ml_collections.ConfigDict | ml_collections.FrozenConfigDict | Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """Section `train` of a recipe: the loop.

  Attributes:
    duration: length of the run.
    log_every: between two lines of training metrics.
    eval_every: between two evaluations; the last step is always evaluated.
    micro_batch: images that one device holds at once, a divisor of its share of the batch; the gradients of the
      micro-batches are summed. None, or more than the share: all of it. Loss and update stay those of the whole batch.
    ema_decay: decay of the exponential moving average of the parameters, per step; None keeps none.
    ema_warmup: whether the decay starts at 0.1 and rises as (1 + t) / (10 + t) with the steps t until it is
      `ema_decay`, so that the average forgets the initial parameters also in a short run.
    hang_timeout: minutes for one piece of work: a step, a batch of an evaluation, a save. A process that takes longer
      hangs and is ended with status 75, so that a scheduler starts it again; the first step, which compiles, may take
      four times as long.
  """
  duration: Duration
  log_every: Duration = Duration(50)
  eval_every: Duration = Duration(1000)
  micro_batch: int | None = None
  ema_decay: float | None = None
  ema_warmup: bool = False
  hang_timeout: Interval = Interval(30, 'minute')

  def __post_init__(self):
    for name in ('duration', 'log_every', 'eval_every'):
      if not getattr(self, name).number > 0:
        raise UserError(f'train.{name}: must be longer than 0, got {getattr(self, name)}')
    if not self.hang_timeout.minutes:
      raise UserError(f"train.hang_timeout: expected a time such as '30 minutes', got '{self.hang_timeout}'")
    if self.ema_decay is not None and not 0.0 < self.ema_decay < 1.0:
      raise UserError(f'train.ema_decay: must be between 0 and 1, got {self.ema_decay}')
    if self.ema_warmup and self.ema_decay is None:
      raise UserError('train.ema_warmup: needs train.ema_decay, which is None; set for example train.ema_decay=0.9999')


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """All that determines a run.

  Attributes:
    data: dataset, splits, transforms and loading.
    train: the loop.
    model: architecture; its class by `model.kind`.
    objective: what a step minimizes; its class by `objective.kind`.
    optim: optimizer and schedule.
    mix: mixup and CutMix.
    normalization: mean and standard deviation of the images.
    transfer: how the weights of `init` are adapted.
    checkpoint: when to save, what to keep.
    guard: numbers that went wrong.
    health: the health panel.
    parallel: how a step is spread over devices.
    evaluators: {name: config}, what is measured; its class by `evaluators.NAME.kind`.
    seed: of parameters, order, augmentation and dropout; 0..2**32 - 1.
    init: weights to start from, anything that `vit_jax.load` reads; None starts from random numbers.
    platform: 'cpu', 'gpu' or 'tpu' to insist on it; None takes what is there.
  """
  data: DataConfig
  train: TrainConfig
  model: Any
  objective: Any
  optim: OptimConfig = section(OptimConfig)
  mix: MixConfig = section(MixConfig)
  normalization: Normalization = section(Normalization)
  transfer: TransferConfig = section(TransferConfig)
  checkpoint: CheckpointConfig = section(CheckpointConfig)
  guard: GuardConfig = section(GuardConfig)
  health: HealthConfig = section(HealthConfig)
  parallel: ParallelConfig = section(ParallelConfig)
  evaluators: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  seed: int = 0
  init: str | None = None
  platform: str | None = None

  def __post_init__(self):
    if not 0 <= self.seed < 1 << 32:
      raise UserError(f'seed: must be in 0..2**32 - 1, got {self.seed}')
    if self.platform is not None:
      choose(dict.fromkeys(PLATFORMS), self.platform, 'platform')

  def to_dict(self) -> dict[str, Any]:
    """Return all keys and values as plain values for JSON; `read` gives the config back."""
    return sections.to_dict(self)


# Sections whose dataclass depends on a key `kind`, with the kind that a recipe without one means.
_KINDS = {'model': (MODELS, 'vit'), 'objective': (OBJECTIVES, 'classification')}

SECTIONS = ('data', 'train', 'model', 'objective', 'optim', 'mix', 'normalization', 'transfer', 'checkpoint',
            'guard', 'health', 'parallel')

# These change where a run runs and what it prints, not what it computes: they may differ when it is resumed.
MAY_CHANGE_ON_RESUME = ('platform', 'data.data_dir', 'data.cache', 'data.threads', 'data.workers', 'data.fingerprint',
                        'train.log_every', 'train.eval_every', 'train.hang_timeout', 'checkpoint', 'guard', 'health',
                        'evaluators', 'parallel')

# These may differ between the processes of one run.
MAY_DIFFER_BETWEEN_PROCESSES = ('data.data_dir', 'data.cache', 'data.threads', 'data.workers')


def read(recipe: Recipe) -> RunConfig:
  """Check a recipe and fill in the defaults.

  Args:
    recipe: as `get_config()` of a recipe returns it, or the dict of a config.json.

  Raises:
    UserError: an unknown key (the message lists the valid ones), a missing one, or a bad type or value.
  """
  values = as_dict(recipe)
  for name, (table, default) in _KINDS.items():
    values[name] = _read_kind(table, values.get(name), name, default)
  evaluators = values.get('evaluators') or {}
  if not isinstance(evaluators, Mapping):
    raise UserError(f'evaluators: expected {{name: section}}, got {evaluators!r}')
  values['evaluators'] = {name: _read_kind(EVALUATORS, keys, f'evaluators.{name}') for name, keys in evaluators.items()}
  config = sections.read(RunConfig, values)
  objective = config.objective
  if teacher := getattr(objective, 'teacher', None):
    objective = dataclasses.replace(objective, teacher=weights_source.anchored(teacher))
  return dataclasses.replace(config, data=config.data.anchored(), objective=objective)


def with_all_sections(recipe: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Add the sections that a recipe leaves out, empty, so that the command line can set keys in them."""
  for name in SECTIONS:
    if name not in recipe:
      recipe[name] = {}
  optim: Any = recipe['optim']
  if optim.get('options') is None:
    optim.options = {}
  return recipe


def as_dict(recipe: Recipe) -> dict[str, Any]:
  """Return a recipe, a ConfigDict or a mapping, as a dict of dicts."""
  if isinstance(recipe, (ml_collections.ConfigDict, ml_collections.FrozenConfigDict)):
    return recipe.to_dict()
  return {key: value.to_dict() if isinstance(value, ml_collections.ConfigDict) else value
          for key, value in recipe.items()}


def difference(theirs: Mapping[str, Any], ours: Mapping[str, Any], may_differ: Iterable[str]) -> str:
  """Return lines that say where two configs differ, '' if nowhere.

  Args:
    theirs, ours: plain values, nested dicts.
    may_differ: keys and sections that are not compared.
  """
  theirs, ours, skipped = _flatten(theirs), _flatten(ours), set(may_differ)
  lines = [f'  {key}: {json.dumps(theirs.get(key))} there, {json.dumps(ours.get(key))} here'
           for key in sorted(theirs.keys() | ours.keys())
           if not skipped.intersection(_prefixes(key)) and json.dumps(theirs.get(key)) != json.dumps(ours.get(key))]
  return '\n'.join(lines)


def _read_kind(table: Mapping[str, Any], values: Any, path: str, default: str | None = None) -> Any:
  """Read a section into the dataclass of its kind."""
  if values is not None and not isinstance(values, Mapping):
    raise UserError(f'{path}: expected a section, {{key: value}}, got {values!r}')
  kind = (values or {}).get('kind', default)
  if kind is None:
    raise UserError(f'{path}.kind: missing; choose from {sorted(table)}')
  return sections.read(choose(table, kind, f'{path}.kind').Config, values, path)


def _flatten(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  flat = {}
  for key, value in tree.items():
    flat.update(_flatten(value, f'{prefix}{key}.') if isinstance(value, Mapping) else {prefix + key: value})
  return flat


def _prefixes(key: str) -> list[str]:
  """Return 'a', 'a.b' and 'a.b.c' for 'a.b.c'."""
  parts = key.split('.')
  return ['.'.join(parts[:n + 1]) for n in range(len(parts))]
