"""What `test_mesh.py` asks of eight devices, in one process: `python -m tests.eight_devices DATA_DIR FOLDER INIT`.

Writes runs to FOLDER/NAME, and FOLDER/facts.json.
"""
import json
import math
import pathlib
import re
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np

from tests import tiny
from vit_jax import evaluate
from vit_jax import train
from vit_jax.pretrained import load
from vit_jax.rundir.checkpoint import Checkpoints

MESHES = {
    'fsdp': {'parallel.strategy': 'mesh', 'parallel.fsdp': 8},  # from step 3 of one device
    'all': {'parallel.strategy': 'mesh', 'parallel.fsdp': 2, 'parallel.tensor': 2, 'train.micro_batch': 8},
}


def config(data_dir, **changes):
  """Six steps, saved and evaluated after three."""
  return tiny.config(data_dir, **{'train.duration': '6 steps', 'train.eval_every': '3 steps',
                                  'checkpoint.every': '3 steps', 'checkpoint.keep': 2, **changes})


def restored(parts, workdir, step):
  """The state of a step, as it lies on the devices."""
  checkpoints = Checkpoints(workdir / 'checkpoints', read_only=True, **parts.checkpoint)
  try:
    return train.restore(parts, checkpoints, step)[1]
  finally:
    checkpoints.close()


def equal(a, b):
  """Whether two trees hold the same types and bits."""
  a, b = jax.device_get((jax.tree.leaves(a), jax.tree.leaves(b)))
  return len(a) == len(b) and all(x.dtype == y.dtype and x.tobytes() == y.tobytes() for x, y in zip(a, b))


def local_bytes(tree):
  """What a tree takes on the first device."""
  return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def lowered(parts):
  """The step for `parts`, lowered for abstract arguments."""
  data, batch_size = parts.data, parts.config.data.batch_size
  shape = lambda dtype, *rest: jax.ShapeDtypeStruct((batch_size, *rest), dtype)
  batch = dict(image=shape(jnp.uint8, *data.image_size, data.source.channels), label=shape(jnp.int32),
               id=shape(jnp.int32), rng=shape(jnp.uint32))
  state = parts.strategy.abstract(jax.eval_shape(parts.create))
  return state, parts.strategy.compile(parts.step, donate=True).lower(state, parts.strategy.abstract_batch(batch))


def collectives(text):
  """[(operation, computation, elements of its largest result)] of an optimized HLO module."""
  found, computation = [], None
  for line in text.splitlines():
    if head := re.match(r'(?:ENTRY )?%?([\w.\-]+) \(.*\{$', line):
      computation = head[1]
    if operation := re.search(r'= (.*) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(-start)?\(', line):
      shapes = re.findall(r'\w\[([\d,]*)\]', operation[1])
      found.append((operation[2], computation, max(math.prod(map(int, filter(None, s.split(',')))) for s in shapes)))
  return found


def compiled_facts(data_dir):
  """Memory and communication of a step whose weights are large beside its activations."""
  wide = {'model.width': 64, 'model.mlp_dim': 256, 'model.depth': 3, 'parallel.strategy': 'mesh', 'parallel.fsdp': 8}
  state, step = lowered(train.build(config(data_dir, **wide)))
  compiled = step.compile()
  return dict(whole=sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)), local=local_bytes(state),
              arguments=compiled.memory_analysis().argument_size_in_bytes,
              aliased=compiled.memory_analysis().alias_size_in_bytes, collectives=collectives(compiled.as_text()))


def checkpoint_facts(data_dir, folder):
  """{'A to B': whether what A saved is the same bits under B} for the strategies of the runs."""
  built = {name: train.build(config(data_dir, **changes)) for name, changes in {**MESHES, 'one': {}}.items()}
  states = {(saved, by): restored(parts, folder / saved, 6) for saved in built for by, parts in built.items()}
  return {f'{saved} to {by}': equal(state, states[saved, saved]) for (saved, by), state in states.items()}


def donation_facts(data_dir, folder):
  """{strategy: whether a state is saved as it was when the next step, which gives up its buffers, runs meanwhile}."""
  facts = {}
  for name in ('fsdp', 'all', 'one'):
    parts = train.build(config(data_dir, **MESHES.get(name, {})))
    state = restored(parts, folder / name, 6)
    step = parts.strategy.compile(lambda state, batch: jax.tree.map(lambda x: x * 2, state), donate=True)
    batch = parts.strategy.put(dict(id=np.zeros(parts.config.data.batch_size, np.int32)))
    before = jax.tree.map(lambda x: np.array(x, copy=True), state)
    checkpoints = Checkpoints(folder / 'donated' / name, every=1)
    checkpoints.save(6, parts.strategy.fetch(state), {})
    state = jax.block_until_ready(step(step(state, batch), batch))
    checkpoints.wait()
    saved, _ = checkpoints.restore(6, parts.strategy.abstract(jax.eval_shape(parts.create)))
    checkpoints.close()
    facts[name] = equal(saved, before) and not equal(saved, state)
  return facts


def init_facts(data_dir, init):
  """Whether a mesh starts from weights as they are, cut as it should be."""
  parts = train.build(config(data_dir, init=str(init), **MESHES['all']))
  fresh = parts.strategy.create(parts.create)
  silent = type('Silent', (), {'say': lambda self, text: None})()
  state = train._from_weights(parts, fresh, load.read(str(init)), silent)
  same = jax.tree.map(lambda x, y: x.sharding == y.sharding, state, fresh)
  return dict(equal=equal(state.params, load.read(str(init)).params), lies=all(jax.tree.leaves(same)))


def main(data_dir, folder, init):
  """Runs all meshes and writes the facts."""
  folder, init = pathlib.Path(folder), pathlib.Path(init)
  shutil.copytree(init, folder / 'one')
  shutil.copytree(init, folder / 'fsdp')
  shutil.rmtree(folder / 'fsdp' / 'checkpoints' / '6')
  for name, changes in MESHES.items():
    train.run(config(data_dir, **changes), folder / name)
  facts = dict(compiled=compiled_facts(data_dir), same_bits=checkpoint_facts(data_dir, folder),
               donated=donation_facts(data_dir, folder),
               init=init_facts(data_dir, init), evaluated=evaluate.evaluate(folder / 'fsdp', None, None))
  (folder / 'facts.json').write_text(json.dumps(facts))


if __name__ == '__main__':
  main(*sys.argv[1:])
