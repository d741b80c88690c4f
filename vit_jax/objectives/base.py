"""The contract of an objective: what a training step minimizes, and what an evaluation of it reports."""
from collections.abc import Callable, Mapping
import dataclasses
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from vit_jax.base.durations import Pace
from vit_jax.base.preprocessing import Normalization
from vit_jax.data.sources.info import DatasetInfo
from vit_jax.models.base import Model

Metric = tuple[jax.Array, jax.Array]  # (sum, count), both () float32: their ratio is the mean, and both add up

OBJECTIVE = 'objective'  # subtree of the parameters that belong to the objective, if it has any
# Running average that is an EMA of all parameters: evaluations measure it too, and `load(ema=True)` gives it.
EMA = 'ema'
TEACHER = 'teacher'  # parameters of the teacher that a run loaded, next to the running averages


class Outcome(NamedTuple):
  """What an objective makes of a batch.

  Attributes:
    losses: (B,) float32, one per example; the step minimizes their mean.
    metrics: {name: (sum, count)} of whatever else is worth logging; `loss` and `grad_norm` are the step's own.
    means: tree of means over the examples of the batch, for `Objective.update`; averaged over micro-batches and
      devices.
  """
  losses: jax.Array
  metrics: dict[str, Metric]
  means: Any = None


@dataclasses.dataclass(frozen=True)
class Teacher:
  """A trained classifier to learn from, without its parameters: those are in the state, see `TrainState.constants`.

  Attributes:
    merge: params → model.
    image_size: (rows, columns) of the images that it takes.
    normalization: of them.
    loss: what it was trained with, a name of `losses.LOSSES`.
  """
  merge: Callable[[Any], Any]
  image_size: tuple[int, int]
  normalization: Normalization
  loss: str = 'softmax'

  def logits(self, params: Any, pixels: jax.Array) -> jax.Array:
    """Return the logits of images, (B, rows, columns, channels) of 0..1 and any size, in the order of our classes.

    Another size is reached by linear interpolation, antialiased if the images shrink.
    """
    shape = (pixels.shape[0], *self.image_size, pixels.shape[-1])
    pixels = pixels if pixels.shape == shape else jax.image.resize(pixels, shape, 'linear')
    return self.merge(params)(self.normalization.standardize(pixels))


@dataclasses.dataclass(frozen=True)
class ObjectiveContext:
  """What a run gives its objective.

  Attributes:
    info: of the training data.
    model: without values, which answers questions about its shape.
    normalization: what made the images of a batch from pixels in 0..255.
    pace: turns durations into steps.
    num_steps: length of the run.
    teacher: the model that `objective.teacher` names, if the section has that key.
  """
  info: DatasetInfo
  model: Model
  normalization: Normalization
  pace: Pace
  num_steps: int
  teacher: Teacher | None = None


@runtime_checkable
class Objective(Protocol):
  """An objective: a pure function of model and batch, which may own parameters and running averages.

  It is built as Kind(config, context). What is random about an example comes from its key in training, and from its
  `id` in evaluation, see `random_keys`; never from its place in the batch.

  Attributes:
    Config: frozen dataclass of section `objective`.
    reads_labels: whether the model is to have a head for the classes of the data; otherwise it has none.
    metrics: {name of a metric of an `Outcome`, beside the loss: which is better}.
  """
  reads_labels: bool
  metrics: Mapping[str, Literal['max', 'min']]

  def init(self, params: Mapping[str, Any], key: jax.Array) -> tuple[Any, Any]:
    """Return (parameters to train, running averages), both possibly empty trees.

    Args:
      params: of the model.
      key: PRNG key.

    The parameters become the subtree `objective` of the trained parameters, so that optimizer, EMA, sharding and
    checkpoints treat them like the model's own.
    """
    ...

  def __call__(self, model: Any, own: Any, averages: Any, batch: Mapping[str, Any],
               keys: jax.Array | None) -> Outcome:
    """Compute the losses of a batch.

    Args:
      model: images → logits.
      own: the objective's parameters, from `init` or trained since.
      averages: its running averages, constant during a step; and, if the run loaded a teacher, its parameters as
        TEACHER.
      batch: `image` (B, rows, columns, channels) float32, normalized; `label`, `id`; in evaluation also `mask` (B,)
        bool, False for padding.
      keys: (B,) PRNG keys, one per example, in training; None in evaluation.
    """
    ...

  def update(self, averages: Any, means: Any, params: Any) -> Any:
    """Return the running averages after a step.

    Args:
      averages: before the step.
      means: `Outcome.means` of the whole batch.
      params: all parameters after the step.
    """
    ...


def random_keys(batch: Mapping[str, Any], keys: jax.Array | None, stream: int) -> jax.Array:
  """Return (B,) PRNG keys for the random choices of an objective, the same wherever an example is.

  Args:
    batch: with `id`, (B,) integers.
    keys: of the examples in training; None in evaluation, where an example's key follows from its id.
    stream: a number of the objective's own; layers of models use small ones.
  """
  if keys is None:
    keys = jax.vmap(lambda number: jax.random.fold_in(jax.random.key(0), number))(batch['id'])
  return jax.vmap(lambda key: jax.random.fold_in(key, stream))(keys)


def mean_metric(values: jax.Array, batch: Mapping[str, Any]) -> Metric:
  """Return the (sum, count) of (B,) values over the examples of a batch, without its padding."""
  mask = batch.get('mask')
  if mask is None:
    return values.sum(dtype=jnp.float32), jnp.asarray(len(values), jnp.float32)
  return jnp.where(mask, values, 0.0).sum(dtype=jnp.float32), mask.sum(dtype=jnp.float32)


def mean_of(metric: tuple[ArrayLike, ArrayLike]) -> float:
  """Return the mean that a fetched metric stands for; NaN if it counts nothing."""
  total, count = (float(np.asarray(x)) for x in metric)
  return total / count if count else float('nan')

