"""The contract of an evaluator: parameters in, numbers out."""
from collections.abc import Callable, Mapping
import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax

from vit_jax.data.loading.dataset import Dataset
from vit_jax.distributed.strategy import Strategy
from vit_jax.objectives.base import Objective


@dataclasses.dataclass(frozen=True)
class EvalContext:
  """What a run gives each of its evaluators.

  Attributes:
    model: params → model, a callable on normalized images.
    normalize: uint8 images → float32.
    objective: of the run.
    strategy: how evaluation is spread over devices.
    data: of the run.
    batch_size: global batch.
  """
  model: Callable[[Any], Any]
  normalize: Callable[[jax.Array], jax.Array]
  objective: Objective
  strategy: Strategy
  data: Dataset
  batch_size: int

  def logits(self, params: Any, images: jax.Array) -> jax.Array:
    """Return the logits of uint8 images."""
    return self.model(params)(self.normalize(images))

  def put(self, batch: Mapping[str, Any]) -> Any:
    """Put what an evaluation reads of a batch onto the devices."""
    return self.strategy.put({name: batch[name] for name in ('image', 'label', 'mask')})


@runtime_checkable
class Evaluator(Protocol):
  """An evaluator, built as Kind(config, context).

  Attributes:
    METRICS: names of the numbers it returns.
    Config: frozen dataclass of its section `evaluators.NAME`.
  """
  METRICS: tuple[str, ...]

  def __call__(self, params: Any, averages: Any) -> dict[str, float]:
    """Return {metric: value}.

    Args:
      params: all trained parameters, on the devices.
      averages: the objective's running averages.
    """
    ...
