"""Norms of tokens, and the outliers among them that registers cure (arXiv 2309.16588)."""
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

ArrayLike = Array | np.ndarray

# Ours. In the paper on registers outliers of DINOv2 have norms above 150, several times the others' (figure 3); a
# multiple of the median does not depend on the model.
OUTLIER_FACTOR = 3.0


def norms(tokens: Float[ArrayLike, '*batch tokens width']) -> Float[Array, '*batch tokens']:
  """Return the Euclidean norm of each token, float32."""
  return jnp.linalg.norm(jnp.asarray(tokens).astype(jnp.float32), axis=-1)


def outlier_share(norms: Float[ArrayLike, '*batch values'], factor: float = OUTLIER_FACTOR) -> Float[Array, '*batch']:
  """Return the share of norms above `factor` times their median, 0..0.5.

  Args:
    norms: those that are compared with each other, along the last axis.
    factor: at least 1.
  """
  norms = jnp.asarray(norms)
  return (norms > factor * jnp.median(norms, axis=-1, keepdims=True)).mean(axis=-1)
