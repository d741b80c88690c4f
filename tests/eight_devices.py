"""Runs and measurements on eight devices for `test_mesh.py`: `python -m tests.eight_devices DATA_DIR FOLDER INIT`.

Writes runs to FOLDER/NAME, and FOLDER/results.json.
"""
import json
import math
import pathlib
import re
import shutil
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np

from tests import tiny
from vit_jax import train
from vit_jax.pretrained import load
from vit_jax.run import evaluation, start
from vit_jax.run.build import build
from vit_jax.run.recovery import LoopState
from vit_jax.rundir.checkpoint import Checkpoints

MESHES = {
    'fsdp': {'parallel.strategy': 'mesh', 'parallel.fsdp': 8},  # from step 3 of one device
    'all': {'parallel.strategy': 'mesh', 'parallel.fsdp': 2, 'parallel.tensor': 2, 'train.micro_batch': 8},
}


def config(data_dir, **changes):
  """Return the config of six steps that saves and evaluates every three."""
  return tiny.config(data_dir, **{'train.duration': '6 steps', 'train.eval_every': '3 steps',
                                  'checkpoint.every': '3 steps', 'checkpoint.keep': 2, **changes})


def restored(parts, workdir, step):
  """Return the state of a step, on the devices."""
  checkpoints = Checkpoints(workdir / 'checkpoints', parts.config.checkpoint, read_only=True)
  try:
    return start.restore(parts, checkpoints, step).state
  finally:
    checkpoints.close()


def equal(a, b):
  """Return whether two trees have the same types and bits."""
  a, b = jax.device_get((jax.tree.leaves(a), jax.tree.leaves(b)))
  return len(a) == len(b) and all(x.dtype == y.dtype and x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


def local_bytes(tree):
  """Return the bytes that a tree takes on one device."""
  return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def lowered(parts):
  """Return (abstract state, the step of `parts` lowered for abstract arguments)."""
  data, batch_size = parts.data, parts.config.data.batch_size
  shape = lambda dtype, *rest: jax.ShapeDtypeStruct((batch_size, *rest), dtype)
  batch = dict(image=shape(jnp.uint8, *data.image_size, data.source.channels), label=shape(jnp.int32),
               id=shape(jnp.int32), rng=shape(jnp.uint32))
  state = parts.strategy.abstract(jax.eval_shape(parts.create))
  return state, parts.strategy.compile(parts.step, donate=True).lower(state, parts.strategy.abstract_batch(batch))


def collectives(text):
  """Return [(operation, computation, elements of its largest result)] of an optimized HLO module."""
  found, computation = [], None
  for line in text.splitlines():
    if head := re.match(r'(?:ENTRY )?%?([\w.\-]+) \(.*\{$', line):
      computation = head[1]
    if operation := re.search(r'= (.*) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(-start)?\(', line):
      shapes = re.findall(r'\w\[([\d,]*)\]', operation[1])
      found.append((operation[2], computation, max(math.prod(map(int, filter(None, s.split(',')))) for s in shapes)))
  return found


def compiled_results(data_dir):
  """Return memory and communication of a step whose weights are larger than its activations."""
  wide = {'model.width': 64, 'model.mlp_dim': 256, 'model.depth': 3, 'parallel.strategy': 'mesh', 'parallel.fsdp': 8}
  state, step = lowered(build(config(data_dir, **wide)))
  compiled = step.compile()
  return dict(whole=sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)), local=local_bytes(state),
              arguments=compiled.memory_analysis().argument_size_in_bytes,
              aliased=compiled.memory_analysis().alias_size_in_bytes, collectives=collectives(compiled.as_text()))


def checkpoint_results(data_dir, folder):
  """Return {'A to B': whether what A saved restores bit for bit with B} for the strategies of the runs."""
  built = {name: build(config(data_dir, **changes)) for name, changes in {**MESHES, 'one': {}}.items()}
  states = {(saved, by): restored(parts, folder / saved, 6) for saved in built for by, parts in built.items()}
  return {f'{saved} to {by}': equal(state, states[saved, saved]) for (saved, by), state in states.items()}


def donation_results(data_dir, folder):
  """Return {strategy: whether a state is saved unchanged while the next steps, which donate its buffers, run}."""
  results = {}
  for name in ('fsdp', 'all', 'one'):
    parts = build(config(data_dir, **MESHES.get(name, {})))
    state = restored(parts, folder / name, 6)
    step = parts.strategy.compile(lambda state, batch: jax.tree.map(lambda x: x * 2, state), donate=True)
    batch = parts.strategy.put(dict(id=np.zeros(parts.config.data.batch_size, np.int32)))
    before = jax.tree.map(lambda x: np.array(x, copy=True), state)
    checkpoints = Checkpoints(folder / 'donated' / name, parts.config.checkpoint, parts.pace)
    checkpoints.save(6, parts.strategy.fetch(state), start.make_record(parts))
    state = jax.block_until_ready(step(step(state, batch), batch))
    checkpoints.wait()
    saved, _ = checkpoints.restore(6, parts.strategy.abstract(jax.eval_shape(parts.create)))
    checkpoints.close()
    results[name] = equal(saved, before) and not equal(saved, state)
  return results


def init_results(data_dir, init):
  """Return whether a mesh starts from the values of the weights, with the shardings of a new state."""
  parts = build(config(data_dir, init=str(init), **MESHES['all']))
  fresh, weights = parts.strategy.create(parts.create), load.read(str(init))
  at = LoopState(0, fresh, None, start.make_record(parts))
  start.from_weights(parts, at, weights, types.SimpleNamespace(say=lambda text: None))
  same = jax.tree.map(lambda x, y: x.sharding == y.sharding, at.state, fresh)
  return dict(equal=equal(at.state.params, weights.params), same_shardings=all(jax.tree.leaves(same)))


def main(data_dir, folder, init):
  """Train on all meshes and write the results."""
  folder, init = pathlib.Path(folder), pathlib.Path(init)
  shutil.copytree(init, folder / 'one')
  shutil.copytree(init, folder / 'fsdp')
  shutil.rmtree(folder / 'fsdp' / 'checkpoints' / '6')
  for name, changes in MESHES.items():
    train.run(config(data_dir, **changes), folder / name)
  results = dict(compiled=compiled_results(data_dir), same_bits=checkpoint_results(data_dir, folder),
                 donated=donation_results(data_dir, folder), init=init_results(data_dir, init),
                 evaluated=evaluation.evaluate(folder / 'fsdp'))
  (folder / 'results.json').write_text(json.dumps(results))


if __name__ == '__main__':
  main(*sys.argv[1:])
