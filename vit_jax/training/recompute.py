"""Compute a gradient again, on the same devices and on others, and compare bit for bit: silent data corruption."""
from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.distributed.strategy import Strategy
from vit_jax.training.state import TrainState
from vit_jax.training.step import ExampleLosses, Gradients

_FACTOR = 16777619  # the prime of FNV-1a


def make_program(gradients: Gradients, losses: ExampleLosses,
                 strategy: Strategy) -> Callable[..., dict[str, jax.Array]]:
  """Build the program whose results `disagreeing` compares.

  Args:
    gradients: first half of the step, without the mean over devices.
    losses: of the examples.
    strategy: how the step is spread over devices.

  Returns:
    (state, batch) → `shards`, (number of shards,) uint32: bits of what each shard's devices computed; `whole`, ()
    uint32: bits of what all did together. Where the step sees all examples at once, the gradient of a shard is never
    computed: `shards` then has the losses, and `whole` the gradient.
  """

  def program(state: TrainState, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    of_gradient, of_losses = _bits(gradients(state, batch)), losses(state, batch)
    if strategy.axis_name is not None:
      own = of_gradient * jnp.uint32(_FACTOR) + _bits(of_losses)
      return dict(shards=strategy.gather(own[None]), whole=jnp.zeros((), jnp.uint32))
    by_shard = jax.lax.bitcast_convert_type(of_losses, jnp.uint32).reshape(strategy.num_shards, -1)
    return dict(shards=by_shard.sum(axis=1, dtype=jnp.uint32), whole=of_gradient)

  return program


@dataclasses.dataclass(frozen=True)
class Recomputation:
  """A gradient that was computed twice, and once more with every shard on the next devices.

  Attributes:
    first, again, moved: what the program returned, with a copy per device of this process as the first axis: devices
      that hold the same examples (`parallel.tensor`) may differ.
    names: of the devices of every shard.
    places: number of the shard on whose devices each shard was the third time.
  """
  first: Mapping[str, np.ndarray]
  again: Mapping[str, np.ndarray]
  moved: Mapping[str, np.ndarray]
  names: list[str]
  places: list[int]

  def disagreeing(self) -> list[str]:
    """Return the devices that computed something else than before or than the others; [] if all agree.

    A device that gives two results is known at once. One that is wrong in the same way each time disagrees with the
    device before it and with the one behind it: it is the one that takes part in most disagreements.
    """
    first, again, moved = (result['shards'] for result in (self.first, self.again, self.moved))
    if (own := (first != again).any(axis=0)).any():
      return [self.names[i] for i in np.flatnonzero(own)]
    votes = np.zeros(len(self.names), int)
    for shard, place in enumerate(self.places):
      if (first[:, shard] != moved[:, place]).any():
        votes[[shard, place]] += 1
    if votes.any():
      return [self.names[i] for i in np.flatnonzero(votes == votes.max())]
    return [f'one of {", ".join(self.names)}'] if (self.first['whole'] != self.again['whole']).any() else []


def recompute(program: Callable[..., Any], strategy: Strategy, state: TrainState,
              batch: dict[str, jax.Array]) -> Recomputation:
  """Run the compiled program three times.

  Args:
    program: of `make_program`, compiled, without donation.
    strategy: of the run.
    state: before the step.
    batch: of the step, as the strategy put it.
  """
  first, again = _copies(program(state, batch)), _copies(program(state, batch))
  names, places = strategy.places()
  moved = _copies(program(state, strategy.rotate(batch))) if len(names) > 1 else again
  return Recomputation(first, again, moved, names, places)


def _copies(found: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
  """Return the copies of arrays that all devices of this process have, each with the copies as the first axis."""
  return {name: np.stack([np.asarray(shard.data) for shard in x.addressable_shards]) for name, x in found.items()}


def _bits(tree: Any) -> jax.Array:
  """Return () uint32 that changes with any bit of float32 and integer arrays."""
  total = jnp.zeros((), jnp.uint32)
  for leaf in jax.tree.leaves(tree):
    words = jax.lax.bitcast_convert_type(leaf, jnp.uint32)
    total = total * jnp.uint32(_FACTOR) + words.sum(dtype=jnp.uint32)
  return total
