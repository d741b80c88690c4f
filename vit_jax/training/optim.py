"""Optimizers: a table over optax, the same clipping and weight-decay mask for all."""
import dataclasses
import inspect
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from vit_jax.base.choices import choose
from vit_jax.base.durations import Duration
from vit_jax.base.errors import UserError
from vit_jax.models.encoder import name_of
from vit_jax.training import schedules
from vit_jax.training.schedules import SHAPES


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
    timescale: steps over which the 'rsqrt' schedule falls by the square root of two (big_vision: 10,000).
    weight_decay: w; each step moves a parameter p by -lr·w·p in addition to its own update (the form of the paper and of
      flax.optim), except in 'adam', where the decay is part of the gradient, and in 'lamb', where it is part of what is
      scaled to the parameter's norm.
    decay_mask: regular expression; a parameter decays if its whole path, such as 'encoder/blocks/mlp/up/kernel', matches.
      The paper's code decays all; '.*/kernel' exempts biases, LayerNorms, tokens and positions.
    clip_norm: largest global norm of the gradient of the trained parameters; None: no clipping.
    layer_decay: factor between the learning rates of a layer and of the layer below: 1 for the head and the last LayerNorm,
      `layer_decay` for the last block, its power depth + 1 for the patch embedding (arXiv 2106.08254, section 2.4);
      None: the same learning rate for all.
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
  timescale: float = 10_000.0
  weight_decay: float = 0.0
  decay_mask: str = '.*'
  clip_norm: float | None = 1.0
  layer_decay: float | None = None
  freeze: str | None = None
  options: dict[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    make = choose(OPTIMIZERS, self.name, 'optim.name')
    choose(SHAPES, self.schedule, 'optim.schedule')
    for name in ('peak_lr', 'end_lr', 'weight_decay'):
      _check_number(name, getattr(self, name), positive=False)
    for name in ('timescale', 'clip_norm', 'layer_decay'):
      if getattr(self, name) is not None:
        _check_number(name, getattr(self, name), positive=True)
    valid = [p.name for p in inspect.signature(make).parameters.values() if p.kind is p.KEYWORD_ONLY]
    if unknown := sorted(set(self.options) - set(valid)):
      raise UserError(f'optim.options: {self.name} has no {unknown}; valid options are {valid}')


def _check_number(name: str, number: float, *, positive: bool) -> None:
  if not math.isfinite(number) or number < 0 or (positive and number == 0):
    raise UserError(f'optim.{name}: must be {"positive" if positive else "at least 0"}, got {number}')


def build(total_steps, *, name: str = 'adamw', peak_lr: float = 1e-3, schedule: str = 'cosine', warmup: int = 0,
          cooldown: int = 0, end_lr: float = 0.0, timescale: float = 10_000, weight_decay: float = 0.0,
          decay_mask: str = '.*', clip_norm: float | None = 1.0, layer_decay: float | None = None,
          freeze: str | None = None, options: dict | None = None):
  """Builds the optimizer and its schedule.

  Args:
    total_steps: length of the run.
    name: a name of `OPTIMIZERS`.
    peak_lr, schedule, warmup, cooldown, end_lr, timescale: see `schedules.build`.
    weight_decay: w; a step moves p by -lr·w·p besides its own update (flax.optim's and the paper's form), but in 'adam',
      where it is part of the gradient, and 'lamb', where it is part of what is scaled to the parameter's norm.
    decay_mask: regular expression; parameters whose name, such as 'encoder/blocks/mlp/up/kernel', matches it as a
      whole decay. The paper's code decays all; '.*/kernel' spares biases, LayerNorm, tokens and positions.
    clip_norm: largest global norm of the gradient of what is trained, or None.
    layer_decay: factor of the learning rate from each layer to the one below: the head and the last LayerNorm have 1, the
      last block `layer_decay`, the patch embedding its power depth + 1 (arXiv 2106.08254, section 2.4); None is 1.
    freeze: regular expression; parameters whose name matches it as a whole stay as they are. '(?!head/).*' is a linear
      probe.
    options: arguments of the chosen row of `OPTIMIZERS`.

  Returns:
    (optax transformation, schedule(step) → learning rate).

  Raises:
    ValueError: an unknown name or option, a mask that matches nothing.
  """
  make = choose(OPTIMIZERS, name, 'optimizer')
  _check_numbers(peak_lr=peak_lr, end_lr=end_lr, weight_decay=weight_decay, timescale=timescale,
                 **{'clip_norm': clip_norm} if clip_norm is not None else {},
                 **{'layer_decay': layer_decay} if layer_decay is not None else {})
  options = dict(options or {})
  valid = [p.name for p in inspect.signature(make).parameters.values() if p.kind is p.KEYWORD_ONLY]
  if unknown := sorted(set(options) - set(valid)):
    raise ValueError(f'optim.options: {name} has no {unknown}; valid options are {valid}')
  rate = schedules.build(total_steps, name=schedule, peak_lr=peak_lr, end_lr=end_lr, warmup=warmup, cooldown=cooldown,
                         timescale=timescale)
  clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
  decay = optax.add_decayed_weights(weight_decay, lambda params: decay_tree(params, decay_mask))
  after = optax.stateless(lambda updates, params: _shape_updates(updates, params, layer_decay, freeze))
  return optax.chain(clip, make(decay, **options), optax.scale_by_learning_rate(rate), after), rate


def _check_numbers(**numbers):
  for name, number in numbers.items():
    positive = name in ('clip_norm', 'layer_decay', 'timescale')
    if not math.isfinite(number) or number < 0 or (positive and number == 0):
      raise ValueError(f"optim.{name} must be {'positive' if positive else 'at least 0'}, got {number}")


def _shape_updates(updates, params, layer_decay, freeze):
  """What happens to updates after the learning rate: less for lower layers, none for what is frozen."""
  if layer_decay is not None:
    updates = scale_layers(updates, layer_decay)
  # Frozen parameters have zero gradients, but weight decay would move them.
  return jax.tree.map(lambda x, frozen: jnp.zeros_like(x) if frozen else x, updates, frozen_tree(params, freeze))


def decay_tree(params, pattern):
  """The tree of booleans that says which parameters decay."""
  return _matching(params, pattern, 'optim.decay_mask')


def frozen_tree(params, pattern):
  """The tree of booleans that says which parameters are frozen; at least one is trained."""
  tree = _matching(params, pattern, 'optim.freeze') if pattern else jax.tree.map(lambda _: False, params)
  if all(jax.tree.leaves(tree)):
    raise ValueError(f'optim.freeze={pattern!r} freezes every parameter; nothing is left to train')
  return tree


def scale_layers(updates, factor):
  """Multiplies updates by factor^k, k the number of layers above; a stack of blocks, (depth, …), layer by layer."""
  depth = jax.tree.leaves(updates['encoder']['blocks'])[0].shape[0]

  def scaled(path, update):
    name = name_of(path)
    if name.startswith('encoder/blocks/'):
      powers = factor ** jnp.arange(depth, 0, -1, dtype=jnp.float32)
      return update * powers.reshape(-1, *[1] * (update.ndim - 1))
    above = 0 if name.split('/')[0] in ('norm', 'pool', 'pre_logits', 'head') else depth + 1
    return update * factor ** above

  return jax.tree_util.tree_map_with_path(scaled, updates)


def _matching(params, pattern, key):
  try:
    compiled = re.compile(pattern)
  except re.error as error:
    raise ValueError(f"{key}={pattern!r} is no regular expression: {error}; any name is '.*', not '*'") from error
  tree = jax.tree_util.tree_map_with_path(lambda path, _: bool(compiled.fullmatch(name_of(path))), params)
  if not any(jax.tree.leaves(tree)):
    names = [name_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    raise ValueError(f'{key}={pattern!r} matches no parameter; there are {sorted(names)}')
  return tree


def layerwise(optimizer):
  """Lets `optimizer` see every encoder block by itself, although their parameters are stacked.

  For optimizers whose update mixes the elements of a parameter (norms, factored moments, matrix products).
  """
  split = lambda tree: (tree['encoder']['blocks'], _without_blocks(tree))

  def init(params):
    blocks, rest = split(params)
    return jax.vmap(optimizer.init)(blocks), optimizer.init(rest)

  def update(grads, state, params):
    (grad_blocks, grad_rest), (blocks, rest) = split(grads), split(params)
    block_updates, block_state = jax.vmap(optimizer.update)(grad_blocks, state[0], blocks)
    updates, rest_state = optimizer.update(grad_rest, state[1], rest)
    return dict(updates, encoder=dict(updates['encoder'], blocks=block_updates)), (block_state, rest_state)

  return optax.GradientTransformation(init, update)


def _without_blocks(tree):
  return dict(tree, encoder={name: part for name, part in tree['encoder'].items() if name != 'blocks'})


def adamw(decay, *, b1=0.9, b2=0.999, eps=1e-8, mu_dtype=None):
  """Adam with decoupled weight decay (arXiv 1711.05101); `mu_dtype='bfloat16'` halves the first moment."""
  return optax.chain(optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype), decay)


def adam(decay, *, b1=0.9, b2=0.999, eps=1e-8, mu_dtype=None):
  """Adam (arXiv 1412.6980); its weight decay is the classic L2 penalty, part of the gradient."""
  return optax.chain(decay, optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype))


