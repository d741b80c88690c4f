"""The contract of an evaluator: parameters in, numbers out."""
from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any, Literal, Protocol, runtime_checkable

import jax

from vit_jax.base.errors import UserError
from vit_jax.data.loading.dataset import Dataset
from vit_jax.distributed.strategy import Strategy
from vit_jax.evaluators.frozen.features import FeaturePass
from vit_jax.evaluators.frozen.store import FeatureStore
from vit_jax.objectives.base import Objective

Direction = Literal['max', 'min']  # which values of a metric are better


@dataclasses.dataclass
class EvalContext:
  """What a run gives each of its evaluators.

  Attributes:
    model: params → model, a callable on normalized images.
    normalize: uint8 images → float32.
    objective: of the run.
    strategy: how evaluation is spread over devices.
    data: of the run.
    batch_size: global batch.
    num_classes: logits of the model; None if it has no head.
    loss: name in `losses.LOSSES` that makes probabilities of the logits, 'softmax' or 'sigmoid'.
    on_batch: called before every batch of an evaluation, on all processes; the training loop sets it.
  """
  model: Callable[[Any], Any]
  normalize: Callable[[jax.Array], jax.Array]
  objective: Objective
  strategy: Strategy
  data: Dataset
  batch_size: int
  num_classes: int | None
  loss: str
  on_batch: Callable[[], None] = lambda: None

  @functools.cached_property
  def features(self) -> FeatureStore:
    """The features of the run's splits, which evaluators on frozen features share."""
    return FeatureStore(FeaturePass(self.model, self.normalize, self.strategy), self.data, self.batch_size,
                        lambda: self.on_batch())

  def logits(self, params: Any, images: jax.Array) -> jax.Array:
    """Return the logits of uint8 images."""
    return self.model(params)(self.normalize(images))

  def put(self, batch: Mapping[str, Any]) -> Any:
    """Put what an evaluation reads of a batch onto the devices."""
    self.on_batch()
    return self.strategy.put({name: batch[name] for name in ('image', 'label', 'id', 'mask')})

  def require_head(self, kind: str) -> int:
    """Return the number of the model's logits.

    Args:
      kind: of the evaluator that needs them, for the message.

    Raises:
      UserError: the model has no head.
    """
    if self.num_classes is None:
      raise UserError(f"evaluators: kind {kind!r} needs logits, but the model has no head; kind='objective' measures "
                      'what the objective does')
    return self.num_classes


@runtime_checkable
class Evaluator(Protocol):
  """An evaluator, built as Kind(config, context).

  Attributes:
    metrics: {name of a number it returns: which is better}, known once it is built; `checkpoint.best` names one.
    Config: frozen dataclass of its section `evaluators.NAME`.
  """
  metrics: Mapping[str, Direction]

  def __call__(self, params: Any, averages: Any) -> dict[str, float]:
    """Return {metric: value} for every name in `metrics`; NaN for what the split does not define.

    Args:
      params: all trained parameters, on the devices.
      averages: the objective's running averages.
    """
    ...
