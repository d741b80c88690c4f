"""The optimizer of a run: section `optim` of a config and what is built from it."""
from collections.abc import Callable
import dataclasses
import inspect
import math
import re
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import optax

from vit_jax.base.choices import choose
from vit_jax.base.durations import Duration, Pace
from vit_jax.base.errors import UserError
from vit_jax.models.base import ParamTree, flatten, path_of
from vit_jax.objectives.base import OBJECTIVE
from vit_jax.training.optimizers import OPTIMIZERS
from vit_jax.training.schedules import SHAPES, Schedule

_POSITIVE = ('timescale', 'clip_norm', 'layer_decay')  # these numbers must not be 0


@dataclasses.dataclass(frozen=True)
class OptimConfig:
  """The optimizer and its learning-rate schedule: section `optim` of a config.

  Attributes:
    name: a name of `OPTIMIZERS`.
    peak_lr: learning rate at the end of the warm-up; at least 0.
    schedule: a name of `schedules.SHAPES`: the shape of the learning rate after the warm-up.
    warmup: the learning rate first rises linearly from 0 for this long.
    cooldown: the learning rate finally falls linearly to 0 for this long.
    end_lr: where the 'linear' schedule ends (the authors' code: 1e-5).
    drops: fractions of the run after which the 'stairs' schedule falls to a tenth, as in BiT's HyperRule.
    timescale: steps over which the 'rsqrt' schedule falls by the square root of two (big_vision: 10,000).
    weight_decay: w; each step moves a parameter p by -lr·w·p in addition to its own update (the form of the paper and
      of flax.optim), except in 'adam', where the decay is part of the gradient, and in 'lamb', where it is part of what
      is scaled to the parameter's norm.
    end_weight_decay: w at the end of the run, reached by a cosine from `weight_decay` (DINO, arXiv 2104.14294); None: w
      stays the same.
    decay_mask: regular expression; a parameter decays if its whole path, such as 'encoder/blocks/mlp/up/kernel',
      matches. The paper's code decays all; '.*/kernel' exempts biases, LayerNorms, tokens and positions.
    clip_norm: largest global norm of the gradient of the trained parameters; None: no clipping.
    layer_decay: factor between the learning rates of a layer and of the layer below: 1 for the head and the last
      LayerNorm, `layer_decay` for the last block, its power depth + 1 for the patch embedding (arXiv 2106.08254,
      section 2.4); None: the same learning rate for all.
    freeze: regular expression; a parameter is not trained if its whole path matches; None: all are trained.
      '(?!head/).*' gives a linear probe.
    options: keyword-only arguments of the optimizer's row of `OPTIMIZERS`.
  """
  name: str = 'adamw'
  peak_lr: float = 1e-3
  schedule: str = 'cosine'
  warmup: Duration = Duration(0)
  cooldown: Duration = Duration(0)
  end_lr: float = 0.0
  drops: tuple[float, ...] = ()
  timescale: float = 10_000.0
  weight_decay: float = 0.0
  end_weight_decay: float | None = None
  decay_mask: str = '.*'
  clip_norm: float | None = 1.0
  layer_decay: float | None = None
  freeze: str | None = None
  options: dict[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    make = choose(OPTIMIZERS, self.name, 'optim.name')
    choose(SHAPES, self.schedule, 'optim.schedule')
    if not all(isinstance(drop, float) and 0.0 < drop < 1.0 for drop in self.drops):
      raise UserError(f'optim.drops: expected fractions of the run between 0 and 1, got {self.drops}')
    for name in ('peak_lr', 'end_lr', 'weight_decay', 'end_weight_decay', *_POSITIVE):
      number = getattr(self, name)
      if number is not None and (not math.isfinite(number) or number < 0 or (name in _POSITIVE and number == 0)):
        raise UserError(f'optim.{name}: must be {"positive" if name in _POSITIVE else "at least 0"}, got {number}')
    valid = [p.name for p in inspect.signature(make).parameters.values() if p.kind is p.KEYWORD_ONLY]
    if unknown := sorted(set(self.options) - set(valid)):
      raise UserError(f'optim.options: {self.name} has no {unknown}; valid options are {valid}')
    for name in ('decay_mask', 'freeze'):
      _check_pattern(name, getattr(self, name) or '')


def _check_pattern(name: str, pattern: str) -> None:
  try:
    re.compile(pattern)
  except re.error as error:
    raise UserError(f"optim.{name}: {pattern!r} is not a regular expression: {error}; write '.*' for any path, not '*'"
                    ) from error


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """An optimizer of given parameters.

  Attributes:
    transform: optax transformation; it keeps no state for frozen parameters.
    schedule: step → learning rate, float32.
    frozen: tree of booleans, True for a parameter that is not trained; None if all are.
  """
  transform: optax.GradientTransformation
  schedule: Callable[[Any], jax.Array]
  frozen: Any = None


def build(config: OptimConfig, num_steps: int, pace: Pace, model: ParamTree, params: Any) -> Optimizer:
  """Build the optimizer of a run.

  Args:
    config: options.
    num_steps: length of the run.
    pace: turns durations into steps.
    model: what is known of the parameters.
    params: all trained parameters, or their shapes.

  Raises:
    UserError: a warm-up longer than the run; a regular expression that matches no parameter, or freezes all.
  """
  warmup, cooldown, layer_decay = pace.steps(config.warmup), pace.steps(config.cooldown), config.layer_decay
  if warmup + cooldown > num_steps:
    raise UserError(f'optim.warmup: the warm-up ({warmup} steps) and the cool-down ({cooldown} steps) are longer than '
                    f"the run ({num_steps} steps). Shorten them, for example optim.warmup='0 steps', or lengthen "
                    'train.duration')
  if warmup == num_steps:
    logging.warning("optim.warmup: as long as the run (%d steps), so the learning rate only rises; for a short run set "
                    "--config.optim.warmup='%d steps'", num_steps, max(num_steps // 10, 1))
  schedule = Schedule(config.schedule, num_steps, config.peak_lr, config.end_lr, warmup, cooldown, config.timescale,
                      config.drops)
  for key, pattern in (('optim.decay_mask', config.decay_mask), ('optim.freeze', config.freeze)):
    _check_names(key, pattern or '', model)
  frozen = _frozen(params, config.freeze) if config.freeze else None
  decays = _matching(params, config.decay_mask, 'optim.decay_mask')
  clip = optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm)
  decays = decays if frozen is None else _without_frozen(decays, frozen)
  decay = optax.add_decayed_weights(_weight_decay(config, num_steps), decays)
  direction = OPTIMIZERS[config.name](decay, model, **config.options)
  scale = optax.stateless(lambda updates, _: scale_layers(updates, layer_decay, model))
  transform = optax.chain(clip, direction, optax.scale_by_learning_rate(schedule), scale)
  return Optimizer(transform if frozen is None else skip_frozen(transform, frozen), schedule, frozen)


def _weight_decay(config: OptimConfig, num_steps: int) -> float | Callable[[Any], jax.Array]:
  """Return the weight decay, or a function of the step if it changes."""
  first, last = config.weight_decay, config.end_weight_decay
  if last is None or last == first:
    return first
  return lambda step: last + (first - last) * (1 + jnp.cos(math.pi * step / num_steps)) / 2


def scale_layers(updates: Any, factor: float | None, model: ParamTree) -> Any:
  """Multiply each update by factor^k, where k is the number of layers above it; None: return the updates.

  Args:
    updates: tree of the parameters; in a stack of layers each is scaled by its own.
    factor: `OptimConfig.layer_decay`.
    model: what is known of the parameters; those of an objective are the top layer's.
  """
  if factor is None:
    return updates
  top = model.num_layers + 1

  def scaled(key_path: jax.tree_util.KeyPath, update: jax.Array) -> jax.Array:
    path = path_of(key_path)
    layer = top if path.startswith(f'{OBJECTIVE}/') else model.layer_of(path)
    if layer is not None:
      return update * factor ** (top - layer)
    powers = factor ** jnp.arange(model.num_layers, 0, -1, dtype=jnp.float32)
    return update * powers.reshape(-1, *[1] * (update.ndim - 1))

  return jax.tree_util.tree_map_with_path(scaled, updates)


def skip_frozen(transform: optax.GradientTransformation, frozen: Any) -> optax.GradientTransformation:
  """Apply a transformation to the trained parameters only: it never sees the others, whose updates are zero.

  Its state is that for all parameters without the leaves of the frozen ones, at the same paths
  (`optax.selective_transform` would move them): checkpoints with state for all parameters, which version 0.1 wrote, can
  be restored in part.

  Args:
    transform: what to apply.
    frozen: tree of booleans, True for a parameter that is not trained.
  """

  def init(params: Any) -> Any:
    return transform.init(_without_frozen(params, frozen))

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    trained, state = transform.update(_without_frozen(updates, frozen), state, _without_frozen(params, frozen))
    trained = flatten(trained)
    fill = lambda key_path, update: trained.get(path_of(key_path), jnp.zeros_like(update))
    return jax.tree_util.tree_map_with_path(fill, updates), state

  return optax.GradientTransformation(init, update)


def _without_frozen(tree: Any, frozen: Any) -> Any:
  """Return a tree without the leaves that are frozen, nor the dicts that hold nothing else."""
  if not isinstance(tree, dict):  # a dict loses keys, as Muon would take a None in place of a leaf for a parameter
    return None if tree is None else jax.tree.map(lambda stop, x: None if stop else x, frozen, tree)
  return {name: _without_frozen(subtree, frozen[name]) for name, subtree in tree.items()
          if not all(jax.tree.leaves(frozen[name]))}


def _check_names(key: str, pattern: str, model: ParamTree) -> None:
  """Raise UserError if a pattern has a name of version 0.1: it would silently match less than it did."""
  for old, new in model.renamed.items():
    if re.search(rf'(?<!\w){old}\b', pattern):
      raise UserError(f'{key}: {pattern!r} names {old}, which is {new} since version 0.2')


def _frozen(params: Any, pattern: str) -> Any:
  tree = _matching(params, pattern, 'optim.freeze')
  if all(jax.tree.leaves(tree)):
    raise UserError(f'optim.freeze: {pattern!r} freezes every parameter; nothing is left to train')
  return tree


def _matching(params: Any, pattern: str, key: str) -> Any:
  """Return a tree of booleans: whether a parameter's path matches.

  Args:
    params: tree of parameters.
    pattern: regular expression that has to match the whole path.
    key: of the config, for errors.
  """
  compiled = re.compile(pattern)
  tree = jax.tree_util.tree_map_with_path(lambda key_path, _: bool(compiled.fullmatch(path_of(key_path))), params)
  if not any(jax.tree.leaves(tree)):
    raise UserError(f'{key}: {pattern!r} matches no parameter; choose from {sorted(flatten(params))}')
  return tree
