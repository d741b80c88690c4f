"""How a training step is spread over devices, behind one contract: `Strategy`."""
from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
from jax.stages import Wrapped

from vit_jax.base.choices import choose
from vit_jax.base.errors import UserError
from vit_jax.distributed.mesh import Mesh
from vit_jax.distributed.pmap import Pmap
from vit_jax.models.base import ParamTree

T = TypeVar('T')


@runtime_checkable
class Strategy(Protocol):
  """A way to spread a step over devices; `str()` describes it in words.

  A state is any pytree with arrays; a training state has its parameters in `params`. A batch is a dictionary of arrays
  with one row per example.
  """

  @property
  def num_shards(self) -> int:
    """Number of equal shards of a global batch, each on its own devices.

    With an `axis_name` the step sees one shard, without one it sees all of them, one after the other.
    """
    ...

  @property
  def axis_name(self) -> str | None:
    """Device axis that the step averages over; None if the step sees all examples at once."""
    ...

  def num_micro_batches(self, batch_size: int, micro_batch: int | None) -> int:
    """Return the number of micro-batches in each shard of a global batch, see `batch_split.count_micro_batches`.

    Raises:
      UserError: the sizes do not divide.
    """
    ...

  def for_model(self, model: ParamTree) -> 'Strategy':
    """Return the strategy for states whose parameters are those of a model; before `create`, `place` and the rest."""
    ...

  def create(self, function: Callable[[], T]) -> T:
    """Return the state that the jitted `function()` returns, made on the devices."""
    ...

  def place(self, state: T) -> T:
    """Put a state on the devices, from host memory or from another sharding."""
    ...

  def fetch(self, state: T) -> T:
    """Return what `Checkpoints.save` takes; call it before a step that donates the state."""
    ...

  def put(self, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Put this process's contiguous rows of a global batch on its devices, as a compiled function takes them."""
    ...

  def rotate(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Return a batch that was `put`, with every shard moved to the devices of the next; see `places`."""
    ...

  def places(self) -> tuple[list[str], list[int]]:
    """Return (names of the devices of every shard, number of the shard on whose devices `rotate` puts it)."""
    ...

  def compile(self, function: Callable[[Any, Any], Any], *, donate: bool) -> Wrapped:
    """Return the jitted `function(state, batch)` over all devices; `lower` takes `abstract` and `abstract_batch`.

    Args:
      function: what it returns in addition to a state must be the same on all devices.
      donate: whether calls give up the buffers of the state.
    """
    ...

  def abstract(self, state: T) -> T:
    """Return the `jax.ShapeDtypeStruct`s of a state as `place` returns it, from its shapes.

    Raises:
      UserError: a dimension that the devices do not divide.
    """
    ...

  def abstract_batch(self, batch: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the `jax.ShapeDtypeStruct`s of a global batch as `put` returns it, from those of arrays (B, …)."""
    ...

  def gather(self, tree: T) -> T:
    """Return arrays of all examples, (B, …), from those of the examples seen here; inside a compiled function."""
    ...


@dataclasses.dataclass(frozen=True)
class ParallelConfig:
  """Section `parallel` of a recipe: how a step is spread over devices.

  Attributes:
    strategy: a name in `STRATEGIES`: 'pmap' keeps the whole state on every device, 'mesh' shards it.
    data: for 'mesh', number of device groups that each hold the whole state; -1 takes the devices that are left.
    fsdp: for 'mesh', number of devices that share one copy of the state, each with its own examples; or -1.
    tensor: for 'mesh', number of devices that share the heads and hidden MLP features of each example; or -1.
  """
  strategy: str = 'pmap'
  data: int = -1
  fsdp: int = 1
  tensor: int = 1

  def __post_init__(self):
    choose(STRATEGIES, self.strategy, 'parallel.strategy')
    if self.strategy == 'pmap' and (self.data, self.fsdp, self.tensor) != (-1, 1, 1):
      raise UserError('parallel.data, parallel.fsdp, parallel.tensor: need --config.parallel.strategy=mesh; got '
                      f"data={self.data}, fsdp={self.fsdp}, tensor={self.tensor} with 'pmap'")


def build(config: ParallelConfig, devices: Sequence[Any] | None = None) -> Strategy:
  """Build a strategy.

  Args:
    config: which strategy, and the axes of its mesh.
    devices: all devices of the run, or those of a TPU topology to compile for; None takes what jax finds.

  Raises:
    UserError: a mesh that does not fit the number of devices.
  """
  return STRATEGIES[config.strategy](config, devices)


STRATEGIES: dict[str, Callable[[ParallelConfig, Sequence[Any] | None], Strategy]] = {
    'mesh': lambda config, devices: Mesh(devices, data=config.data, fsdp=config.fsdp, tensor=config.tensor),
    'pmap': lambda config, devices: Pmap(devices),
}

# To evaluate a run of many devices on few. Sharded over all of them, the state takes the least memory of each; a model
# whose dimensions they do not divide is replicated.
FOR_EVALUATION = (ParallelConfig('mesh', data=1, fsdp=-1, tensor=1), ParallelConfig('pmap'))
