"""CKA: closed forms, invariances, and against the definitions in plain loops."""
import math

import numpy as np
import pytest

from vit_jax.statistics import cka

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(12, 5)), RNG.normal(size=(12, 3))


def by_definition(x, y):
  """Kornblith et al., equation 6 with features: |Yᵀ X|² / (|Xᵀ X| |Yᵀ Y|), Frobenius norms, centered."""
  x, y = x - x.mean(axis=0), y - y.mean(axis=0)
  norm = lambda a, b: math.sqrt(sum((a[:, i] @ b[:, j]) ** 2 for i in range(a.shape[1]) for j in range(b.shape[1])))
  return norm(y, x) ** 2 / (norm(x, x) * norm(y, y))


def hsic_as_statistic(k, l):
  """The U-statistic that Song et al.'s equation 5 computes: the mean over all ordered quadruples of different examples."""
  n, total, count = len(k), 0.0, 0
  for i in range(n):
    for j in range(n):
      for q in range(n):
        for r in range(n):
          if len({i, j, q, r}) == 4:
            total += k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q])
            count += 1
  return total / count


def test_linear():
  assert cka.linear(X, Y) == pytest.approx(by_definition(X, Y), rel=1e-12)


@pytest.mark.parametrize('debiased', [False, True])
def test_equal_up_to_rotation_scale_and_shift(debiased):
  rotation = np.linalg.qr(RNG.normal(size=(5, 5)))[0]
  assert cka.linear(X, 3 * X @ rotation + 7, debiased) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize('debiased', [False, True])
def test_the_same_for_all_examples_is_not_a_number(debiased):
  assert math.isnan(cka.linear(X, np.ones((12, 4)), debiased))


def test_orthogonal():
  """Features without any correlation over the examples."""
  assert cka.linear(np.array([1.0, 1, -1, -1])[:, None], np.array([1.0, -1, 1, -1])[:, None]) == 0


def test_unbiased_hsic_is_the_mean_over_quadruples():
  x, y = X[:7], Y[:7]
  found = cka.hsic((x @ x.T)[None], (y @ y.T)[None])[0, 0]
  assert found == pytest.approx(hsic_as_statistic(x @ x.T, y @ y.T), rel=1e-10)


def test_debiased_is_small_for_unrelated_features_of_few_examples():
  pairs = np.random.default_rng(2).normal(size=(100, 2, 8, 200))
  assert min(cka.linear(x, y) for x, y in pairs) > 0.8
  assert abs(np.mean([cka.linear(x, y, debiased=True) for x, y in pairs])) < 0.05


def test_minibatches_give_that_of_many_examples():
  """The unbiased CKA of normal features x and y = 0.8 x + noise is |Σxy|² / (|Σxx| |Σyy|), Frobenius norms."""
  rng, sums = np.random.default_rng(1), cka.Minibatch()
  for _ in range(400):
    x = rng.normal(size=(8, 5))
    y = 0.8 * x + 0.6 * rng.normal(size=(8, 5))
    sums.add(*(np.stack([cka.gram(z), cka.gram(z[:, :2])]) for z in (x, y)))
  # All five features: 5 · 0.64 / (√5 √5). Two of x and five of y: 2 · 0.64 / (√2 √5).
  np.testing.assert_allclose(sums.result()[0, 0], 0.64, atol=0.03)
  np.testing.assert_allclose(sums.result()[1, 0], 2 * 0.64 / math.sqrt(10), atol=0.03)


def test_one_minibatch_is_the_debiased_estimate():
  sums = cka.Minibatch()
  sums.add(np.stack([cka.gram(X), cka.gram(Y)]))
  expected = [[1, cka.linear(X, Y, debiased=True)], [cka.linear(Y, X, debiased=True), 1]]
  np.testing.assert_allclose(sums.result(), expected, atol=1e-12)
