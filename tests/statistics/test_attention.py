"""Statistics of constructed attention (identity, uniform, shifted), and of random attention against plain loops."""
import math

import numpy as np
import pytest

from vit_jax.base.errors import UserError
from vit_jax.statistics import attention

GRID, PATCH = (3, 4), (8, 6)
CELLS = [(row, column) for row in range(GRID[0]) for column in range(GRID[1])]


def random_weights(*shape, seed=0):
  weights = np.random.default_rng(seed).gamma(0.3, size=shape)
  return (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)


def test_identity():
  eye = np.broadcast_to(np.eye(12, dtype=np.float32), (5, 2, 12, 12))
  assert not np.any(attention.mean_distance(eye, GRID, PATCH))
  assert not np.any(attention.entropy(eye))
  np.testing.assert_allclose(attention.rollout(eye[:, None]), eye[:1, 0], atol=1e-6)


def test_uniform_over_a_row_of_patches():
  """The mean of |i - j| over all pairs of n places is (n² - 1) / 3n."""
  uniform = np.full((1, 10, 10), 0.1, np.float32)
  for grid in ((1, 10), (10, 1)):
    expected = (10**2 - 1) / 30 * PATCH[grid[0] == 1]
    np.testing.assert_allclose(attention.mean_distance(uniform, grid, PATCH), [expected], rtol=1e-6)
  np.testing.assert_allclose(attention.entropy(uniform), [math.log(10)], rtol=1e-6)


@pytest.mark.parametrize('step, distance', [((0, 1), 6), ((1, 0), 8), ((1, 1), 10)])
def test_shifted(step, distance):
  """Every patch attends to a neighbor, at the border to that on the other side; patches are 6 × 8 pixels."""
  weights = np.zeros((12, 12), np.float32)
  for query, (row, column) in enumerate(CELLS):
    down = step[0] if row < GRID[0] - 1 else -step[0]
    right = step[1] if column < GRID[1] - 1 else -step[1]
    weights[query, CELLS.index((row + down, column + right))] = 1
  np.testing.assert_allclose(attention.mean_distance(weights[None], GRID, PATCH), [distance], rtol=1e-6)


@pytest.mark.parametrize('prefix', [0, 1, 3])
def test_distance_and_entropy_against_loops(prefix):
  weights = random_weights(2, 3, prefix + 12, prefix + 12)
  distance, entropy = np.zeros((2, 3)), np.zeros((2, 3))
  for image, head in np.ndindex(2, 3):
    for query, (row, column) in enumerate(CELLS):
      for key, (other_row, other_column) in enumerate(CELLS):
        pixels = math.sqrt((8 * (row - other_row)) ** 2 + (6 * (column - other_column)) ** 2)
        distance[image, head] += pixels * weights[image, head, prefix + query, prefix + key] / 12
    for row in weights[image, head]:
      entropy[image, head] -= sum(w * math.log(w) for w in map(float, row) if w) / (prefix + 12)
  np.testing.assert_allclose(attention.mean_distance(weights, GRID, PATCH, prefix), distance, rtol=1e-5)
  np.testing.assert_allclose(attention.entropy(weights), entropy, rtol=1e-5)


def test_attention_to_the_class_token_counts_as_distance_zero():
  """Half of the weight on the class token, half on the patch to the right or left."""
  weights = np.zeros((1, 5, 5), np.float32)
  weights[0, :, 0] = 0.5
  for query, key in ((1, 2), (2, 1), (3, 4), (4, 3)):
    weights[0, query, key] = 0.5
  np.testing.assert_allclose(attention.mean_distance(weights, (2, 2), (16, 16), prefix=1), [8])


def test_weights_of_another_grid_are_refused():
  with pytest.raises(UserError, match=r'1 tokens and 3×4 patches, \(\.\.\., 13, 13\); got \(2, 12, 12\)'):
    attention.mean_distance(random_weights(2, 12, 12), GRID, PATCH, prefix=1)


def test_rollout_against_loops():
  weights = random_weights(4, 2, 3, 7, 7)
  for image in range(2):
    product = np.eye(7)
    for layer in range(4):
      mixed = sum(weights[layer, image, head].astype(np.float64) for head in range(3)) / 3 + np.eye(7)
      for row in mixed:
        row /= row.sum()
      product = mixed @ product
    np.testing.assert_allclose(attention.rollout(weights)[image], product, rtol=1e-5)


def test_uniform_rollout():
  """One layer moves half of a token to the mean of all; after L layers, 2^-L of it is still in place."""
  rolled = np.asarray(attention.rollout(np.full((5, 1, 8, 8), 1 / 8, np.float32)))
  np.testing.assert_allclose(rolled, 2.0**-5 * np.eye(8) + (1 - 2.0**-5) / 8, rtol=1e-6)


def test_rollout_map():
  """The row of the class token without the prefix; without class token the mean over the patches' rows."""
  rolled = random_weights(2, 14, 14)
  found = attention.rollout_map(rolled, GRID, prefix=2)
  np.testing.assert_array_equal(found, rolled[:, 0, 2:].reshape(2, *GRID))
  found = attention.rollout_map(rolled, GRID, prefix=2, class_token=False)
  np.testing.assert_allclose(found, rolled[:, 2:].mean(axis=1)[:, 2:].reshape(2, *GRID), rtol=1e-6)
