"""The loss and the projection head of DINO against plain NumPy."""
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from vit_jax.objectives import projection_head
from vit_jax.objectives.dino import cross_entropies


@pytest.mark.parametrize('crops', [2, 5])
def test_cross_entropies_are_those_of_all_pairs_of_different_crops(crops):
  rng = np.random.default_rng(0)
  targets, logits = special.softmax(5 * rng.normal(size=(3, 2, 7)), axis=-1), 3 * rng.normal(size=(3, crops, 7))
  expected = []
  for b in range(3):
    terms = [-(targets[b, t] * special.log_softmax(logits[b, c])).sum()
             for t in range(2) for c in range(crops) if c != t]
    expected.append(sum(terms) / len(terms))
  got = cross_entropies(jnp.asarray(targets, jnp.float32), jnp.asarray(logits, jnp.float32))
  np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_a_target_of_zero_is_no_nan():
  targets = jnp.zeros((1, 2, 4)).at[..., 0].set(1.0)
  value, gradient = jax.value_and_grad(lambda x: cross_entropies(targets, x)[0])(1e4 * jnp.eye(4)[None, :3])
  assert math.isfinite(value) and jnp.isfinite(gradient).all()


def test_the_head_equals_its_formula():
  params = projection_head.init(jax.random.key(0), 6, 16, 5, 9)
  params = jax.tree.map(lambda x: x + 0.3, params)
  x = np.random.default_rng(0).normal(size=(4, 6))
  expected, p = x, jax.tree.map(np.float64, params)
  for name in ('hidden_0', 'hidden_1', 'bottleneck'):
    expected = expected @ p[name]['kernel'] + p[name]['bias']
    if name != 'bottleneck':
      expected = 0.5 * expected * (1 + special.erf(expected / math.sqrt(2)))
  expected /= np.linalg.norm(expected, axis=1, keepdims=True)
  expected = expected @ (p['prototypes']['kernel'] / np.linalg.norm(p['prototypes']['kernel'], axis=0))
  got = projection_head.project(params, jnp.asarray(x, jnp.float32), 'float32')
  np.testing.assert_allclose(got, expected, atol=1e-5)
  assert got.dtype == jnp.float32 and abs(got).max() <= 1 + 1e-6
  half = projection_head.project(params, jnp.asarray(x, jnp.float32), 'bfloat16')
  assert half.dtype == jnp.float32
  np.testing.assert_allclose(half, expected, atol=0.03)


def test_only_the_direction_of_a_prototype_counts():
  params = projection_head.init(jax.random.key(0), 6, 16, 5, 9)
  x = jax.random.normal(jax.random.key(1), (4, 6))
  longer = dict(params, prototypes=dict(kernel=3.0 * params['prototypes']['kernel']))
  np.testing.assert_allclose(projection_head.project(longer, x, 'float32'),
                             projection_head.project(params, x, 'float32'), atol=1e-6)


def test_features_of_zero_have_finite_gradients():
  params = projection_head.init(jax.random.key(0), 6, 16, 5, 9)
  gradient = jax.grad(lambda x: projection_head.project(params, x, 'float32').sum())(jnp.zeros((2, 6)))
  assert jnp.isfinite(gradient).all()
