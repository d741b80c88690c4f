"""k-nearest-neighbor classification by cosine similarity, votes weighted as DINO does (arXiv 2104.14294)."""
from collections.abc import Sequence
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.base.errors import UserError
from vit_jax.evaluators.base import EvalContext
from vit_jax.evaluators.frozen import evaluator
from vit_jax.evaluators.frozen.evaluator import FrozenData, FrozenEvaluator, data_section
from vit_jax.evaluators.frozen.features import Features

# Of DINO's eval_knn.py.
TEMPERATURE = 0.07
NEIGHBORS = (10, 20, 100, 200)

_BLOCK = 1 << 25  # similarities in memory at once: 128 MiB


@dataclasses.dataclass(frozen=True)
class KnnConfig:
  """Section `evaluators.NAME` of kind 'knn'.

  Attributes:
    kind: a row of `evaluators.EVALUATORS`.
    data: dataset and splits.
    k: numbers of neighbors; None: those of 10, 20, 100 and 200 that the training split has, or all its images.
    temperature: a neighbor of cosine similarity s has exp(s / temperature) votes.
  """
  kind: str = 'knn'
  data: FrozenData = data_section()
  k: tuple[int, ...] | None = None
  temperature: float = TEMPERATURE

  def __post_init__(self):
    if self.k is not None:
      evaluator.check_counts('knn', 'k', self.k)
    if not self.temperature > 0:
      raise UserError(f'knn.temperature: must be positive, got {self.temperature}')


class Knn(FrozenEvaluator):
  """Measures `knn`: metrics `k10`, `k20`, …, accuracies.

  Args:
    config: options.
    context: of the run.
  """

  Config = KnnConfig

  def __init__(self, config: KnnConfig, context: EvalContext):
    super().__init__(config.data, context)
    assert self._train is not None
    self._k = neighbors(config.k, self._train.num_examples)
    self._temperature = config.temperature
    self.metrics = {f'k{k}': 'max' for k in self._k}

  def measure(self, train: Features, test: Features) -> dict[str, float]:
    """Return {'k10': accuracy} for each number of neighbors."""
    return {f'k{k}': accuracy for k, accuracy in knn(train, test, self._k, self._temperature).items()}


def neighbors(k: Sequence[int] | None, num_train: int) -> tuple[int, ...]:
  """Return the numbers of neighbors to use.

  Args:
    k: what the user asks for; None takes the default.
    num_train: number of training images.

  Raises:
    UserError: more neighbors than images.
  """
  if k is None:
    return tuple(n for n in NEIGHBORS if n <= num_train) or (num_train,)
  if max(k) > num_train:
    raise UserError(f'knn.k: expected at most {num_train}, the number of training images, got {max(k)}')
  return tuple(k)


def knn(train: Features, test: Features, k: Sequence[int], temperature: float = TEMPERATURE) -> dict[int, float]:
  """Return {number of neighbors: accuracy, 0..1}.

  Of equally similar images the earlier is the nearer. Similarities are float32, on the default device, for as many
  test images at once as fit into 128 MiB; votes are float64.

  Args:
    train: the neighbors.
    test: what is classified.
    k: numbers of neighbors, at most the number of training images.
    temperature: see `KnnConfig`.
  """
  evaluator.check_classes(train)
  most, correct = max(k), dict.fromkeys(k, 0)
  gallery, rows = jnp.asarray(unit(train.features)), max(1, _BLOCK // len(train.labels))
  for start in range(0, len(test.labels), rows):
    queries, truth = unit(test.features[start:start + rows]), test.labels[start:start + rows]
    padded = np.pad(queries, ((0, min(rows, len(test.labels)) - len(queries)), (0, 0)))  # one shape, one program
    found, indices = jax.device_get(_nearest(padded, gallery, most))
    found, labels = found[:len(queries)], train.labels[indices[:len(queries)]]
    # Dividing all votes by those of the nearest changes no winner, and cannot overflow.
    weights = np.exp((found.astype(np.float64) - found[:, :1]) / temperature)
    for number in k:
      votes = np.zeros((len(queries), train.num_classes))
      np.add.at(votes, (np.arange(len(queries))[:, None], labels[:, :number]), weights[:, :number])
      correct[number] += int((votes.argmax(axis=1) == truth).sum())
  return {number: hits / len(test.labels) for number, hits in correct.items()}


def unit(features: np.ndarray) -> np.ndarray:
  """Return (N, D) float32 features scaled to length 1; zeros stay zeros."""
  lengths = np.linalg.norm(features, axis=1, keepdims=True)
  return features / np.maximum(lengths, np.finfo(np.float32).tiny)


@functools.partial(jax.jit, static_argnums=2)
def _nearest(queries: jax.Array, gallery: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  """Return the k largest similarities, falling, and their indices."""
  return jax.lax.top_k(jnp.matmul(queries, gallery.T, precision='highest'), k)
