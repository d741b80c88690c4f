"""The health panel: attention, tokens, hidden units, gradients and updates of a step in numbers, layer by layer."""
from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp
import optax

from vit_jax.base.errors import UserError
from vit_jax.base.sections import off
from vit_jax.distributed.strategy import Strategy
from vit_jax.models.base import Model, path_of
from vit_jax.models.encoder import Block, BlockModel
from vit_jax.statistics import attention, tokens, units
from vit_jax.training.state import OBJECTIVE, TrainState, model_params
from vit_jax.training.step import Gradients

EXAMPLES = 32  # of the batch, evenly spaced; at least one per shard

Panel = Callable[[TrainState, Mapping[str, Array]], dict[str, Array]]
OfExamples = dict[str, Array]  # statistics of images, the first axis is that of the images


@dataclasses.dataclass(frozen=True)
class HealthConfig:
  """Section `health` of a recipe: statistics of a step, logged as 'health/STATISTIC/LAYER'; see docs/evaluating.md.

  Attributes:
    every: evaluations from one panel to the next; the last step has one, too. None, or 0: no panel.
  """
  every: int | None = off(0)

  def __post_init__(self):
    if self.every is not None and self.every < 1:
      raise UserError(f'health.every: expected a number of evaluations, or 0 for no panel; got {self.every}')


def make_panel(model: Model, merge: Callable[[Any], Any], gradients: Gradients, optimizer: optax.GradientTransformation,
               normalize: Callable[[Array], Array], strategy: Strategy) -> Panel:
  """Build the panel of a step.

  Gradients and updates are those of the step, of its whole batch. Attention, tokens, hidden units and logits are those
  of `EXAMPLES` of its images, neither mixed nor with dropout, with the parameters before the step.

  Args:
    model: what is known of the parameters.
    merge: params → model.
    gradients: first half of the step.
    optimizer: its second half.
    normalize: uint8 images → float32.
    strategy: how the step is spread over devices.

  Returns:
    (state, batch) → {'STATISTIC/LAYER': () float32}, the same on all devices; the state is that before the step.
  """

  def panel(state: TrainState, batch: Mapping[str, Array]) -> dict[str, Array]:
    grads, *_ = gradients(state, batch)
    updates, _ = optimizer.update(grads, state.opt_state, state.params)
    shards_here = 1 if strategy.axis_name else strategy.num_shards
    images = normalize(_sample(batch['image'], strategy.num_shards, shards_here))
    found = strategy.gather(of_examples(merge(model_params(state.params)), images))
    return {**summarize(found, model), **of_parameters(state.params, grads, updates, model)}

  return panel


