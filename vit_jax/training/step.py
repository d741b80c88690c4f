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

# Key of a batch that leaves examples out: (B,) float32, 0 for those and B / (B - their number) for the others, so that
# the mean of the weighted losses is that of the others.
WEIGHT = 'weight'

Metrics = dict[str, Metric]
Step = Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, Metrics]]
Gradients = Callable[[TrainState, Mapping[str, jax.Array]], tuple[Any, Metrics, Any]]
ExampleLosses = Callable[[TrainState, Mapping[str, jax.Array]], jax.Array]
Prepare = Callable[[Mapping[str, jax.Array], jax.Array], dict[str, jax.Array]]


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


def make_train_step(model: StepModel, objective: Objective, optimizer: Optimizer, prepare: Prepare, split: BatchSplit,
                    *, seed: int, ema_decay: float | None, ema_warmup: bool = False) -> Step:
  """Build the step.

  Args:
    model: the model, as functions of its parameters.
    objective: what is minimized.
    optimizer: transformation, and which parameters are frozen.
    prepare: (batch, keys) → batch that the objective takes: images normalized, and mixed if the run mixes them.
    split: how the batch is split.
    seed: of dropout, mixing and whatever else is random in a step.
    ema_decay: decay of the moving average per step, or None.
    ema_warmup: whether the decay rises to that, see `ema_weight`.

  Returns:
    step(state, batch) → (state, {metric: (sum, count)}); batch has image (B, rows, columns, channels) uint8, label and
    id (B,) int32, and rng (B,) uint32; and if examples are left out, WEIGHT. A step whose loss or gradient is not
    finite is skipped: it changes only `step` and `seen`, and its metrics are all (0, 0).
  """
  gradients = make_gradients(model, objective, optimizer.frozen, prepare, split, seed=seed)

  def step(state: TrainState, batch: Mapping[str, jax.Array]) -> tuple[TrainState, Metrics]:
    grads, metrics, means = gradients(state, batch)
    metrics['grad_norm'] = optax.tree.norm(grads), jnp.ones((), jnp.float32)
    updates, opt_state = optimizer.transform.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = None
    if ema_decay is not None:
      ema = optax.incremental_update(params, state.ema, ema_weight(ema_decay, ema_warmup, state.step))
    averages = None if state.averages is None else objective.update(state.averages, means, params)
    updated = dataclasses.replace(state, params=params, opt_state=opt_state, ema=ema, averages=averages)
    state, metrics = _skip_unless(_is_sound(metrics, batch, split.axis_name), updated, state, metrics)
    seen = hash_examples(state.seen, batch, split.axis_name)
    return dataclasses.replace(state, step=state.step + 1, seen=seen), metrics

  return step


def _is_sound(metrics: Metrics, batch: Mapping[str, jax.Array], axis_name: str | None) -> jax.Array:
  """Return whether to apply a step, () bool: its loss and gradient are finite, and some example has a weight."""
  sound = jnp.isfinite(metrics['loss'][0]) & jnp.isfinite(metrics['grad_norm'][0])
  if WEIGHT in batch:
    sound &= _over_devices(jax.lax.psum, batch[WEIGHT].sum(), axis_name) > 0
  return sound


def _skip_unless(sound: jax.Array, updated: TrainState, state: TrainState,
                 metrics: Metrics) -> tuple[TrainState, Metrics]:
  """Return the updated state and the metrics; or, of a step that is not sound, the old state and metrics of nothing.

  The selection is part of the update's own pass over the parameters, which reads the old ones anyway. In bfloat16 it
  would be another pass on a TPU: the first moments of AdamW then cost B/16 2.5 % of a step.
  """

  def select_leaf(new: jax.Array, old: jax.Array) -> jax.Array:
    if new.dtype != jnp.bfloat16:
      return jnp.where(sound, new, old)
    return jnp.where(sound, new.astype(jnp.float32), old.astype(jnp.float32)).astype(new.dtype)

  select = lambda new, old: jax.tree.map(select_leaf, new, old)
  state = dataclasses.replace(updated, **{name: select(getattr(updated, name), getattr(state, name))
                                          for name in ('params', 'opt_state', 'ema', 'averages')})
  return state, jax.tree.map(lambda x: jnp.where(sound, x, 0), metrics)


def ema_weight(decay: float, warmup: bool, step: jax.Array) -> jax.Array | float:
  """Return the weight of a step's parameters in the moving average: 1 - decay, or more during a warm-up.

  A warm-up has the decay min(decay, (1 + t) / (10 + t)), t the steps taken before this one, as TensorFlow's
  tf.train.ExponentialMovingAverage has with `num_updates`. After n such steps the initial parameters weigh
  n! 9! / (n + 9)! instead of decay^n: 2e-13 instead of 0.99 after 100 steps of 0.9999.
  """
  return jnp.maximum(1.0 - decay, 9.0 / (10.0 + step)) if warmup else 1.0 - decay


def make_gradients(model: StepModel, objective: Objective, frozen: Any, prepare: Prepare, split: BatchSplit, *,
                   seed: int) -> Gradients:
  """Build the first half of the step: (state, batch) → (gradients, metrics, `Outcome.means`) of the whole batch.

  Args:
    model: the model, as functions of its parameters.
    objective: what is minimized.
    frozen: see `Optimizer.frozen`.
    prepare: see `make_train_step`.
    split: how the batch is split.
    seed: see `make_train_step`.
  """

  def mean_loss(params: Any, averages: Any, batch: Mapping[str, jax.Array], keys: jax.Array) -> tuple[jax.Array, Any]:
    weight = batch.get(WEIGHT)
    batch = prepare(batch if weight is None else dict(batch, mask=weight > 0), keys)
    params = _stop_gradients(params, frozen)
    outcome = objective(model.merge(model_params(params)), own_params(params), averages, batch, keys)
    # Parts of the batch's means: gradients of micro-batches are then summed, and never scaled in a pass of their own.
    part = lambda x: x / split.num_micro_batches
    metrics = dict(outcome.metrics, loss=mean_metric(outcome.losses, batch))
    losses = outcome.losses if weight is None else outcome.losses * weight
    return part(losses.mean()), (metrics, jax.tree.map(part, outcome.means))

  def gradients(state: TrainState, batch: Mapping[str, jax.Array]) -> tuple[Any, Metrics, Any]:
    keys = example_keys(seed, state.step, batch['rng'])
    gradient = jax.grad(lambda params, *args: mean_loss(params, state.for_objective, *args), has_aux=True)
    grads, (metrics, means) = _sum_micro_batches(gradient, state.params, batch, keys, model, split)
    grads, means = _over_devices(jax.lax.pmean, (grads, means), split.axis_name)
    return grads, _over_devices(jax.lax.psum, metrics, split.axis_name), means

  return gradients


def make_losses(model: StepModel, objective: Objective, prepare: Prepare, split: BatchSplit, *,
                seed: int) -> ExampleLosses:
  """Build (state, batch) → (B,) losses of the examples that the call sees, those of the step; arguments as there."""

  def losses(state: TrainState, batch: Mapping[str, jax.Array]) -> jax.Array:
    given = model.unstack(state.params)

    def of_part(part: tuple[Any, jax.Array]) -> jax.Array:
      batch, keys = part
      return objective(model.merge(model_params(given)), own_params(given), state.for_objective, prepare(batch, keys),
                       keys).losses

    keys = example_keys(seed, state.step, batch['rng'])
    parts = batch_split.split_micro_batches((batch, keys), split.num_micro_batches, split.num_shards)
    return batch_split.join_micro_batches(jax.lax.map(of_part, parts), split.num_shards)

  return losses


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
