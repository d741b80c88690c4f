"""Models that outgrow a chip: `jax.jit` over a mesh of devices; the contract is in `parallel`.

The compiler places the communication, from how the state and the batch lie (`sharding`) and from what the encoder says of
its tokens (`models.encoder.by_example`): each block's weights are gathered over `fsdp` where the block is computed, and
its gradients are summed to where the weights lie.
"""
import math

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np

from vit_jax.distributed import sharding
from vit_jax.distributed import batch_split as shares

BATCH = PartitionSpec(('data', 'fsdp'))

# Else the TPU's compiler sends weights round in slices, each multiplied on arrival: 522 million cycles by its own estimate
# for a step of B/16, 64 images a chip, fsdp=8 on v5e:2x4, against 183 million with weights gathered whole and ahead.
TPU_OPTIONS = {'xla_jf_spmd_threshold_for_windowed_einsum_mib': 1_000_000}


class Mesh:
  """The state is cut over `fsdp` and `tensor`, the batch over `data` and `fsdp`."""

  axis_name = None  # the step sees the whole batch

  def __init__(self, devices, *, data, fsdp, tensor):
    # A process's rows of a batch are contiguous, and so must be its devices.
    devices = sorted(jax.devices() if devices is None else devices, key=lambda device: device.process_index)
    sizes = _sizes(len(devices), data=data, fsdp=fsdp, tensor=tensor)
    _check_processes(devices, sizes['tensor'])
    self._mesh = jax.sharding.Mesh(np.array(devices).reshape(*sizes.values()), tuple(sizes),
                                   axis_types=(AxisType.Auto,) * len(sizes))
    self._batch = NamedSharding(self._mesh, BATCH)
    self._options = TPU_OPTIONS if devices[0].platform == 'tpu' else None
    self.shares = sizes['data'] * sizes['fsdp']

  def __str__(self):
    return 'mesh of ' + ' × '.join(f'{name} {size}' for name, size in self._mesh.shape.items())

  def micro_batches(self, batch_size, micro_batch):
    """How many micro-batches the share of each `tensor` devices makes, see `shares.count_micro_batches`."""
    return shares.count_micro_batches(batch_size, self.shares, micro_batch)

  def create(self, function):
    """What function() returns, each device making its own part."""
    return jax.jit(function, out_shardings=self._shardings(jax.eval_shape(function)))()

  def place(self, state):
    """Brings to every device its part of a state that each host holds whole, or that lies otherwise."""
    return jax.tree.map(_placed, state, self._shardings(state))

  def fetch(self, state):
    """The state as it lies: Orbax copies each device's part to its host before it returns, then writes."""
    return state

  def put(self, batch):
    """Puts a host's batch, arrays (b, …), onto its devices; together the hosts' make the global batch."""
    return {name: jax.make_array_from_process_local_data(self._batch, x) for name, x in batch.items()}

  def compile(self, function, *, donate):
    """Compiles function(state, batch). `donate` gives up the state, whose successor lies as it did."""
    def spread(state, batch):
      with jax.sharding.use_abstract_mesh(self._mesh.abstract_mesh):  # for constraints inside the model
        result = function(state, batch)
      return jax.lax.with_sharding_constraint(result, sharding.shardings(self._mesh, result, _params(state)))

    return jax.jit(spread, donate_argnums=(0,) if donate else (), compiler_options=self._options)

  def abstract(self, state):
    """The state's shapes and shardings; raises ValueError where a dimension does not divide."""
    sharding.check_divides(self._mesh, _params(state))
    return jax.tree.map(lambda x, lies: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=lies), state,
                        self._shardings(state))

  def abstract_batch(self, batch):
    """Shapes and shardings of a global batch, from its shapes."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._batch), batch)

  def gather(self, tree):
    """The arrays as they are: they hold all examples."""
    return tree

  def _shardings(self, state):
    return sharding.shardings(self._mesh, state, _params(state))


def _params(state):
  """The parameters of a state, or parameters as they are."""
  return getattr(state, 'params', state)


def _placed(x, lies):
  if isinstance(x, jax.Array):
    return jax.device_put(x, lies)
  # Unlike device_put this takes from the host no more than its own devices' parts, and does not compare the hosts'.
  return jax.make_array_from_callback(np.shape(x), lies, lambda index: np.asarray(x)[index])


def _sizes(count, **sizes):
  """The sizes of the axes, -1 filled in; raises ValueError unless their product is `count`."""
  given = math.prod(size for size in sizes.values() if size != -1)
  open_axes = [name for name, size in sizes.items() if size == -1]
  if min(sizes.values()) < -1 or 0 in sizes.values() or len(open_axes) > 1:
    raise ValueError(f'parallel.data, fsdp and tensor must be at least 1, and at most one of them -1; got {sizes}')
  if count % given or (given != count and not open_axes):
    asked = ' × '.join(f'{name}={size}' for name, size in sizes.items() if size != -1)
    raise ValueError(f'a mesh of {asked} does not fit {count} devices; data × fsdp × tensor may be {_factorisations(count)}')
  return {name: count // given if size == -1 else size for name, size in sizes.items()}


def _factorisations(count):
  divisors = [n for n in range(1, count + 1) if count % n == 0]
  found = [f'{count // n}×{n // tensor}×{tensor}' for tensor in divisors for n in divisors if n % tensor == 0]
  return ', '.join(found[:12]) + (', …' if len(found) > 12 else '')


def _check_processes(devices, tensor):
  """Every process has examples of its own, so no example's devices may be two processes'."""
  for start in range(0, len(devices), tensor):
    if len({device.process_index for device in devices[start:start + tensor]}) > 1:
      local = sum(device.process_index == devices[0].process_index for device in devices)
      raise ValueError(f'parallel.tensor={tensor} must divide the {local} devices of a process')
