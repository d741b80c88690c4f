"""Models that do not fit one device: `jax.jit` over a mesh of devices; the contract is `strategy.Strategy`.

The compiler places the communication, from the shardings of state and batch (`sharding`) and from the constraint that
the encoder puts on its activations: each block's weights are all-gathered over `fsdp` when the block is computed, and
its gradients are reduced to the shards of the weights.
"""
from collections.abc import Callable, Mapping, Sequence
import copy
import math
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.stages import Wrapped
import numpy as np

from vit_jax.base.errors import UserError
from vit_jax.base.text import listing
from vit_jax.distributed import batch_split, sharding
from vit_jax.models.base import ParamTree

T = TypeVar('T')

BATCH = PartitionSpec(('data', 'fsdp'))

# Otherwise the TPU compiler sends weights around in slices and multiplies each on arrival: 522 million cycles by its
# own estimate for a step of B/16, 64 images per chip, fsdp=8 on v5e:2x4, against 183 million with weights gathered
# whole and ahead of time.
TPU_OPTIONS = {'xla_jf_spmd_threshold_for_windowed_einsum_mib': 1_000_000}


class Mesh:
  """The state is sharded over `fsdp` and `tensor`, the batch over `data` and `fsdp`.

  Args:
    devices: all devices of the run, or those of a TPU topology to compile for; None takes what jax finds.
    data: number of device groups that each hold the whole state; -1 takes the devices that are left.
    fsdp: number of devices that share one copy of the state, each with its own examples; or -1.
    tensor: number of devices that share the heads and hidden MLP features of each example; or -1.

  Raises:
    UserError: sizes that do not fit the number of devices.
  """

  axis_name: str | None = None  # the step sees the whole batch

  def __init__(self, devices: Sequence[Any] | None, *, data: int, fsdp: int, tensor: int):
    # A process's rows of a batch are contiguous, and so must be its devices.
    devices = sorted(jax.devices() if devices is None else devices, key=lambda device: device.process_index)
    sizes = _sizes(len(devices), data=data, fsdp=fsdp, tensor=tensor)
    _check_processes(devices, sizes['tensor'])
    self._model: ParamTree | None = None  # see for_model
    self._mesh = jax.sharding.Mesh(np.array(devices).reshape(*sizes.values()), tuple(sizes),
                                   axis_types=(AxisType.Auto,) * len(sizes))
    self._batch = NamedSharding(self._mesh, BATCH)
    self._options = TPU_OPTIONS if devices[0].platform == 'tpu' else None
    self.num_shards = sizes['data'] * sizes['fsdp']

  def __str__(self) -> str:
    return 'mesh of ' + ' × '.join(f'{name} {size}' for name, size in self._mesh.shape.items())

  def num_micro_batches(self, batch_size: int, micro_batch: int | None) -> int:
    """Return the number of micro-batches in the shard of `tensor` devices, see `batch_split.count_micro_batches`."""
    return batch_split.count_micro_batches(batch_size, self.num_shards, micro_batch)

  def for_model(self, model: ParamTree) -> 'Mesh':
    """Return the same mesh for states whose parameters are those of a model."""
    bound = copy.copy(self)
    bound._model = model
    return bound

  def create(self, function: Callable[[], T]) -> T:
    """Return what `function()` returns, each device computing its own shards."""
    return jax.jit(function, out_shardings=self._state_shardings(jax.eval_shape(function)))()

  def place(self, state: T) -> T:
    """Put on every device its shards of a state that every process holds whole, or that is sharded differently."""
    return jax.tree.map(_place, state, self._state_shardings(state))

  def fetch(self, state: T) -> T:
    """Return the state as it is: Orbax copies each device's shards to its host before it returns, then writes."""
    return state

  def put(self, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Put this process's batch, arrays (b, …), on its devices; those of all processes make up the global batch."""
    return {name: jax.make_array_from_process_local_data(self._batch, x) for name, x in batch.items()}

  def rotate(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Return the batch with every shard on the devices of the next."""
    shift = lambda x: jnp.roll(x, x.shape[0] // self.num_shards, axis=0)
    return jax.jit(lambda x: jax.tree.map(shift, x), out_shardings=self._batch)(batch)

  def places(self) -> tuple[list[str], list[int]]:
    """Return (names of the devices of every shard, number of the shard on whose devices `rotate` puts it)."""
    groups = self._mesh.devices.reshape(self.num_shards, -1)
    return [' or '.join(map(str, group)) for group in groups], [(i + 1) % len(groups) for i in range(len(groups))]

  def compile(self, function: Callable[[Any, Any], Any], *, donate: bool) -> Wrapped:
    """Compile `function(state, batch)`; the new state keeps the shardings of the old. `donate` gives up the state."""
    def sharded(state: Any, batch: Any) -> Any:
      with jax.sharding.use_abstract_mesh(self._mesh.abstract_mesh):  # for constraints inside the model
        result = function(state, batch)
      return jax.lax.with_sharding_constraint(result, self._shardings(result, _params(state)))

    return jax.jit(sharded, donate_argnums=(0,) if donate else (), compiler_options=self._options)

  def abstract(self, state: T) -> T:
    """Return the state's shapes and shardings; raise UserError if the mesh does not divide a dimension."""
    sharding.check_divides(self._mesh, _params(state), self._known_model())
    return jax.tree.map(lambda x, spec: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=spec), state,
                        self._state_shardings(state))

  def abstract_batch(self, batch: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """Return shapes and shardings of a global batch, from its shapes."""
    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._batch) for name, x in batch.items()}

  def gather(self, tree: T) -> T:
    """Return the arrays as they are: they hold all examples."""
    return tree

  def _shardings(self, tree: Any, params: Any) -> Any:
    return sharding.shardings(self._mesh, tree, params, self._known_model())

  def _state_shardings(self, state: Any) -> Any:
    return self._shardings(state, _params(state))

  def _known_model(self) -> ParamTree:
    assert self._model is not None, 'a mesh needs for_model() before it shards states'
    return self._model


