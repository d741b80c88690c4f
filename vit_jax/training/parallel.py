"""How a step is spread over devices, behind one small contract.

A strategy has `axis_name` (what the step averages over, or None), and: `check_batch` (do the sizes divide?),
`place` (a host's state onto the devices), `fetch` (back, as copies), `put` (a host's share of a batch onto its
devices), `compile` (a function of (state, batch) for all devices). `abstract` and `abstract_batch` give the shapes that
a compiled function's `lower` takes: a step can be compiled for devices that are not there.
"""
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from vit_jax.choices import choose


class Pmap:
  """Data parallelism: every device holds the whole state and its share of the batch.

  Args:
    devices: all devices of the run; None takes what jax finds.
  """

  axis_name = 'batch'

  def __init__(self, devices=None):
    self._given = devices
    self._devices = jax.devices() if devices is None else devices
    self._local = jax.local_devices() if devices is None else devices
    mesh = Mesh(np.array(self._local), (self.axis_name,))
    self._replicated = NamedSharding(mesh, PartitionSpec())
    self._sharded = NamedSharding(mesh, PartitionSpec(self.axis_name))

  def check_batch(self, batch_size, accumulate):
    """Raises ValueError unless every device gets `accumulate` equal micro-batches of the global batch."""
    if accumulate < 1:
      raise ValueError(f'train.accumulate must be at least 1, got {accumulate}')
    devices = len(self._devices)
    parts = devices * accumulate
    if batch_size < 1 or batch_size % parts:
      nearest = max(1, round(batch_size / parts)) * parts
      raise ValueError(f'data.batch_size={batch_size} is not divisible by {devices} devices × train.accumulate='
                       f'{accumulate}; the nearest that is: {nearest}')

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
    """The shapes of a state, which every device holds whole."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)

  def abstract_batch(self, batch):
    """Shapes (devices, B / devices, …) from those of a global batch, (B, …)."""
    n = len(self._devices)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((n, x.shape[0] // n, *x.shape[1:]), x.dtype), batch)


def build(devices=None, *, strategy: str = 'pmap'):
  """Builds a strategy by its name in `STRATEGIES`, for `devices` or for those that jax finds."""
  return choose(STRATEGIES, strategy, 'parallel.strategy')(devices)


STRATEGIES = {
    'pmap': Pmap,
}