def sgd(decay, *, momentum=0.9, nesterov=False, accumulator_dtype='bfloat16'):
  """SGD with momentum, kept in bfloat16 as in the authors' fine-tuning code; the decay is decoupled."""
  return optax.chain(optax.trace(momentum, nesterov, accumulator_dtype=accumulator_dtype), decay)


def lion(decay, *, b1=0.9, b2=0.99, mu_dtype=None):
  """Lion (arXiv 2302.06675)."""
  return optax.chain(optax.scale_by_lion(b1, b2, mu_dtype=mu_dtype), decay)


def adafactor(decay, *, decay_rate=0.8, momentum=None, min_dim_size_to_factor=32):
  """Adafactor (arXiv 1804.04235): factored second moments, update scaled by the parameter's size.

  Attention kernels, (width, heads, head_dim), factor only where head_dim, 64, reaches `min_dim_size_to_factor`.
  """
  direction = optax.adafactor(None, min_dim_size_to_factor, decay_rate, momentum=momentum)
  return optax.chain(layerwise(direction), optax.scale(-1.0), decay)  # optax.adafactor already descends


def lamb(decay, *, b1=0.9, b2=0.999, eps=1e-6):
  """LAMB (arXiv 1904.00962): Adam whose update is scaled to each parameter's norm, layer by layer."""
  return optax.chain(optax.scale_by_adam(b1, b2, eps), decay, layerwise(optax.scale_by_trust_ratio()))


