"""What changes from step to step, as one tree of arrays."""
from typing import Any

import flax
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class TrainState:
  """The state of training.

  Attributes:
    step: () int32, optimizer steps taken.
    params: tree of float32 parameters, the model's natural shapes.
    opt_state: optax state.
    ema: exponential moving average of the parameters, or None.
    seen: () uint32, a hash of all examples seen and of their order from step to step.
  """
  step: jax.Array
  params: Any
  opt_state: Any
  ema: Any
  seen: jax.Array

  @classmethod
  def create(cls, params, optimizer, *, ema: bool):
    """A state at step 0."""
    # The average is a copy: two leaves of a donated state must not share a buffer.
    average = jax.tree.map(jnp.copy, params) if ema else None
    return cls(step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params), ema=average,
               seen=jnp.zeros((), jnp.uint32))
