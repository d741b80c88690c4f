"""Steps that are skipped, examples left out and gradients computed again on many devices: prints JSON.

  python -m tests.numbers_on_devices
"""
import json

import jax
import numpy as np

from tests.health_on_devices import STRATEGIES, batch, program
from vit_jax.training import recompute
from vit_jax.training.left_out import leave_out

LEFT_OUT = [0, 1, 17, 63]
BROKEN = 5  # device whose copy of a parameter has another bit


def take_step(made, step, state, data):
  """Return (state, metrics) as NumPy arrays."""
  state, metrics = step(state, made.strategy.put(data))
  return jax.device_get((state, metrics))


def with_a_flipped_bit(x, device):
  """Return an array, of which every device has a copy, with another bit in its numbers on one of them."""
  copies = []
  for shard in x.addressable_shards:
    copy = np.array(shard.data)
    if shard.device.id == device:
      copy.view(np.uint32)[:] ^= np.uint32(1 << 22)
    copies.append(jax.device_put(copy, shard.device))
  return jax.make_array_from_single_device_arrays(x.shape, x.sharding, copies)


def measure(strategy):
  """Return what steps of a strategy do."""
  made = program(strategy, **{'train.micro_batch': 4, 'model.heads': 4})
  data, step = batch(), made.strategy.compile(made.step, donate=False)
  state = made.strategy.create(made.create)
  head = state.params['head']['kernel']  # zero at the start: no image would matter
  random = np.random.default_rng(0).normal(size=head.shape).astype(np.float32)
  state = state.replace(params=dict(state.params, head=dict(
      state.params['head'], kernel=jax.device_put(random, head.sharding))))
  whole, _ = take_step(made, step, state, data)
  some, metrics = take_step(made, step, state, leave_out(data, LEFT_OUT, 64))
  broken = dict(data, image=data['image'].astype(np.float32))
  broken['image'][20] = np.inf
  skipped, nothing = take_step(made, step, state, broken)
  before = jax.device_get(state)
  kept = all(np.array_equal(x, y) for name in ('params', 'opt_state', 'ema')
             for x, y in zip(jax.tree.leaves(getattr(before, name)), jax.tree.leaves(getattr(skipped, name)),
                             strict=True))
  found = dict(loss=float(np.divide(*metrics['loss'])), grad_norm=float(metrics['grad_norm'][0]),
               counted=float(metrics['accuracy'][1]), seen=[int(whole.seen), int(some.seen), int(skipped.seen)],
               kept=kept, steps=int(skipped.step), nothing=not any(float(x) for x in jax.tree.leaves(nothing)))
  compiled = made.strategy.compile(
      recompute.make_program(made.shard_gradients, made.losses, made.strategy), donate=False)
  again = lambda state: recompute.recompute(compiled, made.strategy, state, made.strategy.put(data)).disagreeing()
  found['agreeing'] = again(state)
  scale = state.params['norm']['scale']
  if scale.is_fully_replicated and len(scale.addressable_shards) > BROKEN:
    flipped = dict(state.params, norm=dict(state.params['norm'], scale=with_a_flipped_bit(scale, BROKEN)))
    found['disagreeing'] = again(state.replace(params=flipped))
  return found


if __name__ == '__main__':
  print(json.dumps({name: measure(name) for name in STRATEGIES}))
