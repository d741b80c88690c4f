"""What went wrong in a step: the loss of every example, and the layers whose numbers are not finite."""
from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import jax
import numpy as np

from vit_jax.distributed.strategy import Strategy
from vit_jax.models.base import Model
from vit_jax.training.health import squares_by_layer
from vit_jax.training.state import TrainState
from vit_jax.training.step import ExampleLosses, Gradients

Program = Callable[[TrainState, Mapping[str, jax.Array]], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Diagnosis:
  """What one step computes from one state, without applying it.

  Attributes:
    losses: (B,) float32, in the order of the global batch.
    ids: (B,) int32, of the examples.
    loss: mean loss of the step, NaN if it is not finite.
    grad_norm: likewise, of its gradient.
    params: {layer: norm} of the parameters.
    grads: {layer: norm} of the gradient.
  """
  losses: np.ndarray
  ids: np.ndarray
  loss: float
  grad_norm: float
  params: dict[str, float]
  grads: dict[str, float]

  @property
  def finite(self) -> bool:
    """Whether the step would be applied."""
    return bool(np.isfinite(self.loss) and np.isfinite(self.grad_norm))

  def broken_layers(self) -> dict[str, list[str]]:
    """Return {'parameters' or 'gradient': layers whose numbers are not finite}, without empty lists."""
    found = dict(parameters=self.params, gradient=self.grads)
    broken = {name: [layer for layer, norm in norms.items() if layer != 'all' and not np.isfinite(norm)]
              for name, norms in found.items()}
    return {name: layers for name, layers in broken.items() if layers}


def make_program(model: Model, gradients: Gradients, losses: ExampleLosses, strategy: Strategy) -> Program:
  """Build the program that `read` reads.

  Args:
    model: what is known of the parameters.
    gradients: first half of the step.
    losses: of the examples.
    strategy: how the step is spread over devices.
  """

  def diagnose(state: TrainState, batch: Mapping[str, jax.Array]) -> dict[str, Any]:
    grads, metrics, _ = gradients(state, batch)
    found = strategy.gather(dict(losses=losses(state, batch), ids=batch['id']))
    return dict(found, loss=metrics['loss'], params=squares_by_layer(state.params, model),
                grads=squares_by_layer(grads, model))

  return diagnose


def read(found: Mapping[str, Any]) -> Diagnosis:
  """Return what the program computed, as numbers on the host."""
  found = jax.device_get(found)
  with np.errstate(invalid='ignore'):
    norms = {name: {layer: float(np.sqrt(square)) for layer, square in found[name].items()}
             for name in ('params', 'grads')}
    total, count = (float(x) for x in found['loss'])
  return Diagnosis(np.asarray(found['losses']), np.asarray(found['ids']), total / count if count else float('nan'),
                   norms['grads']['all'], norms['params'], norms['grads'])
