"""A linear classifier on features, and features standardized for its training."""
from typing import NamedTuple

import numpy as np

_BLOCK = 4096  # rows converted to float64 at once


class LinearHead(NamedTuple):
  """A linear classifier: `features @ kernel + bias` gives the scores.

  Attributes:
    kernel: (D, classes) float64.
    bias: (classes,) float64.
  """
  kernel: np.ndarray
  bias: np.ndarray

  def scores(self, features: np.ndarray) -> np.ndarray:
    """Return the scores of (N, D) features, (N, classes) float64."""
    blocks = [features[start:start + _BLOCK].astype(np.float64) @ self.kernel + self.bias
              for start in range(0, len(features), _BLOCK)]
    return np.concatenate(blocks)

  def accuracy(self, features: np.ndarray, labels: np.ndarray) -> float:
    """Return the fraction, 0..1, of (N, D) features whose highest score is that of their label, (N,)."""
    return float((self.scores(features).argmax(axis=1) == labels).mean())


class Standardization(NamedTuple):
  """The map (x - mean) / scale.

  Attributes:
    mean: (D,) float64.
    scale: (D,) float64, standard deviation + 1e-5 (big_vision's evaluators/fewshot_lsr.py).
  """
  mean: np.ndarray
  scale: np.ndarray

  @classmethod
  def of(cls, features: np.ndarray) -> 'Standardization':
    """Return the standardization by the statistics of (N, D) features."""
    features = features.astype(np.float64)
    return cls(features.mean(axis=0), features.std(axis=0) + 1e-5)

  def __call__(self, features: np.ndarray) -> np.ndarray:
    """Return standardized features, (N, D) float64."""
    return (features.astype(np.float64) - self.mean) / self.scale

  def fold(self, head: LinearHead) -> LinearHead:
    """Return the head on features as they are that equals `head` on standardized ones."""
    kernel = head.kernel / self.scale[:, None]
    return LinearHead(kernel, head.bias - self.mean @ kernel)
