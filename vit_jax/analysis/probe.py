"""How well a linear classifier tells classes apart from the features of each layer."""
from collections.abc import Sequence
import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

HELD_OUT = 0.25  # share of the images that the accuracy is measured on
_ITERATIONS = 500


def why_not(classes: Sequence[str]) -> str | None:
  """Return why images of these classes cannot be split for a probe, or None if they can."""
  counts = np.unique(list(classes), return_counts=True)[1]
  if len(counts) < 2:
    return 'needs images in at least two class folders'
  if counts.min() < 2:
    return 'needs at least two images of each class; use a larger --count'
  held_out = int(np.ceil(HELD_OUT * len(classes)))
  if held_out < len(counts):
    return f'{held_out} held-out images are fewer than the {len(counts)} classes; use a larger --count'
  return None


def split(classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
  """Return the indices of the images that train the classifiers and of those that are held out.

  The same for the same classes; every class is in both, in proportion.
  """
  train, test = train_test_split(np.arange(len(classes)), test_size=HELD_OUT, stratify=list(classes), random_state=0)
  return np.sort(train), np.sort(test)


def accuracies(layers: Sequence[np.ndarray], classes: Sequence[str]) -> np.ndarray:
  """Return the accuracy on held-out images of a logistic regression on the features of each layer.

  Features are standardized; the regression is scikit-learn's with its default penalty.

  Args:
    layers: (images, features) of each layer.
    classes: of each image; see `why_not`.

  Returns:
    (layers,), 0..1.
  """
  names = np.array(list(classes))
  train, test = split(classes)
  found = []
  for features in layers:
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=_ITERATIONS))
    with warnings.catch_warnings():
      warnings.simplefilter('ignore', ConvergenceWarning)  # the penalty keeps an unfinished fit usable
      classifier.fit(features[train], names[train])
    found.append(classifier.score(features[test], names[test]))
  return np.array(found)
