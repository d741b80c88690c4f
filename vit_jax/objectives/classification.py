"""Supervised classification, of one class per image or of any number."""
from collections.abc import Mapping
import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from vit_jax.base.choices import choose
from vit_jax.base.errors import UserError
from vit_jax.objectives import losses
from vit_jax.objectives.base import ObjectiveContext, Outcome, mean_metric


@dataclasses.dataclass(frozen=True)
class ClassificationConfig:
  """Section `objective` of a recipe.

  Attributes:
    kind: a row of `objectives.OBJECTIVES`.
    loss: a name of `losses.LOSSES`; 'sigmoid' in the paper's pre-training, 'softmax' in its fine-tuning.
    label_smoothing: see the loss; in [0, 1).
    class_weights: factor of each class's term of the loss, in the order of the classes, or None; see the loss. The mean
      over a batch still divides by the number of examples.
  """
  kind: str = 'classification'
  loss: str = 'softmax'
  label_smoothing: float = 0.0
  class_weights: tuple | None = None

  def __post_init__(self):
    choose(losses.LOSSES, self.loss, 'objective.loss')
    if not 0.0 <= self.label_smoothing < 1.0:
      raise UserError(f'objective.label_smoothing: must be in [0, 1), got {self.label_smoothing}')
    for weight in self.class_weights or ():
      if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight) or weight < 0:
        raise UserError(f'objective.class_weights: expected finite numbers, none negative, got {self.class_weights}')


class Classification:
  """The loss of a classifier, and its accuracy.

  Args:
    config: options.
    context: of the run.

  Raises:
    UserError: class weights for another number of classes, or a loss that does not fit the labels.
  """

  Config = ClassificationConfig
  reads_labels = True
  metrics: Mapping[str, Literal['max', 'min']] = {'accuracy': 'max'}

  def __init__(self, config: ClassificationConfig, context: ObjectiveContext):
    info = context.info
    if info.multi_label and config.loss == 'softmax':
      raise UserError("objective.loss: 'softmax' takes one class per image, but this dataset has any number; "
                      "use objective.loss='sigmoid'")
    weights = config.class_weights
    if weights is not None and len(weights) != info.num_classes:
      raise UserError(f'objective.class_weights: expected {info.num_classes} numbers, one per class, '
                      f'got {len(weights)}')
    self.config = config
    self._loss = losses.LOSSES[config.loss]

  def init(self, params: Mapping[str, Any], key: jax.Array) -> tuple[Any, Any]:
    """Return nothing: see `Objective.init`."""
    del params, key
    return {}, {}

  def __call__(self, model: Any, own: Any, averages: Any, batch: Mapping[str, Any],
               keys: jax.Array | None) -> Outcome:
    """Return losses and accuracy; see `Objective.__call__`."""
    del own, averages
    logits, labels = model(batch['image'], keys), batch['label']
    weights = self.config.class_weights
    loss = self._loss(logits, labels, self.config.label_smoothing,
                      None if weights is None else jnp.asarray(weights, jnp.float32))
    return Outcome(loss, dict(accuracy=mean_metric(is_correct(logits, labels), batch)))

  def update(self, averages: Any, means: Any, params: Any) -> Any:
    """Return the averages, which are empty, as they are."""
    del means, params
    return averages


def is_correct(logits: Float[Array, 'batch classes'], labels: Num[Array, 'batch *classes']) -> Float[Array, ' batch']:
  """Return 1 if the top-1 class is one of the image's labels, or for mixtures the label of largest weight; else 0."""
  targets = losses.to_soft_labels(labels, logits.shape[-1])
  best = jnp.argmax(logits, axis=-1, keepdims=True)
  weight = jnp.take_along_axis(targets, best, axis=-1)[:, 0]
  return ((weight > 0) & (weight == targets.max(axis=-1))).astype(jnp.float32)
