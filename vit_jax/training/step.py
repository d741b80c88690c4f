"""One optimizer step: a pure function of (state, batch)."""
from clu import metrics as clu_metrics
import flax
from flax import nnx
import jax
import jax.numpy as jnp
import optax

from vit_jax.models import encoder
from vit_jax.distributed import batch_split as shares


@flax.struct.dataclass
class TrainMetrics(clu_metrics.Collection):
  """Means over the steps since the last log line."""
  loss: clu_metrics.Average.from_output('loss')
  accuracy: clu_metrics.Average.from_output('accuracy')
  grad_norm: clu_metrics.Average.from_output('grad_norm')


def example_keys(seed, step, rng):
  """One key for each example, from the run's seed, the step and the example's own number.

  Which device or host holds the example has no part in it: one device and many draw the same masks.
  """
  key = jax.random.fold_in(jax.random.key(seed), step)
  return jax.vmap(lambda number: jax.random.fold_in(key, number))(rng)


def hash_examples(seen, batch, axis_name):
  """Adds a batch to the run's hash: the order of the batches counts, an example's place within its batch does not."""
  mixed = ((batch['id'].astype(jnp.uint32) + 1) * (batch['rng'] | 1)).sum(dtype=jnp.uint32)
  return (seen ^ _over_devices(jax.lax.psum, mixed, axis_name)) * jnp.uint32(16777619)  # the prime of FNV-1a


def make_train_step(graphdef, objective, optimizer, normalize, *, seed, accumulate, ema_decay, axis_name, by_block=False,
                    frozen=None, mix=None, shards=1):
  """Builds the step.

  Args:
    graphdef: the model's NNX graph definition.
    objective: see `objectives`.
    optimizer: an optax transformation.
    normalize: from uint8 to float images.
    seed: of dropout.
    accumulate: number of equal micro-batches the device's share of a batch is cut in.
    ema_decay: decay of the average a step, or None.
    axis_name: the device axis to average over, or None.
    by_block: whether the model takes the blocks' parameters one by one (it is unrolled), and so gives their gradients.
    frozen: tree of booleans, True where a parameter is not trained (its gradient is zero, and costs nothing); or None.
    mix: mixes the examples of a normalised batch, see `mix`; or None.
    shards: on how many devices the examples that the step sees lie, in equal contiguous parts.

  Returns:
    step(state, batch) → (state, TrainMetrics); batch has image (B, rows, columns, channels) uint8, label and id
    (B,) int32, and rng (B,) uint32.
  """

  def loss_and_metrics(params, batch, keys):
    batch = dict(batch, image=normalize(batch['image']))
    batch = batch if mix is None else mix(batch, keys)
    if frozen is not None:
      params = jax.tree.map(lambda stop, x: jax.lax.stop_gradient(x) if stop else x, frozen, params)
    losses, values = objective(nnx.merge(graphdef, params), batch, keys)
    # Parts of the batch's means: gradients of micro-batches are then summed, and never scaled in a pass of their own.
    mean = lambda x: x.mean() / accumulate
    return mean(losses), {name: mean(value) for name, value in values.items()}

  def step(state, batch):
    keys = example_keys(seed, state.step, batch['rng'])
    gradient = jax.value_and_grad(loss_and_metrics, has_aux=True)
    (loss, values), grads = _accumulate(gradient, state.params, batch, keys, accumulate, by_block, shards)
    loss, values, grads = _over_devices(jax.lax.pmean, (loss, values, grads), axis_name)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = None if ema_decay is None else optax.incremental_update(params, state.ema, 1.0 - ema_decay)
    metrics = TrainMetrics.single_from_model_output(loss=loss, grad_norm=optax.tree.norm(grads), **values)
    seen = hash_examples(state.seen, batch, axis_name)
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state, ema=ema, seen=seen), metrics

  return step


def _over_devices(reduce, tree, axis_name):
  return tree if axis_name is None else reduce(tree, axis_name)


def _accumulate(gradient, params, batch, keys, count, by_block, shards):
  """The sum of `gradient` over `count` equal micro-batches."""
  # Behind a barrier TPU's compiler cuts and casts a block's parameters in one pass; else it casts, then cuts.
  given = jax.lax.optimization_barrier(encoder.apart(params)) if by_block else params
  if count == 1:
    values, grads = gradient(given, batch, keys)
    return values, encoder.stacked(grads, params)
  parts = shares.cut((batch, keys), count, shards)
  add = lambda total, part: (jax.tree.map(jnp.add, total, gradient(given, *part)), None)
  like = jax.eval_shape(gradient, given, *jax.tree.map(lambda x: x[0], parts))
  (values, grads), _ = jax.lax.scan(add, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like), parts)
  return values, encoder.stacked(grads, params)
