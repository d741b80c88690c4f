"""One optimizer step: a pure function of (state, batch)."""
from clu import metrics as clu_metrics
import flax
from flax import nnx
import jax
import jax.numpy as jnp
import optax

from vit_jax.training import optim
from vit_jax.training import shares


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


def make_train_step(graphdef, objective, optimizer, normalize, *, seed, accumulate, ema_decay, axis_name, frozen=None,
                    mix=None, shards=1):
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
      params = jax.tree.map(lambda x, stop: jax.lax.stop_gradient(x) if stop else x, params, frozen)
    losses, values = objective(nnx.merge(graphdef, params), batch, keys)
    return losses.mean(), {name: value.mean() for name, value in values.items()}

  def step(state, batch):
    keys = example_keys(seed, state.step, batch['rng'])
    gradient = jax.value_and_grad(loss_and_metrics, has_aux=True)
    (loss, values), grads = _accumulate(gradient, state.params, batch, keys, accumulate, shards)
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


def _accumulate(gradient, params, batch, keys, count, shards):
  """The mean of `gradient` over `count` equal micro-batches: the same as over the whole."""
  if count == 1:
    return gradient(params, batch, keys)
  parts = shares.cut((batch, keys), count, shards)

  def add(total, part):
    # Tied to the sum, the parameters are no constants of the loop: else XLA casts all of them ahead, in passes of their own.
    here, total = jax.lax.optimization_barrier((params, total))
    return jax.tree.map(jnp.add, total, _by_block(gradient(here, *part))), None

  like = jax.eval_shape(lambda part: _by_block(gradient(params, *part)), jax.tree.map(lambda x: x[0], parts))
  total, _ = jax.lax.scan(add, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like), parts)
  join = lambda leaf: (jnp.stack(leaf) if isinstance(leaf, tuple) else leaf) / count
  values, grads = total
  return jax.tree.map(lambda x: x / count, values), jax.tree.map(join, grads, is_leaf=lambda x: isinstance(x, tuple))


def _by_block(gradient):
  values, grads = gradient
  cut = lambda path, leaf: tuple(leaf) if optim.name_of(path).startswith('encoder/blocks/') else leaf
  return values, jax.tree_util.tree_map_with_path(cut, grads)
