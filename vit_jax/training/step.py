"""One optimizer step: a pure function of (state, batch)."""
from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vit_jax.distributed import batch_split
from vit_jax.objectives.base import Metric, Objective, mean_metric
from vit_jax.training.optim import Optimizer
from vit_jax.training.state import TrainState, model_params, own_params

Metrics = dict[str, Metric]
Step = Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, Metrics]]


@dataclasses.dataclass(frozen=True)
class StepModel:
  """A model as a step sees it: functions of a plain tree of parameters.

  Attributes:
    merge: params → model, images → logits.
    unstack: params → the form the step differentiates, for unrolled models; the identity for others.
    stack: (tree in that form, params) → tree in the form of params.
  """
  merge: Callable[[Any], Any]
  unstack: Callable[[Any], Any]
  stack: Callable[[Any, Any], Any]


@dataclasses.dataclass(frozen=True)
class BatchSplit:
  """How the batch that one call of a step sees is split.

  Attributes:
    num_micro_batches: equal micro-batches per shard, whose gradients are summed.
    num_shards: devices that hold the examples of the call, in equal contiguous parts; 1 under pmap.
    axis_name: device axis to average over, or None if the call sees the whole batch.
  """
  num_micro_batches: int = 1
  num_shards: int = 1
  axis_name: str | None = None


def example_keys(seed: int, step: jax.Array | int, rng: jax.Array) -> jax.Array:
  """Return one PRNG key per example, from the run's seed, the step and the example's own number.

  It does not depend on the device or process that holds the example: one device and many draw the same masks.

  Args:
    seed: of the run.
    step: steps taken so far.
    rng: (B,) uint32, random bits of each example.
  """
  key = jax.random.fold_in(jax.random.key(seed), step)
  return jax.vmap(lambda number: jax.random.fold_in(key, number))(rng)


def hash_examples(seen: jax.Array, batch: Mapping[str, jax.Array], axis_name: str | None) -> jax.Array:
  """Add a batch to the run's hash: the order of the batches counts, an example's place within its batch does not.

  Args:
    seen: () uint32, the hash so far.
    batch: with id and rng, (B,) each.
    axis_name: device axis that the batch is spread over, or None.
  """
  combined = ((batch['id'].astype(jnp.uint32) + 1) * (batch['rng'] | 1)).sum(dtype=jnp.uint32)
  return (seen ^ _over_devices(jax.lax.psum, combined, axis_name)) * jnp.uint32(16777619)  # the prime of FNV-1a


def make_train_step(model: StepModel, objective: Objective, optimizer: Optimizer,
                    prepare: Callable[[Mapping[str, jax.Array], jax.Array], dict[str, jax.Array]], split: BatchSplit, *,
                    seed: int, ema_decay: float | None) -> Step:
  """Build the step.

  Args:
    model: the model, as functions of its parameters.
    objective: what is minimized.
    optimizer: transformation, and which parameters are frozen.
    prepare: (batch, keys) → batch that the objective takes: images normalized, and mixed if the run mixes them.
    split: how the batch is split.
    seed: of dropout, mixing and whatever else is random in a step.
    ema_decay: decay of the moving average per step, or None.

  Returns:
    step(state, batch) → (state, {metric: (sum, count)}); batch has image (B, rows, columns, channels) uint8, label and
    id (B,) int32, and rng (B,) uint32.
  """

  def mean_loss(params: Any, averages: Any, batch: Mapping[str, jax.Array], keys: jax.Array) -> tuple[jax.Array, Any]:
    batch = prepare(batch, keys)
    params = _stop_gradients(params, optimizer.frozen)
    outcome = objective(model.merge(model_params(params)), own_params(params), averages, batch, keys)
    # Parts of the batch's means: gradients of micro-batches are then summed, and never scaled in a pass of their own.
    part = lambda x: x / split.num_micro_batches
    metrics = dict(outcome.metrics, loss=mean_metric(outcome.losses, batch))
    return part(outcome.losses.mean()), (metrics, jax.tree.map(part, outcome.means))

  def step(state: TrainState, batch: Mapping[str, jax.Array]) -> tuple[TrainState, Metrics]:
    keys = example_keys(seed, state.step, batch['rng'])
    gradient = jax.grad(lambda params, *args: mean_loss(params, state.averages or {}, *args), has_aux=True)
    grads, (metrics, means) = _sum_micro_batches(gradient, state.params, batch, keys, model, split)
    grads, means = _over_devices(jax.lax.pmean, (grads, means), split.axis_name)
    metrics = _over_devices(jax.lax.psum, metrics, split.axis_name)
    updates, opt_state = optimizer.transform.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = None if ema_decay is None else optax.incremental_update(params, state.ema, 1.0 - ema_decay)
    averages = None if state.averages is None else objective.update(state.averages, means, params)
    metrics['grad_norm'] = optax.tree.norm(grads), jnp.ones((), jnp.float32)
    seen = hash_examples(state.seen, batch, split.axis_name)
    return dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state, ema=ema, seen=seen,
                               averages=averages), metrics

  return step


def _stop_gradients(params: Any, frozen: Any) -> Any:
  """Return the parameters such that those that are frozen get no gradient, which then costs nothing."""
  if frozen is None:
    return params
  return jax.tree.map(lambda stop, x: jax.tree.map(jax.lax.stop_gradient, x) if stop else x, frozen, params)


def _over_devices(reduce: Callable[[Any, str], Any], tree: Any, axis_name: str | None) -> Any:
  return tree if axis_name is None else reduce(tree, axis_name)


def _sum_micro_batches(gradient: Callable[..., Any], params: Any, batch: Mapping[str, jax.Array], keys: jax.Array,
                       model: StepModel, split: BatchSplit) -> Any:
  """Return the sum of gradient(params, batch, keys) → (grads, aux) over equal micro-batches."""
  given = model.unstack(params)
  if split.num_micro_batches == 1:
    grads, aux = gradient(given, batch, keys)
    return model.stack(grads, params), aux
  parts = batch_split.split_micro_batches((batch, keys), split.num_micro_batches, split.num_shards)

  def add(total: Any, part: Any) -> tuple[Any, None]:
    return jax.tree.map(jnp.add, total, gradient(given, *part)), None

  like = jax.eval_shape(gradient, given, *jax.tree.map(lambda x: x[0], parts))
  (grads, aux), _ = jax.lax.scan(add, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like), parts)
  return model.stack(grads, params), aux
