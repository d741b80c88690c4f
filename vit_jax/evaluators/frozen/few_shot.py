"""Few-shot linear regression: closed-form ridge to ±1 targets on a few images per class (paper, section 4.1)."""
from collections.abc import Sequence
import dataclasses

from absl import logging
import numpy as np

from vit_jax.base.errors import UserError
from vit_jax.base.text import count
from vit_jax.evaluators.base import Direction, EvalContext
from vit_jax.evaluators.frozen import evaluator
from vit_jax.evaluators.frozen.evaluator import FrozenData, FrozenEvaluator, data_section
from vit_jax.evaluators.frozen.features import Features
from vit_jax.evaluators.frozen.linear_head import LinearHead, Standardization

# Constants of big_vision's evaluators/fewshot_lsr.py: a constant feature of 100 is a bias that is nearly free of the
# penalty.
BIAS_FEATURE = 100.0
FIXED_L2 = 2.0 ** 10  # of big_vision's configs/common_fewshot.py
SWEPT_L2 = tuple(2.0 ** power for power in range(-10, 20))  # of the earlier protocol, closest to the paper
SWEEP = 'sweep'


@dataclasses.dataclass(frozen=True)
class FewShotConfig:
  """Section `evaluators.NAME` of kind 'few_shot'.

  Attributes:
    kind: a row of `evaluators.EVALUATORS`.
    data: dataset and splits.
    shots: training images per class; a class that has fewer gives all it has.
    seeds: number of draws of the images, from seeds 0, 1, …
    l2: the penalty, or 'sweep': of 2^-10, 2^-9, …, 2^19, for each number of shots the one that is most accurate on the
      training images that are not among the shots, over all seeds.
  """
  kind: str = 'few_shot'
  data: FrozenData = data_section()
  shots: tuple[int, ...] = (1, 5, 10, 25)
  seeds: int = 3
  l2: float | str = FIXED_L2

  def __post_init__(self):
    evaluator.check_counts('few_shot', 'shots', self.shots)
    evaluator.check_counts('few_shot', 'seeds', (self.seeds,))
    check_l2(self.l2, 'few_shot.l2')


class FewShot(FrozenEvaluator):
  """Measures `few_shot`: metrics `5shot`, the mean accuracy over seeds, and `5shot_std`.

  Args:
    config: options.
    context: of the run.
  """

  Config = FewShotConfig

  def __init__(self, config: FewShotConfig, context: EvalContext):
    super().__init__(config.data, context)
    self._config = config
    spread: dict[str, Direction] = {f'{shots}shot_std': 'min' for shots in config.shots} if config.seeds > 1 else {}
    self.metrics = {**{f'{shots}shot': 'max' for shots in config.shots}, **spread}

  def measure(self, train: Features, test: Features) -> dict[str, float]:
    """Return {'5shot': mean, '5shot_std': sample standard deviation} over the seeds, for each number of shots."""
    config, values = self._config, {}
    for shots, accuracies in few_shot(train, test, config.shots, range(config.seeds), config.l2).items():
      values[f'{shots}shot'] = float(np.mean(accuracies))
      if config.seeds > 1:
        values[f'{shots}shot_std'] = float(np.std(accuracies, ddof=1))
    return values


def few_shot(train: Features, test: Features, shots: Sequence[int], seeds: Sequence[int],
             l2: float | str = FIXED_L2) -> dict[int, list[float]]:
  """Return the accuracies, 0..1, on the test split: {images per class: one per seed}.

  Args:
    train: where the images come from.
    test: what is classified.
    shots: training images per class.
    seeds: of the draws.
    l2: see `FewShotConfig`.

  Raises:
    UserError: fewer than two classes; or a sweep without training images to choose by.
  """
  evaluator.check_classes(train)
  _warn_of_small_classes(train, max(shots))
  accuracies = {}
  for number in shots:
    draws = [draw(train.labels, train.num_classes, number, seed) for seed in seeds]
    paths = [RidgePath(train.keep(indices)) for indices in draws]
    penalty = _best_l2(train, draws, paths) if isinstance(l2, str) else l2
    accuracies[number] = [path.head(penalty).accuracy(test.features, test.labels) for path in paths]
  return accuracies


def draw(labels: np.ndarray, num_classes: int, shots: int, seed: int) -> np.ndarray:
  """Return the indices of the first `shots` images of each class, in a random order (as big_vision draws them).

  Args:
    labels: (N,) integers.
    num_classes: number of classes; one without images gives none.
    shots: images per class.
    seed: of one generator, which permutes the classes one after the other.
  """
  rng = np.random.default_rng(seed)
  return np.concatenate([rng.permutation(np.flatnonzero(labels == label))[:shots] for label in range(num_classes)])


class RidgePath:
  """The solutions of a ridge regression to targets of 1 for the label and -1 elsewhere, for any penalty.

  With X the standardized features and a last column of BIAS_FEATURE, and Y the targets, W = (XᵀX + λ I)⁻¹ XᵀY; with
  fewer images than features the equal XᵀW' with W' = (XXᵀ + λ I)⁻¹ Y. One eigendecomposition in float64 serves all λ.

  Args:
    shots: the training images.
  """

  def __init__(self, shots: Features):
    self._standardize = Standardization.of(shots.features)
    x = np.pad(self._standardize(shots.features), ((0, 0), (0, 1)), constant_values=BIAS_FEATURE)
    y = 2.0 * np.eye(shots.num_classes)[shots.labels] - 1.0
    if len(x) >= x.shape[1]:
      self._eigenvalues, self._left = np.linalg.eigh(x.T @ x)
      self._right = self._left.T @ (x.T @ y)
    else:
      self._eigenvalues, vectors = np.linalg.eigh(x @ x.T)
      self._left, self._right = x.T @ vectors, vectors.T @ y

  def head(self, l2: float) -> LinearHead:
    """Return the solution for a penalty as a classifier of features that are not standardized."""
    w = (self._left / (self._eigenvalues + l2)) @ self._right
    return self._standardize.fold(LinearHead(w[:-1], BIAS_FEATURE * w[-1]))


def check_l2(l2: float | str, key: str) -> None:
  """Raise UserError unless a penalty is a positive number or 'sweep'."""
  if l2 != SWEEP and not (isinstance(l2, (int, float)) and l2 > 0):
    raise UserError(f"{key}: expected a positive number or 'sweep', got {l2!r}")


def _best_l2(train: Features, draws: Sequence[np.ndarray], paths: Sequence[RidgePath]) -> float:
  """Return the largest penalty of SWEPT_L2 that is most accurate on what was not drawn, over all draws."""
  totals = np.zeros(len(SWEPT_L2))
  for indices, path in zip(draws, paths, strict=True):
    rest = train.keep(np.setdiff1d(np.arange(len(train.labels)), indices))
    if not len(rest.labels):
      raise UserError("l2: 'sweep' chooses by the training images that are not among the shots, and all "
                      f'{len(train.labels)} are; give a number, such as {FIXED_L2:g}')
    totals += [path.head(l2).accuracy(rest.features, rest.labels) for l2 in SWEPT_L2]
  return max(zip(totals.round(12), SWEPT_L2, strict=True))[1]


def _warn_of_small_classes(train: Features, shots: int) -> None:
  sizes = np.bincount(train.labels, minlength=train.num_classes)
  if small := int((sizes < shots).sum()):
    logging.warning('few-shot: %s fewer than %d training images (the smallest %d) and give all they have',
                    count(small, 'class has', 'classes have'), shots, sizes.min())
