"""Image retrieval: how well an image's features find the other images of its class."""
from collections.abc import Sequence
import dataclasses

import numpy as np

from vit_jax.base.errors import UserError
from vit_jax.evaluators.base import EvalContext
from vit_jax.evaluators.frozen import evaluator
from vit_jax.evaluators.frozen.evaluator import FrozenData, FrozenEvaluator, data_section
from vit_jax.evaluators.frozen.features import Features
from vit_jax.evaluators.frozen.knn import unit

RECALL_AT = (1, 5, 10)

_BLOCK = 1 << 25  # similarities in memory at once: 128 MiB


@dataclasses.dataclass(frozen=True)
class RetrievalConfig:
  """Section `evaluators.NAME` of kind 'retrieval'.

  Attributes:
    kind: a row of `evaluators.EVALUATORS`.
    data: dataset and splits; only the test split is read.
    recall_at: numbers of retrieved images.
  """
  kind: str = 'retrieval'
  data: FrozenData = data_section()
  recall_at: tuple[int, ...] = RECALL_AT

  def __post_init__(self):
    evaluator.check_counts('retrieval', 'recall_at', self.recall_at)


class Retrieval(FrozenEvaluator):
  """Measures `retrieval`: metrics `mAP` and `recall_at_1`, ….

  Args:
    config: options.
    context: of the run.
  """

  Config = RetrievalConfig
  needs_train = False

  def __init__(self, config: RetrievalConfig, context: EvalContext):
    super().__init__(config.data, context)
    self._recall_at = config.recall_at
    self.metrics = {'mAP': 'max', **{f'recall_at_{k}': 'max' for k in config.recall_at}}

  def measure(self, train: Features, test: Features) -> dict[str, float]:
    """Return {'mAP': 0..1, 'recall_at_1': 0..1, …}."""
    return retrieval(test, self._recall_at)


def retrieval(images: Features, recall_at: Sequence[int] = RECALL_AT) -> dict[str, float]:
  """Return {'mAP': 0..1, 'recall_at_1': 0..1, …}, as in metric learning (arXiv 1511.06452, section 5).

  Each image is a query, all others are ranked by cosine similarity, and those of its class are right. Recall at k is
  the fraction of queries with a right image among the first k; mAP the mean of the average precision over the whole
  ranking. Queries without another image of their class do not count. Equal similarities share the lowest of their
  ranks, so that features that are all alike find nothing.

  Args:
    images: queries and gallery. Similarities are float32, for as many queries at once as fit into 128 MiB.
    recall_at: numbers of retrieved images.

  Raises:
    UserError: no class has two images.
  """
  counted = np.flatnonzero(np.bincount(images.labels)[images.labels] > 1)
  if not len(counted):
    raise UserError(f'test_split: expected a class with two images, got {len(images.labels)} images of as many classes')
  rows, gallery = max(1, _BLOCK // len(images.labels)), unit(images.features)
  precisions, hits = [], np.zeros(len(recall_at))
  for start in range(0, len(counted), rows):
    queries = counted[start:start + rows]
    for query, similarities in zip(queries, gallery[queries] @ gallery.T, strict=True):
      right = images.labels == images.labels[query]
      right[query] = False
      similarities[query] = -np.inf
      found, everything = np.sort(similarities[right]), np.sort(similarities)
      # For each right image, how many images, and how many right ones, are at least as similar.
      num_ranked = len(everything) - np.searchsorted(everything, found)
      num_right = len(found) - np.searchsorted(found, found)
      precisions.append((num_right / num_ranked).mean())
      hits += [num_ranked[-1] - num_right[-1] < k for k in recall_at]
  recalls = {f'recall_at_{k}': float(hit / len(counted)) for k, hit in zip(recall_at, hits, strict=True)}
  return {'mAP': float(np.mean(precisions)), **recalls}