def _sample(images: Array, num_shards: int, shards_here: int) -> Array:
  """Return some images of the batch, evenly spaced: the same on any number of devices that divides `EXAMPLES`.

  Args:
    images: (B, …), in `shards_here` shards.
    num_shards: of the global batch.
    shards_here: those that are seen here.
  """
  by_shard = images.reshape(shards_here, -1, *images.shape[1:])
  count = min(by_shard.shape[1], max(1, EXAMPLES // num_shards))
  spaced = by_shard[:, ::by_shard.shape[1] // count][:, :count]
  return spaced.reshape(-1, *images.shape[1:])


def of_examples(model: Model, images: Array) -> OfExamples:
  """Return what a model computes for normalized images: arrays (images, layers, …), or (images, 1) for the logits.

  Token norms have num_layers + 1 layers: the first are those before the first block.
  """
  if isinstance(model, BlockModel):
    last, found = model.collect(images, lambda block, x, **shared: _of_block(model, block, x, **shared))
    found = {name: jnp.moveaxis(x, 0, 1) for name, x in found.items()}
    found['token_norms'] = jnp.concatenate([found['token_norms'], tokens.norms(last)[:, None]], axis=1)
    found.update(_of_norms(found.pop('token_norms')))
  else:
    layers = [_of_norms(tokens.norms(model.features(images, layer))) for layer in range(model.num_layers + 1)]
    found = jax.tree.map(lambda *x: jnp.stack(x, axis=1), *layers)
  if model.num_classes is not None:
    logits = model(images)
    found.update(logit_square=jnp.square(logits).mean(axis=-1, keepdims=True),
                 logit_max=jnp.abs(logits).max(axis=-1, keepdims=True))
  return found


def _of_block(model: Model, block: Block, x: Array, **shared: Any) -> OfExamples:
  """Return the statistics of a block and of the tokens before it."""
  slopes = [units.largest_slopes(slopes) for slopes in block.slopes(x, **shared)]
  found = dict(token_norms=tokens.norms(x), slopes=jnp.concatenate(slopes, axis=-1))
  try:
    weights = block.attention_weights(x, **shared)
  except UserError:  # it has none
    return found
  grid, patch, prefix = model.config.grid, model.config.patch_pixels, model.config.num_prefix_tokens
  return dict(found, entropy=attention.entropy(weights).mean(axis=-1),  # over the heads
              distance=attention.mean_distance(weights, grid, patch, prefix).mean(axis=-1))


def _of_norms(norms: Array) -> OfExamples:
  return dict(token_norm=norms.mean(axis=-1), token_norm_max=norms.max(axis=-1))


def summarize(found: OfExamples, model: Model) -> dict[str, Array]:
  """Return {'STATISTIC/LAYER': number} of what `of_examples` returned for all images; 'all' is the mean of layers."""
  found, values = dict(found), {}
  if 'logit_max' in found:
    values['logits/max'] = found.pop('logit_max').max()
    values['logits/rms'] = jnp.sqrt(found.pop('logit_square').mean())
  if 'slopes' in found:
    dead = units.dead_share(jnp.moveaxis(found.pop('slopes'), 0, -2))  # of tokens of all images
    values.update(_by_layer('dead_units', dead, model))
  largest = found.pop('token_norm_max').max(axis=0)
  values.update(_by_layer('token_norm_max', largest, model), **{'token_norm_max/all': largest.max()})
  for name, x in found.items():
    values.update(_by_layer(name, x.mean(axis=0), model))
  return values


def _by_layer(name: str, values: Array, model: Model) -> dict[str, Array]:
  """Return {'NAME/LAYER': value} of values that end with the last block, and their mean."""
  first = model.num_layers + 1 - len(values)
  named = {f'{name}/{layer_name(first + i, model)}': value for i, value in enumerate(values)}
  return dict(named, **{f'{name}/all': values.mean()})


def of_parameters(params: Any, grads: Any, updates: Any, model: Model) -> dict[str, Array]:
  """Return the norm of each layer's gradient, and of its update relative to that of its parameters.

  Args:
    params: before the step.
    grads: of the whole batch, before clipping.
    updates: what the step adds to the parameters: after clipping, learning rate, weight decay and layer decay.
    model: what is known of the parameters.
  """
  squares = {name: squares_by_layer(tree, model) for name, tree in dict(params=params, grads=grads,
                                                                        updates=updates).items()}
  found = {}
  for layer, square in squares['grads'].items():
    found[f'grad_norm/{layer}'] = jnp.sqrt(square)
    found[f'update_ratio/{layer}'] = jnp.sqrt(squares['updates'][layer] / squares['params'][layer])
  return found


def squares_by_layer(tree: Any, model: Model) -> dict[str, Array]:
  """Return {layer: sum of squares} of a tree of parameters, and that of the whole tree as 'all'."""
  found: dict[str, Array] = {'all': jnp.zeros((), jnp.float32)}
  for key_path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    path, squares = path_of(key_path), jnp.square(leaf.astype(jnp.float32))
    if path.startswith(f'{OBJECTIVE}/'):
      parts = {OBJECTIVE: squares.sum()}
    elif (layer := model.layer_of(path)) is not None:
      parts = {layer_name(layer, model): squares.sum()}
    else:  # stacked
      parts = {layer_name(i + 1, model): block.sum() for i, block in enumerate(squares)}
    for name, part in [*parts.items(), ('all', sum(parts.values(), jnp.zeros(())))]:
      found[name] = found.get(name, 0.0) + part
  return found


def layer_name(layer: int, model: Model) -> str:
  """Return 'stem', 'block_01' (a ResNet's first stage) or 'head'; see `ParamTree`."""
  return 'stem' if layer == 0 else 'head' if layer > model.num_layers else f'block_{layer:02d}'
