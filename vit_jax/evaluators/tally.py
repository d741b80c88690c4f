"""What a classifier predicted on a split, as sums over its examples, and the metrics that follow from the sums."""
from collections.abc import Mapping
from typing import Any

from jaxtyping import Float, Int
import numpy as np

CALIBRATION_BINS = 15  # as in the tables of Guo et al., arXiv 1706.04599
MOST_CLASSES_OF_CONFUSION = 2000  # 32 MB of counts


class Tally:
  """Sums over the examples of a split. They do not depend on batches, devices or processes.

  Args:
    num_classes: number of classes, C.
    confusion: whether to count the confusion matrix, for one class per image.

  Attributes:
    examples: number of examples.
    support: (C,) int64, examples that have a class as a label.
    predicted: (C,) int64, examples that are predicted to have it: the class of the largest logit or, for any number of
      classes per image, each class of probability above 0.5.
    hits: (C,) int64, examples of both kinds.
    confusion: (C, C) int64, examples by label and prediction; None if not counted.
  """

  def __init__(self, num_classes: int, *, confusion: bool = False):
    self.examples = 0
    self.support, self.predicted, self.hits = np.zeros((3, num_classes), np.int64)
    self.confusion = np.zeros((num_classes, num_classes), np.int64) if confusion else None
    self._sums: dict[str, float] = {}
    self._bins = np.zeros((2, CALIBRATION_BINS))

  def add(self, examples: Mapping[str, Any], counts: Int[np.ndarray, '3 classes'] | None = None) -> None:
    """Count the examples of a batch.

    Args:
      examples: {name: (B,)}: `best`, the class of the largest logit; `confidence`, its probability; `accuracy`, whether
        it is a label; `label`, the class, unless an image has any number of classes. Any other name is a metric, the
        mean of its numbers.
      counts: support, predicted and hits of the batch, if an image has any number of classes.
    """
    best, correct = examples['best'], examples['accuracy']
    self.examples += len(best)
    if counts is None:
      label, count = examples['label'], lambda classes: np.bincount(classes, minlength=len(self.support))
      counts = np.stack([count(label), count(best), count(best[correct])])
      if self.confusion is not None:
        np.add.at(self.confusion, (label, best), 1)
    for total, part in zip((self.support, self.predicted, self.hits), counts, strict=True):
      total += part
    confidence = np.asarray(examples['confidence'], np.float64)
    # Bin m holds the confidences in (m / 15, (m + 1) / 15]. A model that gives NaN has the error NaN.
    bins = np.clip(np.ceil(np.nan_to_num(confidence) * CALIBRATION_BINS).astype(int) - 1, 0, CALIBRATION_BINS - 1)
    for row, values in enumerate((confidence, correct)):
      self._bins[row] += np.bincount(bins, values, minlength=CALIBRATION_BINS)
    for name in examples.keys() - {'label', 'best', 'confidence'}:
      self._sums[name] = self._sums.get(name, 0.0) + float(np.sum(examples[name], dtype=np.float64))

  def metrics(self) -> dict[str, float]:
    """Return {metric: value}: the means, and what follows from the counts of a classifier of either kind.

    `balanced_accuracy` is the mean of the classes' recalls, without classes that no image has (as scikit-learn's).
    `macro_f1` is the mean of the classes' F1, without classes that no image has and none is predicted to have;
    `micro_f1` is the F1 of the summed counts. `calibration_error` is the expected calibration error of Guo et al.
    (arXiv 1706.04599): |mean confidence - accuracy| in 15 equal bins of the confidence, weighted by their examples. NaN
    for what the split does not define.
    """
    n = max(self.examples, 1)
    total = (self.support + self.predicted).sum(keepdims=True)
    return dict(
        {name: value / n for name, value in self._sums.items()},
        balanced_accuracy=_mean(self.recall),
        calibration_error=float(np.abs(self._bins[0] - self._bins[1]).sum()) / n,
        macro_f1=_mean(self.f1),
        micro_f1=_mean(_ratio(2 * self.hits.sum(keepdims=True), total)))

  @property
  def recall(self) -> Float[np.ndarray, ' classes']:
    """Share of a class's examples that are predicted to have it, its accuracy; NaN for classes without examples."""
    return _ratio(self.hits, self.support)

  @property
  def precision(self) -> Float[np.ndarray, ' classes']:
    """Share of the predictions of a class that are right; NaN for classes that are never predicted."""
    return _ratio(self.hits, self.predicted)

  @property
  def f1(self) -> Float[np.ndarray, ' classes']:
    """Harmonic mean of recall and precision, 2 hits / (support + predicted); NaN if both counts are 0."""
    return _ratio(2 * self.hits, self.support + self.predicted)


def _ratio(part: Int[np.ndarray, ' n'], whole: Int[np.ndarray, ' n']) -> Float[np.ndarray, ' n']:
  """Return part / whole; NaN where whole is 0."""
  return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def _mean(x: Float[np.ndarray, ' n']) -> float:
  """Return the mean of the numbers that are not NaN; NaN if there is none."""
  known = x[~np.isnan(x)]
  return float(known.mean()) if len(known) else float('nan')
