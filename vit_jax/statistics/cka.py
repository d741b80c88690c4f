"""Centered kernel alignment: how similar two representations of the same examples are (arXiv 1905.00414).

0 is unrelated, 1 is equal up to rotation and scale. Linear kernels; NumPy in float64.
"""
import numpy as np

FEWEST = 4  # examples that the unbiased estimator needs


def linear(x: np.ndarray, y: np.ndarray, debiased: bool = False) -> float:
  """Return the linear CKA of two representations.

  Args:
    x: (examples, ...), all other axes are features.
    y: likewise; the same examples, any number of features.
    debiased: whether the unbiased estimator of HSIC is used (Song et al., JMLR 13, 2012, equation 5): the plain one is
      close to 1 for anything if there are more features than examples. It needs at least 4 examples and can be
      slightly negative.

  Returns:
    NaN if a representation is the same for all examples.
  """
  grams = [gram(x)[None], gram(y)[None]]
  estimate = hsic if debiased else biased_hsic
  return float(normalize(estimate(*grams), *(np.diag(estimate(k, k)) for k in grams))[0, 0])


def gram(x: np.ndarray) -> np.ndarray:
  """Return the products of all pairs of examples (examples, examples), float64, of features without their mean."""
  flat = np.asarray(x, np.float64).reshape(len(x), -1)
  flat = flat - flat.mean(axis=0)
  return flat @ flat.T


def biased_hsic(k: np.ndarray, l: np.ndarray) -> np.ndarray:
  """Return the Hilbert-Schmidt independence criterion of Gram matrices, tr(K H L H) / (n - 1)² (arXiv 1905.00414).

  Args:
    k: (layers, examples, examples).
    l: (other layers, examples, examples).

  Returns:
    (layers, other layers).
  """
  k, l = (x - x.mean(axis=1, keepdims=True) - x.mean(axis=2, keepdims=True) + x.mean(axis=(1, 2), keepdims=True)
          for x in (np.asarray(k, np.float64), np.asarray(l, np.float64)))
  return np.einsum('aij,bij->ab', k, l) / (k.shape[1] - 1) ** 2


def hsic(k: np.ndarray, l: np.ndarray) -> np.ndarray:
  """Return the unbiased estimator of HSIC (Song et al., JMLR 13, 2012, equation 5), which diagonals do not enter.

  Shifting all features by a constant does not change it.

  Args:
    k: (layers, examples, examples), at least 4 examples.
    l: (other layers, examples, examples).

  Returns:
    (layers, other layers).
  """
  n = k.shape[1]
  outside = 1.0 - np.eye(n)
  k, l = (np.asarray(x, np.float64) * outside for x in (k, l))
  trace = np.einsum('aij,bij->ab', k, l)
  sums = np.outer(k.sum(axis=(1, 2)), l.sum(axis=(1, 2))) / ((n - 1) * (n - 2))
  rows = np.einsum('ai,bi->ab', k.sum(axis=2), l.sum(axis=2)) * 2 / (n - 2)
  return (trace + sums - rows) / (n * (n - 3))


def normalize(cross: np.ndarray, own: np.ndarray, other: np.ndarray) -> np.ndarray:
  """Return CKA from HSIC: cross / sqrt(own · other); NaN where one of them is not positive.

  Args:
    cross: (layers, other layers).
    own: (layers,), of each layer with itself.
    other: (other layers,).
  """
  scale = np.outer(own, other)
  valid = (own[:, None] > 0) & (other > 0)
  return np.where(valid, cross, np.nan) / np.sqrt(np.where(valid, scale, 1.0))


class Minibatch:
  """CKA between all layers of two models from Gram matrices of minibatches (arXiv 2010.15327, section 3).

  The unbiased estimates of HSIC are averaged over the batches, so that the result does not depend on their size, and
  nothing but one batch's Gram matrices is in memory.
  """

  def __init__(self):
    self._sums: list[np.ndarray] = []
    self.batches = 0

  def add(self, k: np.ndarray, l: np.ndarray | None = None) -> None:
    """Add a batch.

    Args:
      k: Gram matrices of all layers, (layers, examples, examples), at least 4 examples.
      l: those of the other model for the same examples; None: k.
    """
    own = np.array([hsic(x[None], x[None])[0, 0] for x in k])
    other = own if l is None else np.array([hsic(x[None], x[None])[0, 0] for x in l])
    found = [hsic(k, k if l is None else l), own, other]
    self._sums = [a + b for a, b in zip(self._sums, found, strict=True)] if self._sums else found
    self.batches += 1

  def result(self) -> np.ndarray:
    """Return CKA, (layers, other layers); NaN where a layer is the same for all examples.

    Raises:
      ValueError: no batch was added.
    """
    if not self._sums:
      raise ValueError('expected at least one batch')
    return normalize(*self._sums)
