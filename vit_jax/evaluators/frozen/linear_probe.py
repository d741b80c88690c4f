"""Linear probe: logistic regression on frozen features, its penalty chosen on a held-out part of the training split."""
from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import warnings

from absl import logging
import numpy as np

from vit_jax.base.errors import UserError
from vit_jax.evaluators.base import EvalContext
from vit_jax.evaluators.frozen import evaluator
from vit_jax.evaluators.frozen.evaluator import FrozenData, FrozenEvaluator, data_section
from vit_jax.evaluators.frozen.features import Features
from vit_jax.evaluators.frozen.linear_head import LinearHead, Standardization

L2 = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
HELD_OUT = 0.2

# Bias of a class without training images: the best is -∞, as nothing holds it.
_ABSENT = -1e4
_MOST_STEPS = 200
_TOLERANCE = 1e-3  # largest element of the gradient; smaller ones change no accuracy, but take most of the time
_PATIENCE = 2  # penalties in a row that are no better, after which smaller ones, which take longest, are not tried


@dataclasses.dataclass(frozen=True)
class LinearProbeConfig:
  """Section `evaluators.NAME` of kind 'linear_probe'.

  Attributes:
    kind: a row of `evaluators.EVALUATORS`.
    data: dataset and splits.
    l2: penalties to choose from: λ of mean cross-entropy + λ/2 |W|², on standardized features.
    held_out: fraction of each class's training images that the choice is made on.
  """
  kind: str = 'linear_probe'
  data: FrozenData = data_section()
  l2: tuple[float, ...] = L2
  held_out: float = HELD_OUT

  def __post_init__(self):
    if not self.l2 or not all(isinstance(l2, (int, float)) and l2 > 0 for l2 in self.l2):
      raise UserError(f'linear_probe.l2: expected positive numbers, got {self.l2}')
    if not 0.0 < self.held_out < 1.0:
      raise UserError(f'linear_probe.held_out: must be between 0 and 1, got {self.held_out}')


class LinearProbe(FrozenEvaluator):
  """Measures `linear_probe` on the test split.

  Args:
    config: options.
    context: of the run.
  """

  Config = LinearProbeConfig

  def __init__(self, config: LinearProbeConfig, context: EvalContext):
    super().__init__(config.data, context)
    self._config = config
    self.metrics = {'accuracy': 'max'}

  def measure(self, train: Features, test: Features) -> dict[str, float]:
    """Return {'accuracy': 0..1}."""
    probe = linear_probe(train, self._config.l2, self._config.held_out)
    return {'accuracy': probe.head.accuracy(test.features, test.labels)}


@dataclasses.dataclass(frozen=True)
class Probe:
  """A linear classifier and how it was chosen.

  Attributes:
    head: trained on the whole training split with the chosen penalty; takes features that are not standardized.
    l2: the chosen penalty.
    held_out: {penalty: accuracy, 0..1, on the held-out part of a classifier trained on the rest}, of those that were
      tried; empty if there was nothing to choose.
  """
  head: LinearHead
  l2: float
  held_out: dict[float, float]


def linear_probe(train: Features, l2: Sequence[float] = L2, held_out: float = HELD_OUT, seed: int = 0) -> Probe:
  """Train a linear classifier.

  Args:
    train: training split.
    l2: penalties to choose from, tried from the largest on until two in a row are no better; of equally accurate ones
      the largest is taken.
    held_out: fraction of each class's images to choose by, rounded; the others, at least one, are trained on.
    seed: of the held-out part.

  Raises:
    UserError: images of one class only, or too few to hold some out.
  """
  evaluator.check_classes(train)
  penalties = sorted(l2, reverse=True)
  accuracies = {}
  if len(penalties) > 1:
    held = _hold_out(train.labels, held_out, seed)
    rest, judge = train.keep(~held), train.keep(held)
    if not held.any():
      raise UserError(f'linear_probe.held_out: {held_out:g} of the {len(train.labels)} training images leaves none of '
                      'any class to choose l2 by; give one l2, or more images')
    for penalty, head in zip(penalties, fit_path(rest, penalties), strict=True):
      accuracies[penalty] = head.accuracy(judge.features, judge.labels)
      tried = list(accuracies)
      if len(tried) - 1 - tried.index(_best(accuracies)) == _PATIENCE:
        break
  best = _best(accuracies) if accuracies else penalties[0]
  head, = fit_path(train, [best])
  return Probe(head, best, accuracies)


def fit_path(train: Features, penalties: Sequence[float]) -> Iterator[LinearHead]:
  """Yield the classifiers that minimize mean cross-entropy + λ/2 |W|², by L-BFGS; the bias is not penalized.

  Args:
    train: at least two classes. Features are standardized by their own statistics.
    penalties: values of λ, from the largest to the smallest: each starts from the solution before.
  """
  from sklearn import exceptions, linear_model  # takes most of a second to import, and few runs need it
  standardize = Standardization.of(train.features)
  x = standardize(train.features)
  model = linear_model.LogisticRegression(solver='lbfgs', max_iter=_MOST_STEPS, tol=_TOLERANCE, warm_start=True)
  # With two classes scikit-learn penalizes the difference w of their rows, and here |W|² is |w|² / 2.
  share = 0.5 if len(np.unique(train.labels)) == 2 else 1.0
  for penalty in penalties:
    model.set_params(C=1.0 / (share * penalty * len(x)))
    with warnings.catch_warnings():
      warnings.simplefilter('ignore', exceptions.ConvergenceWarning)
      model.fit(x, train.labels)
    if max(model.n_iter_) >= _MOST_STEPS:
      logging.info('linear probe: l2=%g did not converge in %d steps; the last one is taken', penalty, _MOST_STEPS)
    rows, intercepts, present = (np.asarray(found) for found in (model.coef_, model.intercept_, model.classes_))
    yield standardize.fold(_head(rows, intercepts, present, train.num_classes))


def _best(accuracies: Mapping[float, float]) -> float:
  """Return the most accurate penalty, the first of equals."""
  return max(accuracies, key=lambda penalty: accuracies[penalty])


def _head(rows: np.ndarray, intercepts: np.ndarray, present: np.ndarray, num_classes: int) -> LinearHead:
  """Return the head of a fitted regression, whose rows are those of the classes that were present."""
  if len(present) == 2:  # one row: the difference of the two scores
    rows, intercepts = np.concatenate([-rows, rows]) / 2, np.concatenate([-intercepts, intercepts]) / 2
  kernel, bias = np.zeros((rows.shape[1], num_classes)), np.full(num_classes, _ABSENT)
  kernel[:, present], bias[present] = rows.T, intercepts
  return LinearHead(kernel, bias)


def _hold_out(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
  """Return (N,) bool: which images are held out, of each class as near to `fraction` as leaves one."""
  rng, held = np.random.default_rng(seed), np.zeros(len(labels), bool)
  for label in np.unique(labels):
    indices = rng.permutation(np.flatnonzero(labels == label))
    held[indices[:min(round(fraction * len(indices)), len(indices) - 1)]] = True
  return held
