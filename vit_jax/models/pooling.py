"""How the tokens become one vector: (B, N, width) to (B, width).

The first `prefix` tokens are the class token and the registers, the rest are patches.  A pool that is
`first_only` gets only the first.
"""
from flax import nnx
import jax.numpy as jnp

from vit_jax.models import attention
from vit_jax.models import layers
from vit_jax.models.config import ViTConfig


class TokenPool(nnx.Module):
  """The class token, which comes first (paper, equation 4)."""

  first_only = True

  def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
    del config, rngs

  def __call__(self, tokens, prefix):
    """Returns (B, width)."""
    del prefix
    return tokens[:, 0]


class AveragePool(nnx.Module):
  """The mean over all patches (paper, appendix D.3)."""

  first_only = False

  def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
    del config, rngs

  def __call__(self, tokens, prefix):
    """Returns (B, width)."""
    return tokens[:, prefix:].mean(axis=1)


class AttentionPool(nnx.Module):
  """One learned query attends to all tokens, then x + mlp(norm(x)) ("Scaling Vision Transformers", MAP head)."""

  first_only = False

  def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
    width, dtype = config.width, jnp.dtype(config.dtype)
    # The initialiser sees the probe as big_vision keeps it, (1, 1, width).
    probe = nnx.initializers.xavier_uniform()(rngs.params(), (1, 1, width), jnp.float32)
    self.probe = nnx.Param(probe.reshape(width))
    self.attention = attention.Attention(width, config.heads, dtype=dtype, rngs=rngs)
    self.norm = nnx.LayerNorm(width, epsilon=config.norm_epsilon, dtype=dtype, rngs=rngs)
    self.mlp = layers.MlpBlock(width, config.mlp_dim, dropout=0.0, gelu=config.gelu, dtype=dtype, rngs=rngs)

  def __call__(self, tokens, prefix):
    """Returns (B, width)."""
    del prefix
    probe = jnp.broadcast_to(self.probe[...].astype(tokens.dtype), (tokens.shape[0], 1, tokens.shape[-1]))
    x = self.attention(tokens, probe)
    return (x + self.mlp(layers.layer_norm(self.norm, x)))[:, 0]


POOLS = {
    'gap': AveragePool,
    'map': AttentionPool,
    'token': TokenPool,
}
