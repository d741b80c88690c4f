"""The objective's loss and metrics on a split, every example counted exactly once."""
from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import numpy as np

from vit_jax.evaluators.base import Direction, EvalContext
from vit_jax.objectives.base import mean_metric, mean_of
from vit_jax.training.state import model_params, own_params


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
  """Section `evaluators.NAME` of kind 'objective'.

  Attributes:
    kind: a row of `evaluators.EVALUATORS`.
    split: split string to evaluate.
  """
  kind: str = 'objective'
  split: str = 'test'


class ObjectiveEvaluator:
  """Measures on a split what training minimizes: the loss with all that the objective does to it, and its metrics.

  Args:
    config: options.
    context: of the run.
  """

  Config = ObjectiveConfig

  def __init__(self, config: ObjectiveConfig, context: EvalContext):
    def step(state: tuple[Any, Any], batch: dict[str, jax.Array]) -> dict[str, tuple[jax.Array, jax.Array]]:
      params, averages = state
      images = context.normalize(batch['image'])
      outcome = context.objective(context.model(model_params(params)), own_params(params), averages,
                                  dict(batch, image=images), None)
      sums = dict(outcome.metrics, loss=mean_metric(outcome.losses, batch))
      return jax.tree.map(lambda x: context.strategy.gather(x[None]).sum(axis=0), sums)  # over the devices

    self.metrics: Mapping[str, Direction] = {'loss': 'min', **context.objective.metrics}
    self._step = context.strategy.compile(step, donate=False)
    self._context = context
    self._batches = context.data.eval_batches(config.split, context.batch_size)

  def __call__(self, params: Any, averages: Any) -> dict[str, float]:
    """Return {'loss': mean of the objective's losses} and its other metrics."""
    total = None
    for batch in self._batches:
      # Fetched at once: the host adds the sums in one order, and one program is in flight.
      sums = jax.device_get(self._step((params, averages), self._context.put(batch)))
      sums = jax.tree.map(np.float64, sums)
      total = sums if total is None else jax.tree.map(np.add, total, sums)
    return {name: mean_of(metric) for name, metric in sorted((total or {}).items())}
