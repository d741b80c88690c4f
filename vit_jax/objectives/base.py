"""The contract of an objective: what a training step minimizes, and what an evaluation of it reports."""
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

Metric = tuple[jax.Array, jax.Array]  # (sum, count), both () float32: their ratio is the mean, and both add up


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


@runtime_checkable
class Objective(Protocol):
  """An objective: a pure function of model and batch, which may own parameters and running averages.

  Attributes:
    metrics: names of the metrics of an `Outcome`, beside the loss.
  """
  metrics: tuple[str, ...]

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
      averages: its running averages, constant during a step.
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

