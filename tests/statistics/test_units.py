"""Dead units: which slopes count as such."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.statistics import units


def test_a_unit_is_dead_if_no_token_lets_a_gradient_pass():
  slopes = np.zeros((2, 3, 4), np.float32)  # examples, tokens, units
  slopes[0, 1, 0], slopes[0, 2, 1], slopes[0, :, 2], slopes[1, 0, 3] = 0.5, -0.011, 0.0099, -1.0
  np.testing.assert_array_equal(units.dead_share(slopes), [0.5, 0.75])
  np.testing.assert_allclose(units.largest_slopes(slopes), [[0.5, 0.011, 0.0099, 0], [0, 0, 0, 1]])
  assert units.dead_share(slopes[0], threshold=0.6) == 1


@pytest.mark.parametrize('function, edge', [
    (lambda x: jax.nn.gelu(x, approximate=False), -3.07), (jax.nn.gelu, -3.05),
    (lambda x: x * jax.nn.sigmoid(1.702 * x), -3.68), (jax.nn.silu, -6.26)])
def test_where_activation_functions_are_dead(function, edge):
  slope = lambda x: float(jnp.abs(jax.grad(function)(jnp.float32(x))))
  assert slope(edge - 0.01) < units.DEAD_SLOPE < slope(edge + 0.01)
  assert all(slope(x) < units.DEAD_SLOPE for x in np.linspace(-30, edge - 0.01, 20))
