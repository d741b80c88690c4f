"""Data parallelism by `jax.pmap`; the contract is in `parallel`."""
import jax
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from vit_jax.distributed import batch_split as shares


class Pmap:
  """Every device holds the whole state and its share of the batch."""

  axis_name = 'batch'

  def __init__(self, devices=None):
    self._given = devices
    self._devices = jax.devices() if devices is None else list(devices)
    self.shares = len(self._devices)
    self._local = jax.local_devices() if devices is None else self._devices
    mesh = jax.sharding.Mesh(np.array(self._local), (self.axis_name,))
    self._replicated = NamedSharding(mesh, PartitionSpec())
    self._sharded = NamedSharding(mesh, PartitionSpec(self.axis_name))

  def __str__(self):
    return 'pmap'

  def micro_batches(self, batch_size, micro_batch):
    """How many micro-batches each device's share of a global batch makes, see `shares.count_micro_batches`."""
    return shares.count_micro_batches(batch_size, self.shares, micro_batch)

  def create(self, function):
    """What function() returns, on every local device."""
    return self.place(function())

  def place(self, state):
    """Copies a state to every local device."""
    return jax.device_put(state, self._replicated)

  def fetch(self, state):
    """The state as NumPy arrays that share no memory with the devices' (whose buffers the next step donates)."""
    return jax.tree.map(lambda x: np.array(x, copy=True), jax.device_get(state))

  def put(self, batch):
    """Cuts a host's batch, arrays (b, …), into (local devices, b / devices, …), one part a device."""
    n = len(self._local)
    cut = lambda x: jax.device_put(x.reshape(n, x.shape[0] // n, *x.shape[1:]), self._sharded)
    return {name: cut(x) for name, x in batch.items()}

  def compile(self, function, *, donate):
    """Compiles function(state, batch); what it returns must be equal on all devices. `donate` gives up the state."""
    return jax.pmap(function, axis_name=self.axis_name, in_axes=(None, 0), out_axes=None, devices=self._given,
                    donate_argnums=(0,) if donate else ())

  def abstract(self, state):
    """The state's shapes, without shardings: hosts read checkpoints whole, then `place`."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)

  def abstract_batch(self, batch):
    """Shapes (devices, B / devices, …) from those of a global batch, (B, …)."""
    n = self.shares
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((n, x.shape[0] // n, *x.shape[1:]), x.dtype), batch)

  def gather(self, tree):
    """The arrays of all devices, one after the other, on each of them."""
    return jax.lax.all_gather(tree, self.axis_name, tiled=True)
