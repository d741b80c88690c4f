"""Position embeddings: where a token stands on the grid of patches.

Each class is built with the grid (rows, columns), the width, and whether a class token is there.  Called, it
returns the pair (grid embedding (rows, columns, width), class token's own embedding (width,) or None).
"""
from flax import nnx
import jax.numpy as jnp


class Learned(nnx.Module):
  """One learned vector for each place, standard deviation 0.02 (paper, section 3.1, "1-D" in appendix D.4)."""

  def __init__(self, grid, width: int, *, class_token: bool, rngs: nnx.Rngs):
    init = nnx.initializers.normal(0.02)
    self.grid = nnx.Param(init(rngs.params(), (*grid, width), jnp.float32))
    self.token = nnx.Param(init(rngs.params(), (width,), jnp.float32)) if class_token else None

  def __call__(self):
    """Returns (grid (rows, columns, width), token (width,) or None), float32."""
    return self.grid[...], None if self.token is None else self.token[...]


class NoPosition(nnx.Module):
  """No position information: the encoder sees a bag of patches (paper, table 8, row 1)."""

  def __init__(self, grid, width: int, *, class_token: bool, rngs: nnx.Rngs):
    del grid, width, class_token, rngs

  def __call__(self):
    """Returns zeros that broadcast."""
    return jnp.zeros(()), jnp.zeros(())


class SinCos2D(nnx.Module):
  """Fixed sine and cosine of row and column at width / 4 frequencies (MoCo v3; "Better plain ViT", section 2)."""

  def __init__(self, grid, width: int, *, class_token: bool, rngs: nnx.Rngs):
    del class_token, rngs
    if width % 4:
      raise ValueError(f"position='sincos2d' needs a width divisible by 4, got {width}")
    self.grid = tuple(grid)
    self.width = width

  def __call__(self):
    """Returns (grid (rows, columns, width) of [sin x, cos x, sin y, cos y], zeros for the class token)."""
    rows, columns = self.grid
    n = self.width // 4
    # The k-th frequency is 10000^(-k / (n - 1)); a single one (n = 1) is 1.
    frequencies = 10_000.0 ** (-jnp.arange(n) / max(n - 1, 1))
    y, x = jnp.meshgrid(jnp.arange(rows), jnp.arange(columns), indexing='ij')
    angles = [axis[..., None] * frequencies for axis in (x, y)]
    return jnp.concatenate([f(a) for a in angles for f in (jnp.sin, jnp.cos)], axis=-1), jnp.zeros(())


POSITIONS = {
    'learned': Learned,
    'none': NoPosition,
    'sincos2d': SinCos2D,
}
