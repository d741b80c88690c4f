"""Pools: how the tokens of an image become one vector.

The first `num_prefix` tokens are class token, distillation token and registers, the rest are patches. A pool with
`first_only` reads only the first token, so it may be given that token alone.
"""
from collections.abc import Mapping

from flax import nnx
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float

from vit_jax.models import attention, layers
from vit_jax.models.base import Tokens
from vit_jax.models.config import ViTConfig
from vit_jax.models.mlp import Mlp

Pooled = Float[Array, 'batch width']


class TokenPool(nnx.Module):
  """The class token, which comes first (paper, equation 4)."""

  first_only = True

  def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
    del config, rngs

  def __call__(self, tokens: Tokens, num_prefix: int) -> Pooled:
    """Return the first token."""
    del num_prefix
    return tokens[:, 0]


class DistilledPool(nnx.Module):
  """The class token and the distillation token, for a head each (DeiT, arXiv 2012.12877, section 4)."""

  first_only = False

  def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
    del config, rngs

  def __call__(self, tokens: Tokens, num_prefix: int) -> Float[Array, 'batch 2 width']:
    """Return the first two tokens."""
    del num_prefix
    return tokens[:, :2]


class AveragePool(nnx.Module):
  """The mean over all patches (paper, appendix D.3)."""

  first_only = False

  def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
    del config, rngs

  def __call__(self, tokens: Tokens, num_prefix: int) -> Pooled:
    """Return the mean over the patches."""
    return tokens[:, num_prefix:].mean(axis=1)


class TokenAveragePool(nnx.Module):
  """The class token beside the mean over all patches (DINOv2's linear classifier, arXiv 2304.07193, section 7.1)."""

  first_only = False

  def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
    del config, rngs

  def __call__(self, tokens: Tokens, num_prefix: int) -> Float[Array, 'batch twice_width']:
    """Return [first token, mean over the patches]."""
    return jnp.concatenate([tokens[:, 0], tokens[:, num_prefix:].mean(axis=1)], axis=-1)


class AttentionPool(nnx.Module):
  """One learned query attends to all tokens, then x + mlp(norm(x)) ("Scaling Vision Transformers", MAP head)."""

  first_only = False

  def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
    width, dtype = config.width, jnp.dtype(config.dtype)
    # The initializer gets the shape in which big_vision keeps the probe, (1, 1, width).
    probe = nnx.initializers.xavier_uniform()(rngs.params(), (1, 1, width), jnp.float32)
    self.probe = nnx.Param(probe.reshape(width))
    self.attention = attention.Attention(width, config.heads, dtype=dtype, rngs=rngs)
    self.norm = nnx.LayerNorm(width, epsilon=config.norm_epsilon, dtype=dtype, rngs=rngs)
    self.mlp = Mlp(width, config.mlp_dim, dropout=0.0, gelu=config.gelu, dtype=dtype, rngs=rngs)

  def __call__(self, tokens: Tokens, num_prefix: int) -> Pooled:
    """Return what the learned query gets."""
    del num_prefix
    probe = jnp.broadcast_to(self.probe[...].astype(tokens.dtype), (tokens.shape[0], 1, tokens.shape[-1]))
    x = self.attention(tokens, probe)
    return (x + self.mlp(layers.layer_norm(self.norm, x)))[:, 0]


POOLS: Mapping[str, type] = {
    'distilled': DistilledPool,
    'gap': AveragePool,
    'map': AttentionPool,
    'token': TokenPool,
    'token_gap': TokenAveragePool,
}
