"""What a classifier predicts on a split, every example counted exactly once; from logits and labels alone."""
from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.evaluators.base import Direction, EvalContext
from vit_jax.evaluators.tally import MOST_CLASSES_OF_CONFUSION, Tally
from vit_jax.objectives import losses
from vit_jax.training.state import model_params

_BETTER: dict[str, Direction] = {
    'accuracy': 'max', 'balanced_accuracy': 'max', 'calibration_error': 'min', 'loss': 'min', 'macro_f1': 'max',
    'micro_f1': 'max', 'top_5_accuracy': 'max'}


@dataclasses.dataclass(frozen=True)
class ClassificationConfig:
  """Section `evaluators.NAME` of kind 'classification'.

  Attributes:
    kind: a row of `evaluators.EVALUATORS`.
    split: split string to evaluate.
  """
  kind: str = 'classification'
  split: str = 'test'


class Classification:
  """Measures a classifier by its logits, whatever it was trained with.

  Args:
    config: options.
    context: of the run.

  Raises:
    UserError: the model has no head.
  """

  Config = ClassificationConfig

  def __init__(self, config: ClassificationConfig, context: EvalContext):
    self._num_classes = context.require_head(config.kind)
    self._multi_label = context.data.source.info.multi_label
    names = _metric_names(self._num_classes, self._multi_label, context.loss)

    def step(params: Any, batch: dict[str, jax.Array]) -> tuple[dict[str, jax.Array], jax.Array | None]:
      logits = context.logits(model_params(params), batch['image'])
      examples = dict(measure(logits, batch['label'], context.loss, names), mask=batch['mask'])
      # Counted on the devices: labels and predictions of thousands of classes would be much to fetch.
      counts = count_classes(logits, batch['label'], batch['mask']) if self._multi_label else None
      gather = context.strategy.gather
      return gather(examples), None if counts is None else gather(counts[None]).sum(axis=0)

    self.metrics: Mapping[str, Direction] = {name: _BETTER[name] for name in names}
    self._step = context.strategy.compile(step, donate=False)
    self._context = context
    self._batches = context.data.eval_batches(config.split, context.batch_size)

  def __call__(self, params: Any, averages: Any) -> dict[str, float]:
    """Return {metric: value} for parameters on the devices; see `Tally.metrics`."""
    del averages
    return self.select(self.tally(params))

  def select(self, tally: Tally) -> dict[str, float]:
    """Return the metrics that this evaluator reports, of a tally."""
    values = tally.metrics()
    return {name: values[name] for name in self.metrics}

  def tally(self, params: Any, *, confusion: bool = False) -> Tally:
    """Return the sums over the split.

    Args:
      params: all trained parameters, on the devices.
      confusion: whether to count the confusion matrix, if each image has one class and there are not too many.
    """
    confusion = confusion and not self._multi_label and self._num_classes <= MOST_CLASSES_OF_CONFUSION
    tally = Tally(self._num_classes, confusion=confusion)
    for batch in self._batches:
      # Fetched at once: one program is in flight.
      examples, counts = jax.device_get(self._step(params, self._context.put(batch)))
      tally.add({name: x[examples['mask']] for name, x in examples.items() if name != 'mask'}, counts)
    return tally


def measure(logits: jax.Array, labels: jax.Array, loss: str, names: tuple[str, ...]) -> dict[str, jax.Array]:
  """Return {name: (B,)}, what `Tally.add` takes of a batch.

  Args:
    logits: (B, C) float32.
    labels: (B,) integers, or (B, C) of 0 and 1 if an image has any number of classes.
    loss: 'softmax' or 'sigmoid', which makes probabilities of logits.
    names: metrics that will be asked for.
  """
  probabilities = jax.nn.softmax(logits) if loss == 'softmax' else jax.nn.sigmoid(logits)
  best = jnp.argmax(logits, axis=-1)
  found = dict(best=best, confidence=jnp.take_along_axis(probabilities, best[:, None], axis=1)[:, 0])
  if 'loss' in names:
    found['loss'] = losses.LOSSES[loss](logits, labels, 0.0)
  if labels.ndim == 1:
    found |= dict(label=labels, accuracy=best == labels)
    if 'top_5_accuracy' in names:
      found['top_5_accuracy'] = (jax.lax.top_k(logits, 5)[1] == labels[:, None]).any(axis=1)
  else:
    found['accuracy'] = jnp.take_along_axis(labels, best[:, None], axis=1)[:, 0] > 0
  return found


def count_classes(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> jax.Array:
  """Return how many examples have each class as a label, are predicted to have it, and both: (3, C) int32.

  Args:
    logits: (B, C) float32; above 0 is a probability above 0.5 by the sigmoid.
    labels: (B, C) of 0 and 1.
    mask: (B,) bool, False for padding.
  """
  label, positive = labels > 0, logits > 0
  return jnp.stack([(x & mask[:, None]).sum(axis=0, dtype=jnp.int32) for x in (label, positive, label & positive)])


def _metric_names(num_classes: int, multi_label: bool, loss: str) -> tuple[str, ...]:
  """Return what is defined for a classifier and its labels."""
  names = ['accuracy', 'calibration_error']
  if not multi_label:
    names += ['loss', 'balanced_accuracy'] + ['top_5_accuracy'] * (num_classes > 5)
  elif loss == 'sigmoid':  # probabilities of a softmax say which class an image has, not how many
    names += ['loss', 'macro_f1', 'micro_f1']
  return tuple(sorted(names))
