"""How a step is spread over devices, behind one small contract.

A strategy is built for some devices (None: those that jax has) and has

  axis_name: the device axis the step averages over, or None where the step sees all examples at once.
  shares: in how many equal shares, each on devices of its own, a global batch is cut; the step sees one share where there
    is an `axis_name`, else all of them, one after the other.
  micro_batches(batch_size, micro_batch): how many a share makes; raises ValueError unless the sizes divide.
  create(function): the state that a jitted function() gives, made on the devices.
  place(state): a host's state, or one that lies otherwise, onto the devices.
  fetch(state): what `Checkpoints.save` takes, before a step that donates the state.
  put(batch): a host's share of a batch, its contiguous rows of it, onto the devices.
  compile(function, *, donate): a jitted function(state, batch) over all devices. What it returns besides a state is the
    same on all of them. `donate` gives up the state. It has `lower`, which takes what the next two return.
  abstract(state): jax.ShapeDtypeStructs of a state as `place` leaves it; raises ValueError for sizes that do not divide.
  abstract_batch(batch): likewise of a global batch, arrays (B, …).
  gather(tree): inside a compiled function, arrays of all examples, (B, …), from those of the examples it sees.
"""
from collections.abc import Sequence
import dataclasses
from typing import Any

import jax

from vit_jax.base.choices import choose
from vit_jax.base.errors import UserError
from vit_jax.distributed.mesh import Mesh
from vit_jax.distributed.pmap import Pmap


@dataclasses.dataclass(frozen=True)
class ParallelConfig:
  """Section `parallel` of a recipe: how a step is spread over devices.

  Attributes:
    strategy: a name of `STRATEGIES`: 'pmap', every device holds the whole state, or 'mesh', which shards it.
    data: for 'mesh', number of groups of devices that each hold the whole state; -1 is what the other axes leave.
    fsdp: for 'mesh', devices that share one copy of the state, each with its own examples; or -1.
    tensor: for 'mesh', devices that share the heads and the hidden MLP features of each example; or -1.
  """
  strategy: str = 'pmap'
  data: int = -1
  fsdp: int = 1
  tensor: int = 1

  def __post_init__(self):
    choose(STRATEGIES, self.strategy, 'parallel.strategy')
    if self.strategy == 'pmap' and (self.data, self.fsdp, self.tensor) != (-1, 1, 1):
      raise UserError(f'parallel: data={self.data}, fsdp={self.fsdp}, tensor={self.tensor} need '
                      "--config.parallel.strategy=mesh; got 'pmap'")


def build(config: ParallelConfig, devices: Sequence[jax.Device] | None = None) -> Any:
  """Build a strategy.

  Args:
    config: which strategy, and the axes of its mesh.
    devices: all devices of the run, also those of a TPU topology that is not there; None takes what jax finds.

  Raises:
    UserError: a mesh of another number of devices than there are.
  """
  if config.strategy == 'mesh':
    return Mesh(devices, data=config.data, fsdp=config.fsdp, tensor=config.tensor)
  return Pmap(devices)


Strategy = Any
STRATEGIES = {
    'mesh': Mesh,
    'pmap': Pmap,
}

# For a run of many devices that is evaluated on few. Cut over all of them, the state takes as little of each as it can;
# a model that they do not divide lies whole on each.
FOR_EVALUATION = (ParallelConfig('mesh', data=1, fsdp=-1, tensor=1), ParallelConfig('pmap'))
