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
from vit_jax.models.base import Block, BlockModel, Model, path_of
from vit_jax.statistics import attention, tokens, units
from vit_jax.training.state import OBJECTIVE, TrainState, model_params
from vit_jax.training.step import BatchSplit, Gradients

EXAMPLES = 32  # of the batch, evenly spaced; at least one per shard

Panel = Callable[[TrainState, Mapping[str, Array]], dict[str, Array]]
# Statistics of examples: arrays (examples, …).
_OfExamples = dict[str, Array]


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
               normalize: Callable[[Array], Array], strategy: Strategy, split: BatchSplit) -> Panel:
  """Build the panel of a step.

  Gradients and updates are those that the step takes, of its whole batch. Attention, tokens, hidden units and logits are
  those of `EXAMPLES` of its images, neither mixed nor with dropout, with the parameters before the step.

  Args:
    model: what is known of the parameters.
    merge: params → model.
    gradients: first half of the step.
    optimizer: its second half.
    normalize: uint8 images → float32.
    strategy: how the step is spread over devices.
    split: how its batch is split.

  Returns:
    (state, batch) → {'STATISTIC/LAYER': () float32}, the same on all devices; the state is that before the step.
  """

  def panel(state: TrainState, batch: Mapping[str, Array]) -> dict[str, Array]:
    grads, *_ = gradients(state, batch)
    updates, _ = optimizer.update(grads, state.opt_state, state.params)
    images = normalize(_sample(batch['image'], strategy.num_shards, split.num_shards))
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


def of_examples(model: Model, images: Array) -> _OfExamples:
  """Return what a model computes for normalized images, in arrays whose first axis is that of the images."""
  if isinstance(model, BlockModel):
    last, found = model.collect(images, lambda block, x, **shared: _of_block(model, block, x, **shared))
    found = {name: jnp.moveaxis(x, 0, 1) for name, x in found.items()}
    before, after = found['token_norm'], tokens.norms(last)[:, None]
    found['token_norm'] = jnp.concatenate([before, after], axis=1)
  else:
    by_layer = [tokens.norms(model.features(images, layer)) for layer in range(model.num_layers + 1)]
    found = {'token_norm': jnp.stack([x.mean(axis=-1) for x in by_layer], axis=1)}
  if model.num_classes is not None:
    logits = model(images)
    found.update(logit_square=jnp.square(logits).mean(axis=-1), logit_max=jnp.abs(logits).max(axis=-1))
  return found


def _of_block(model: Model, block: Block, x: Array, **shared: Any) -> _OfExamples:
  """Return the statistics of a block and of the tokens before it."""
  found = {'token_norm': tokens.norms(x), 'slopes': jnp.concatenate(
      [units.largest_slopes(slopes) for slopes in block.slopes(x, **shared)], axis=-1)}
  try:
    weights = block.attention_weights(x, **shared)
  except UserError:  # it has none
    return found
  grid, patch, prefix = model.config.grid, model.config.patch_pixels, model.config.num_prefix_tokens
  found['entropy'] = attention.entropy(weights).mean(axis=-1)  # over the heads
  found['distance'] = attention.mean_distance(weights, grid, patch, prefix).mean(axis=-1)
  return found


def summarize(found: _OfExamples, model: Model) -> dict[str, Array]:
  """Return {'STATISTIC/LAYER': number} of what `of_examples` returned for all images."""
  return {}


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
  found: dict[str, Array] = {}
  for key_path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    path, squares = path_of(key_path), jnp.square(leaf.astype(jnp.float32))
    if path.startswith(f'{OBJECTIVE}/'):
      parts = {OBJECTIVE: squares.sum()}
    elif (layer := model.layer_of(path)) is not None:
      parts = {layer_name(layer, model): squares.sum()}
    else:
      by_block = squares.reshape(model.num_layers, -1).sum(axis=1)
      parts = {layer_name(number + 1, model): by_block[number] for number in range(model.num_layers)}
    found.update({name: found.get(name, 0.0) + part for name, part in parts.items()})
  return dict(found, all=sum(found.values()))


def layer_name(layer: int, model: Model) -> str:
  """Return 'stem', 'block_01' (a ResNet's first stage) or 'head'; see `ParamTree`."""
  return 'stem' if layer == 0 else 'head' if layer > model.num_layers else f'block_{layer:02d}'
