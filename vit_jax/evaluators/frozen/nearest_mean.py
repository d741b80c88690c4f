"""Classification by the nearest class mean."""
import dataclasses

import numpy as np

from vit_jax.evaluators.base import EvalContext
from vit_jax.evaluators.frozen import evaluator
from vit_jax.evaluators.frozen.evaluator import FrozenData, FrozenEvaluator, data_section
from vit_jax.evaluators.frozen.features import Features
from vit_jax.evaluators.frozen.knn import unit
from vit_jax.evaluators.frozen.linear_head import LinearHead


@dataclasses.dataclass(frozen=True)
class NearestMeanConfig:
  """Section `evaluators.NAME` of kind 'nearest_mean'.

  Attributes:
    kind: a row of `evaluators.EVALUATORS`.
    data: dataset and splits.
  """
  kind: str = 'nearest_mean'
  data: FrozenData = data_section()


class NearestMean(FrozenEvaluator):
  """Measures `nearest_mean`.

  Args:
    config: options.
    context: of the run.
  """

  Config = NearestMeanConfig

  def __init__(self, config: NearestMeanConfig, context: EvalContext):
    super().__init__(config.data, context)
    self.metrics = {'accuracy': 'max'}

  def measure(self, train: Features, test: Features) -> dict[str, float]:
    """Return {'accuracy': 0..1}."""
    return {'accuracy': nearest_mean(train, test)}


def nearest_mean(train: Features, test: Features) -> float:
  """Return the accuracy, 0..1, of the class whose mean has the largest cosine similarity with an image.

  The mean is that of the class's features scaled to length 1, as in iCaRL (arXiv 1611.07725, algorithm 1).

  Args:
    train: gives the means; a class without images is never predicted.
    test: what is classified.
  """
  evaluator.check_classes(train)
  present = np.unique(train.labels)
  rows = unit(train.features)
  means = np.stack([rows[train.labels == label].mean(axis=0, dtype=np.float64) for label in present])
  kernel = (means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), np.finfo(np.float64).tiny)).T
  scores = LinearHead(kernel, np.zeros(len(present))).scores(test.features)
  return float((present[scores.argmax(axis=1)] == test.labels).mean())
