"""Data parallelism by `jax.pmap`; the contract is `strategy.Strategy`."""
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jax.stages import Wrapped
import numpy as np

from vit_jax.distributed import batch_split
from vit_jax.models.base import ParamTree

T = TypeVar('T')


class Pmap:
  """Every device holds the whole state and its shard of the batch.

  Args:
    devices: all devices of the run, or those of a TPU topology to compile for; None takes what jax finds.
  """

  axis_name = 'batch'

  def __init__(self, devices: Sequence[Any] | None = None):
    self._given = devices
    self.num_shards = len(jax.devices() if devices is None else devices)
    self._local = jax.local_devices() if devices is None else list(devices)
    mesh = jax.sharding.Mesh(np.array(self._local), (self.axis_name,))
    self._replicated = NamedSharding(mesh, PartitionSpec())
    self._sharded = NamedSharding(mesh, PartitionSpec(self.axis_name))

  def __str__(self) -> str:
    return 'pmap'

  def num_micro_batches(self, batch_size: int, micro_batch: int | None) -> int:
    """Return the number of micro-batches in each device's shard, see `batch_split.count_micro_batches`."""
    return batch_split.count_micro_batches(batch_size, self.num_shards, micro_batch)

  def for_model(self, model: ParamTree) -> 'Pmap':
    """Return the strategy as it is: whole states need no knowledge of their parameters."""
    del model
    return self

  def create(self, function: Callable[[], T]) -> T:
    """Return what `function()` returns, on every local device."""
    return self.place(function())

  def place(self, state: T) -> T:
    """Copy a state to every local device."""
    return jax.device_put(state, self._replicated)

  def fetch(self, state: T) -> T:
    """Return the state as NumPy arrays that share no memory with the devices' (the next step donates those buffers)."""
    return jax.tree.map(lambda x: np.array(x, copy=True), jax.device_get(state))

  def put(self, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Split this process's batch, arrays (b, …), into (local devices, b / devices, …), one row of shards per device."""
    n = len(self._local)
    split = lambda x: jax.device_put(x.reshape(n, x.shape[0] // n, *x.shape[1:]), self._sharded)
    return {name: split(x) for name, x in batch.items()}

  def rotate(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Return the batch with every shard on the next device of its process."""
    return jax.jit(lambda x: jax.tree.map(lambda y: jnp.roll(y, 1, axis=0), x), out_shardings=self._sharded)(batch)

  def places(self) -> tuple[list[str], list[int]]:
    """Return (name of every shard's device, number of the shard on whose device `rotate` puts it)."""
    n = len(self._local)
    devices = jax.devices() if self._given is None else self._given
    return [str(device) for device in devices], [i // n * n + (i + 1) % n for i in range(self.num_shards)]

  def compile(self, function: Callable[[Any, Any], Any], *, donate: bool) -> Wrapped:
    """Compile `function(state, batch)`, whose results must be equal on all devices; `donate` gives up the state."""
    return jax.pmap(function, axis_name=self.axis_name, in_axes=(None, 0), out_axes=None, devices=self._given,
                    donate_argnums=(0,) if donate else ())

  def abstract(self, state: T) -> T:
    """Return the state's shapes, without shardings: every process reads checkpoints whole, then calls `place`."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)

  def abstract_batch(self, batch: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """Return shapes (devices, B / devices, …) from those of a global batch, (B, …)."""
    n = self.num_shards
    return {name: jax.ShapeDtypeStruct((n, x.shape[0] // n, *x.shape[1:]), x.dtype) for name, x in batch.items()}

  def gather(self, tree: T) -> T:
    """Return the arrays of all devices, concatenated, on each of them."""
    return jax.lax.all_gather(tree, self.axis_name, tiled=True)