def muon(decay, *, beta=0.95, ns_steps=5, nesterov=True):
  """Muon (Jordan et al., 2024) on the matrices of the encoder blocks, Adam (NAdam with `nesterov`) on all else."""
  direction = contrib.muon(1.0, ns_steps=ns_steps, beta=beta, nesterov=nesterov,
                           muon_weight_dimension_numbers=_matrices)
  return optax.chain(direction, optax.scale(-1.0), decay)  # contrib.muon already descends


def _matrices(params):
  """Which axes of a stacked kernel are the matrix's: q, k, v are (depth, width, heads, head_dim), out the reverse."""
  inner = contrib.MuonDimensionNumbers
  axes = {'query': inner(1, (2, 3)), 'key': inner(1, (2, 3)), 'value': inner(1, (2, 3)), 'out': inner((1, 2), 3),
          'up': inner(1, 2), 'down': inner(1, 2)}

  def choose_axes(path, _):
    *_, module, leaf = name_of(path).split('/') if len(path) > 1 else ('', '')
    return axes.get(module) if leaf == 'kernel' and name_of(path).startswith('encoder/blocks/') else None

  return jax.tree_util.tree_map_with_path(choose_axes, params)


# Each row takes the weight-decay transformation and gives a direction of ascent, which `build` scales by -lr.
OPTIMIZERS = {
    'adafactor': adafactor,
    'adam': adam,
    'adamw': adamw,
    'lamb': lamb,
    'lion': lion,
    'muon': muon,
    'sgd': sgd,
}