def _params(state: Any) -> Any:
  """Return the parameters of a state; bare parameters are returned as they are."""
  return getattr(state, 'params', state)


def _place(x: jax.Array | np.ndarray, target: NamedSharding) -> jax.Array:
  if isinstance(x, jax.Array):
    return jax.device_put(x, target)
  # Unlike device_put, this copies from host memory only the shards of its own devices, and does not compare processes.
  return jax.make_array_from_callback(np.shape(x), target, lambda index: np.asarray(x)[index])


def _sizes(count: int, **sizes: int) -> dict[str, int]:
  """Return the sizes of the axes with -1 filled in; raise UserError unless their product is `count`."""
  given = math.prod(size for size in sizes.values() if size != -1)
  open_axes = [name for name, size in sizes.items() if size == -1]
  if min(sizes.values()) < -1 or 0 in sizes.values() or len(open_axes) > 1:
    raise UserError('parallel.data, parallel.fsdp, parallel.tensor: must be at least 1, and at most one of them -1; '
                    f'got {sizes}')
  if count % given or (given != count and not open_axes):
    asked = ' × '.join(f'{name}={size}' for name, size in sizes.items() if size != -1)
    raise UserError('parallel.data × parallel.fsdp × parallel.tensor: must be the number of devices, '
                    f'{count}; got {asked}. Choose from {listing(_factorizations(count), limit=12)}')
  return {name: count // given if size == -1 else size for name, size in sizes.items()}


def _factorizations(count: int) -> list[str]:
  divisors = [n for n in range(1, count + 1) if count % n == 0]
  return [f'{count // n}×{n // tensor}×{tensor}' for tensor in divisors for n in divisors if n % tensor == 0]


def _check_processes(devices: Sequence[Any], tensor: int) -> None:
  """Raise UserError if an example would be on devices of two processes: every process has its own examples."""
  for start in range(0, len(devices), tensor):
    if len({device.process_index for device in devices[start:start + tensor]}) > 1:
      local = sum(device.process_index == devices[0].process_index for device in devices)
      valid = [n for n in range(1, local + 1) if local % n == 0]
      raise UserError(f'parallel.tensor: must divide the {local} devices of a process; got {tensor}. Choose from '
                      f'{valid}')
