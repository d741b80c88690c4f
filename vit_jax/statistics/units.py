"""Hidden units of MLPs: the share of dead ones."""
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

ArrayLike = Array | np.ndarray

# Ours: a hundredth of a gradient. GELU has such a slope below -3.07 (its tanh approximation: -3.05), quick GELU below
# -3.68, SiLU below -6.26; also close to their minimum, where no unit is at all tokens.
DEAD_SLOPE = 0.01


def largest_slopes(slopes: Float[ArrayLike, '*batch tokens units']) -> Float[Array, '*batch units']:
  """Return the largest size of a unit's slopes over all tokens, float32.

  Args:
    slopes: derivative of the activation function at each token and unit.
  """
  return jnp.abs(jnp.asarray(slopes)).max(axis=-2).astype(jnp.float32)


def dead_share(slopes: Float[ArrayLike, '*batch tokens units'],
               threshold: float = DEAD_SLOPE) -> Float[Array, '*batch']:
  """Return the share of units that are dead: less than `threshold` of a gradient passes at any of the tokens, 0..1.

  A unit of a ReLU network is dead if it is 0 for all inputs, as its gradient then is 0, too, and it cannot recover. A
  GELU is never exactly that, so it counts what a gradient would meet. More tokens can only make fewer units dead.

  Args:
    slopes: derivative of the activation function at each token and unit.
    threshold: positive.
  """
  return (largest_slopes(slopes) < threshold).mean(axis=-1)
