"""How a step is spread over devices, behind one small contract.

A strategy has `axis_name` (what the step averages over, or None), and: `micro_batches` (how many? do sizes divide?),
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

  def micro_batches(self, batch_size, micro_batch):
    """The number of equal micro-batches that every device cuts its share of the global batch in."""
    return micro_batches(batch_size, jax.device_count(), micro_batch)

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


def micro_batches(batch_size, shares, micro_batch):
  """How many micro-batches of at most `micro_batch` images (None: any number) a share of the batch makes.

  Raises:
    ValueError: the batch does not divide into equal shares, or a share into micro-batches.
  """
  if batch_size < 1 or batch_size % shares:
    nearest = max(1, round(batch_size / shares)) * shares
    raise ValueError(f'data.batch_size={batch_size} is not divisible by {shares} devices; '
                     f'the nearest that is: {nearest}')
  share = batch_size // shares
  if micro_batch is None or micro_batch >= share:
    return 1
  if micro_batch < 1 or share % micro_batch:
    nearest = min((n for n in range(1, share + 1) if share % n == 0), key=lambda n: abs(n - micro_batch))
    raise ValueError(f'train.micro_batch={micro_batch} does not divide the {share} images that each of {shares} devices '
                     f'has of data.batch_size={batch_size}; the nearest that does: {nearest}')
  return share // micro_batch


def build(*, strategy: str = 'pmap'):
  """Builds a strategy by its name in `STRATEGIES`."""
  return choose(STRATEGIES, strategy, 'parallel.strategy')()


STRATEGIES = {
    'pmap': Pmap,
}
