"""How a step is spread over devices, behind one small contract.

A strategy has `axis_name` (what the step averages over, or None), and: `check_batch` (do the sizes divide?),
`place` (a host's state onto the devices), `fetch` (back, as copies), `put` (a host's share of a batch onto its
devices), `compile` (a function of (state, batch) for all devices).
"""
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from vit_jax.choices import choose


class Pmap:
  """Data parallelism: every device holds the whole state and its share of the batch."""

  axis_name = 'batch'

  def __init__(self):
    mesh = Mesh(np.array(jax.local_devices()), (self.axis_name,))
    self._replicated = NamedSharding(mesh, PartitionSpec())
    self._sharded = NamedSharding(mesh, PartitionSpec(self.axis_name))

  def check_batch(self, batch_size, accumulate):
    """Raises ValueError unless every device gets `accumulate` equal micro-batches of the global batch."""
    if accumulate < 1:
      raise ValueError(f'train.accumulate must be at least 1, got {accumulate}')
    devices = jax.device_count()
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
    n = jax.local_device_count()
    cut = lambda x: jax.device_put(x.reshape(n, x.shape[0] // n, *x.shape[1:]), self._sharded)
    return {name: cut(x) for name, x in batch.items()}

  def compile(self, function, *, donate):
    """Compiles function(state, batch); what it returns must be equal on all devices. `donate` gives up the state."""
    return jax.pmap(function, axis_name=self.axis_name, in_axes=(None, 0), out_axes=None,
                    donate_argnums=(0,) if donate else ())


def build(*, strategy: str = 'pmap'):
  """Builds a strategy by its name in `STRATEGIES`."""
  return choose(STRATEGIES, strategy, 'parallel.strategy')()


STRATEGIES = {
    'pmap': Pmap,
}
