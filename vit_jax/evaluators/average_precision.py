"""Mean average precision, for images that have any number of classes."""
from collections.abc import Mapping
import dataclasses
from typing import Any

from absl import logging
import jax
import numpy as np

from vit_jax.evaluators.base import Direction, EvalContext
from vit_jax.training.state import model_params


@dataclasses.dataclass(frozen=True)
class AveragePrecisionConfig:
  """Section `evaluators.NAME` of kind 'average_precision'.

  Attributes:
    kind: a row of `evaluators.EVALUATORS`.
    split: split string to evaluate.
  """
  kind: str = 'average_precision'
  split: str = 'test'


class AveragePrecision:
  """Ranks all images of a split by each class's logit.

  Args:
    config: options.
    context: of the run.
  """

  Config = AveragePrecisionConfig
  metrics: Mapping[str, Direction] = {'mAP': 'max'}

  def __init__(self, config: AveragePrecisionConfig, context: EvalContext):
    context.require_head(config.kind)

    def step(params: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, ...]:
      logits = context.logits(model_params(params), batch['image'])
      return context.strategy.gather((logits, batch['label'], batch['mask']))

    self._split, self._warned = config.split, False
    self._step = context.strategy.compile(step, donate=False)
    self._context = context
    self._batches = context.data.eval_batches(config.split, context.batch_size)

  def __call__(self, params: Any, averages: Any) -> dict[str, float]:
    """Return {'mAP': 0..1}, the mean over the classes that any image has; NaN, with a warning, if there is none."""
    del averages
    logits, labels = [], []
    for batch in self._batches:
      scores, truth, mask = jax.device_get(self._step(params, self._context.put(batch)))
      logits.append(scores[mask])
      labels.append(np.eye(scores.shape[-1])[truth[mask]] if truth.ndim == 1 else truth[mask])
    value = mean_average_precision(np.concatenate(logits), np.concatenate(labels))
    if np.isnan(value) and not self._warned:
      logging.warning('mAP is NaN: no image of split %r has a class, or the logits are not finite', self._split)
      self._warned = True
    return {'mAP': value}


def mean_average_precision(logits: np.ndarray, labels: np.ndarray) -> float:
  """Return the mean over classes of the area under precision over recall.

  Args:
    logits: (N, classes) scores.
    labels: (N, classes) of 0 and 1; classes without a 1 do not count.

  Returns:
    0..1; NaN if there is no 1, or if logits are not finite.
  """
  from sklearn import metrics  # takes most of a second to import, and few runs need it
  present = labels.any(axis=0)
  if not present.any() or not np.isfinite(logits).all():
    return float('nan')
  return float(metrics.average_precision_score(labels[:, present], logits[:, present], average='macro'))
