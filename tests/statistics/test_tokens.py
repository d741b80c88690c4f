"""Norms of tokens and the share of outliers."""
import numpy as np

from vit_jax.statistics import tokens


def test_norms():
  found = tokens.norms(np.array([[[3, 4], [0, 0]], [[5, 12], [1, 0]]], np.float16))
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, [[5, 0], [13, 1]])


def test_share_of_outliers():
  """The median of the first row is 2, of the second 5; an outlier is above three times the median, not at it."""
  norms = np.array([[1, 2, 2, 6, 6.5], [5, 5, 5, 5, 5]])
  np.testing.assert_allclose(tokens.outlier_share(norms), [0.2, 0.0])
  np.testing.assert_allclose(tokens.outlier_share(norms, factor=1.0), [0.4, 0.0])
