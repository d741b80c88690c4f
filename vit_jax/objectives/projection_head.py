"""The projection head of DINO: an MLP, a bottleneck of norm 1, and cosines with learned prototypes."""
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vit_jax.models import layers

_LAYERS = ('hidden_0', 'hidden_1', 'bottleneck')


def init(key: Key[Array, ''], features: int, hidden: int, bottleneck: int, outputs: int) -> dict[str, Any]:
  """Return the parameters (arXiv 2104.14294, appendix C; the authors' `DINOHead`).

  Args:
    key: of the draw.
    features: of the representation.
    hidden: features of the two hidden layers.
    bottleneck: features of the third.
    outputs: number of prototypes.
  """
  *keys, last_key = jax.random.split(key, len(_LAYERS) + 1)
  sizes = (features, hidden, hidden, bottleneck)
  # A standard deviation of 1 / sqrt(2048) is the authors' 0.02; narrower layers need more, as the bottleneck is divided
  # by its norm and gradients by the same.
  params: dict[str, Any] = {
      name: dict(kernel=jax.random.normal(key, sizes[i:i + 2]) / math.sqrt(sizes[i]), bias=jnp.zeros(sizes[i + 1]))
      for i, (name, key) in enumerate(zip(_LAYERS, keys, strict=True))}
  # PyTorch's default for a linear layer; only the direction of a prototype counts.
  limit = 1 / math.sqrt(bottleneck)
  kernel = jax.random.uniform(last_key, (bottleneck, outputs), minval=-limit, maxval=limit)
  return dict(params, prototypes=dict(kernel=kernel))


def project(params: Any, x: Float[Array, 'batch features'], dtype: str) -> Float[Array, 'batch outputs']:
  """Return the cosines of the projected features and the prototypes, float32.

  The last layer is weight-normalized with every norm fixed at 1, so that no output can grow by its own weights (the
  authors' `norm_last_layer`).

  Args:
    params: from `init`, or trained since.
    x: representations.
    dtype: of the products; norms are float32.
  """
  x = x.astype(dtype)
  for name in _LAYERS:
    x = layers.affine('bi,io->bo', x, params[name]['kernel'], params[name]['bias'])
    x = x if name == _LAYERS[-1] else layers.gelu_exact(x)
  x, kernel = _unit(x.astype(jnp.float32), axis=1), _unit(params['prototypes']['kernel'], axis=0)
  return layers.einsum('bi,io->bo', x.astype(dtype), kernel.astype(dtype))


def _unit(x: Array, axis: int) -> Array:
  """Return vectors of norm 1; a zero stays zero, with a gradient that is finite."""
  return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(axis=axis, keepdims=True), 1e-24))
