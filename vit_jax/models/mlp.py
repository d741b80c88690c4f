"""The MLP of an encoder block (paper, equation 3), plain or gated."""
from typing import Any

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from vit_jax.base.choices import choose
from vit_jax.models import layers
from vit_jax.models.base import Rngs, Tokens
from vit_jax.models.config import GATED_MLPS


class Mlp(nnx.Module):
  """Dense, GELU, Dense; dropout after each (paper, appendix B.1). The default initializers are the authors'.

  A gated MLP is down(activation(gate(x)) * up(x)) (Shazeer, "GLU variants improve Transformer", arXiv 2002.05202,
  equations 5 and 6).

  Args:
    width: features of a token.
    mlp_dim: hidden features.
    kind: 'gelu' is plain, 'swiglu' gated by SiLU, 'geglu' gated by GELU.
    gelu: a name of `layers.GELUS`.
    hidden_norm: whether the hidden features are layer-normalized (EVA-02, arXiv 2303.11331, section 2.1, "sub-LN").
    norm_epsilon: epsilon of that LayerNorm.
    dropout: rate.
    dtype: of activations and products.
    rngs: parameter stream.
    kernel_init: of all kernels.
    bias_init: of all biases.
  """

  def __init__(self, width: int, mlp_dim: int, *, kind: str = 'gelu', gelu: str, hidden_norm: bool = False,
               norm_epsilon: float = 1e-6, dropout: float, dtype: DTypeLike, rngs: nnx.Rngs,
               kernel_init: nnx.Initializer | None = None, bias_init: nnx.Initializer | None = None):
    init: dict[str, Any] = dict(kernel_init=kernel_init or nnx.initializers.xavier_uniform(),
                                bias_init=bias_init or nnx.initializers.normal(1e-6), dtype=dtype, rngs=rngs)
    self.up = nnx.Linear(width, mlp_dim, **init)
    self.down = nnx.Linear(mlp_dim, width, **init)
    self.gate = nnx.Linear(width, mlp_dim, **init) if kind in GATED_MLPS else None
    self.norm = nnx.LayerNorm(mlp_dim, epsilon=norm_epsilon, dtype=dtype, rngs=rngs) if hidden_norm else None
    self.dropout = dropout
    self.activation = layers.silu if kind == 'swiglu' else choose(layers.GELUS, gelu, 'model.gelu')

  def __call__(self, x: Tokens, rngs: Rngs = None) -> Tokens:
    """Return the MLP's output for each token.

    Args:
      x: tokens.
      rngs: one PRNG key per example in training, None in evaluation.
    """
    hidden_rngs, output_rngs = layers.split(rngs, 2)
    hidden = layers.dense(self.up, x)
    if self.gate is None:
      hidden = self.activation(hidden)
    else:
      hidden = self.activation(layers.dense(self.gate, x)) * hidden
    hidden = layers.dropout(hidden, self.dropout, hidden_rngs)
    if self.norm is not None:
      hidden = layers.layer_norm(self.norm, hidden)
    return layers.dropout(layers.dense(self.down, hidden), self.dropout, output_rngs)

  def slopes(self, x: Tokens) -> Float[Array, 'batch tokens mlp_dim']:
    """Return the derivative of the activation function (of a gated MLP: that of the gate) at every hidden unit.

    Args:
      x: tokens.
    """
    hidden = layers.dense(self.up if self.gate is None else self.gate, x)
    return jax.jvp(self.activation, (hidden,), (jnp.ones_like(hidden),))[1]
