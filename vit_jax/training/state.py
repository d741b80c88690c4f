"""What changes from step to step, as one tree of arrays."""
from collections.abc import Mapping
import dataclasses
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import optax

from vit_jax.objectives.base import EMA, OBJECTIVE


@struct.dataclass
class TrainState:
  """The state of training.

  Attributes:
    step: () int32, optimizer steps taken.
    params: tree of float32 parameters: the model's in their natural shapes and, if any, the objective's under
      OBJECTIVE.
    opt_state: optax state.
    ema: exponential moving average of the parameters, or None.
    seen: () uint32, a hash of all examples seen and of their order from step to step.
    averages: the objective's running averages; None if it keeps none.
    constants: what the objective reads and no step changes, a loaded teacher's parameters; None if there is nothing.
      Checkpoints do not hold it.
  """
  step: jax.Array
  params: Any
  opt_state: Any
  ema: Any
  seen: jax.Array
  averages: Any = None
  constants: Any = None

  @property
  def for_objective(self) -> dict[str, Any]:
    """The running averages and the constants, as an objective is called with them."""
    return {**(self.averages or {}), **(self.constants or {})}

  @property
  def averaged_params(self) -> Any:
    """The EMA of the parameters, or the one that the objective keeps as a teacher; None if there is neither."""
    return (self.averages or {}).get(EMA) if self.ema is None else self.ema

  def to_save(self) -> 'TrainState':
    """Return what checkpoints hold of the state."""
    return dataclasses.replace(self, constants=None)

  @classmethod
  def create(cls, params: Mapping[str, Any], optimizer: optax.GradientTransformation, *, ema: bool,
             averages: Any = None) -> 'TrainState':
    """Return the state at step 0."""
    # The EMA is a copy: two leaves of a donated state must not share a buffer.
    copy = jax.tree.map(jnp.copy, params) if ema else None
    return cls(step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params), ema=copy,
               seen=jnp.zeros((), jnp.uint32), averages=averages if jax.tree.leaves(averages) else None)


def join_params(model: Mapping[str, Any], own: Any) -> dict[str, Any]:
  """Return all trained parameters: the model's, and the objective's if it has any."""
  return dict(model, **({OBJECTIVE: own} if jax.tree.leaves(own) else {}))


def model_params(params: Mapping[str, Any]) -> dict[str, Any]:
  """Return the model's part of all trained parameters."""
  return {name: leaf for name, leaf in params.items() if name != OBJECTIVE}


def own_params(params: Mapping[str, Any]) -> Any:
  """Return the objective's part of all trained parameters."""
  return params.get(OBJECTIVE, {})
