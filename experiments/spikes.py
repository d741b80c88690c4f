"""Put numbers that go wrong into a run, and show that it recovers: `python -m experiments.spikes --tries=100`.

One run on the digits, with a fault every few steps: corrupt labels, images whose pixels explode, flipped exponent bits
of weights. A try is recovered if the run notices its fault, skips the step or rolls back, and if at the end all
parameters are, bit for bit, those of a run whose weights never flipped and where the examples that the first run left
out have weight 0 from the start.
"""
from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import json
import pathlib
import tempfile
from typing import Any

from absl import app, flags, logging
import jax
import ml_collections
import numpy as np

from vit_jax import recipe, train
from vit_jax.data.loading.loader import BatchIterator
from vit_jax.data.sources import digits
from vit_jax.run import start
from vit_jax.run.build import build
from vit_jax.rundir.checkpoint import Checkpoints

KINDS = ('labels', 'image', 'weights')
_FIRST = 300  # steps to learn something before the first fault: wrong labels are no news to random parameters
_SPACING = 40  # steps from one fault to the next, about


@dataclasses.dataclass(frozen=True)
class Fault:
  """A fault of one step.

  Attributes:
    kind: 'labels': those of a quarter of the batch are others; 'image': the pixels of an image are 1e30 times as large;
      'weights': an exponent bit of a weight is flipped, such that the loss moves by half of a guess's or more.
    step: number of the step, from 1.
    seed: of the random choices.
  """
  kind: str
  step: int
  seed: int

  def corrupt(self, batch: Any) -> Any:
    """Return a batch of NumPy arrays with the fault."""
    rng, size = np.random.default_rng(self.seed), len(batch['id'])
    if self.kind == 'labels':
      label = batch['label'].copy()
      rows = rng.choice(size, max(1, size // 4), replace=False)
      label[rows] = (label[rows] + rng.integers(1, 10, len(rows))) % 10
      return dict(batch, label=label)
    if self.kind == 'image':
      image = batch['image'].astype(np.float32)
      image[rng.integers(size)] *= np.float32(1e30)
      return dict(batch, image=image)
    return batch

  def flip(self, state: Any, moves: Any) -> Any:
    """Return a state with a flipped exponent bit of one weight, such that moves(state)."""
    rng = np.random.default_rng(self.seed)
    leaves, structure = jax.tree.flatten(state.params)
    while True:
      leaf, bit = rng.integers(len(leaves)), rng.integers(23, 31)
      flipped = np.array(leaves[leaf])
      flipped.reshape(-1).view(np.uint32)[rng.integers(flipped.size)] ^= np.uint32(1 << bit)
      changed = [jax.device_put(flipped, x.sharding) if i == leaf else x for i, x in enumerate(leaves)]
      found = dataclasses.replace(state, params=jax.tree.unflatten(structure, changed))
      if moves(found):
        return found


@contextlib.contextmanager
def injected(faults: Sequence[Fault]) -> Iterator[None]:
  """Make `train.run` in a `with` block meet faults. Those of the data come again when a step is repeated.

  Args:
    faults: at most one per step.
  """
  of_data = {fault.step - 1: fault for fault in faults if fault.kind != 'weights'}
  of_weights = {fault.step - 1: fault for fault in faults if fault.kind == 'weights'}
  next_batch, loop_class = BatchIterator.__next__, train.Loop

  def faulty_next(batches: BatchIterator) -> Any:
    number, batch = batches.get_state()['next_index'], next_batch(batches)
    fault = None if 'mask' in batch else of_data.get(number)
    return batch if fault is None else fault.corrupt(batch)

  class FaultyLoop(loop_class):
    """A loop before whose steps bits of weights flip, each once."""

    def __init__(self, parts: Any, *args: Any):
      super().__init__(parts, *args)
      losses = parts.strategy.compile(lambda state, batch: parts.strategy.gather(parts.losses(state, batch)),
                                      donate=False)
      mean = lambda state, batch: float(np.mean(jax.device_get(losses(state, batch))))
      step_fn = self._step_fn

      def faulty_step(state: Any, batch: Any) -> Any:
        fault = of_weights.pop(int(state.step), None) if of_weights else None
        if fault is not None:
          least = mean(state, batch) + np.log(10) / 2
          state = fault.flip(state, lambda changed: not mean(changed, batch) < least)
        return step_fn(state, batch)

      self._step_fn = faulty_step

  BatchIterator.__next__, train.Loop = faulty_next, FaultyLoop
  try:
    yield
  finally:
    BatchIterator.__next__, train.Loop = next_batch, loop_class


def make_faults(tries: int, seed: int = 0, kinds: Sequence[str] = KINDS) -> list[Fault]:
  """Return faults of all kinds in turn, at random steps."""
  rng = np.random.default_rng(seed)
  return [Fault(kinds[i % len(kinds)], _FIRST + i * _SPACING + int(rng.integers(20)), seed * 1000 + i)
          for i in range(tries)]


def make_config(data_dir: str, tries: int) -> ml_collections.ConfigDict:
  """Return the config of a run that is long enough for so many faults."""
  config = recipe('digits', **{
      'data.data_dir': data_dir, 'data.train_transform': 'resize', 'model.width': 16, 'model.depth': 2,
      'model.heads': 2, 'model.mlp_dim': 32, 'optim.peak_lr': 1e-2, 'optim.schedule': 'constant',
      'optim.warmup': '20 steps', 'train.duration': f'{_FIRST + _SPACING * tries} steps',
      'train.eval_every': '100000 steps', 'train.log_every': '10 steps', 'checkpoint.every': '20 steps',
      'guard.window': 32, 'guard.skipped': 4})
  config.evaluators = {}
  return config


def final(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> tuple[Any, Any]:
  """Return (state as NumPy arrays, record) of the last checkpoint of a run."""
  parts = build(config)
  checkpoints = Checkpoints(workdir / 'checkpoints', parts.config.checkpoint, read_only=True)  # type: ignore
  try:
    at = start.restore(parts, checkpoints)
    return parts.strategy.fetch(at.state), at.record
  finally:
    checkpoints.close()


@contextlib.contextmanager
def left_out_from_the_start(left_out: Any) -> Iterator[None]:
  """Make `train.run` in a `with` block leave out examples that another run's record names."""
  make_record = start.make_record

  def with_list(parts: Any, before: Any = None) -> Any:
    record = make_record(parts, before)
    return record if before is not None else dataclasses.replace(record, guard=dict(left_out=left_out))

  start.make_record = with_list
  try:
    yield
  finally:
    start.make_record = make_record


def try_all(data_dir: str, folder: pathlib.Path, tries: int, seed: int = 0) -> dict[str, Any]:
  """Run with faults and without; return the ledger.

  Args:
    data_dir: with the digits.
    folder: for the runs.
    tries: number of faults.
    seed: of them.

  Returns:
    tries, noticed, identical (bool), and for every try its kind, step and what the run said of it.
  """
  config, faults = make_config(data_dir, tries), make_faults(tries, seed)
  with injected(faults):
    train.run(config, folder / 'faulty')
  events = json.loads((folder / 'faulty' / 'numbers.json').read_text())['events']
  state, record = final(config, folder / 'faulty')
  all_seen = record.guard['skipped'] == sum(fault.kind == 'image' for fault in faults)
  with injected([fault for fault in faults if fault.kind != 'weights']), left_out_from_the_start(
      record.guard['left_out']):
    train.run(config, folder / 'reference')
  if (folder / 'reference' / 'numbers.json').exists():
    raise ValueError('the reference run rolled back')
  expected, _ = final(config, folder / 'reference')
  identical = all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True))
  rows = []
  for fault in faults:
    said = [event for event in events if event['step'] == fault.step]
    weight_0 = [len(event['examples']) for event in said if 'examples' in event]
    is_skipped = fault.kind == 'image' and all_seen
    rows.append(dict(dataclasses.asdict(fault), noticed=bool(said) or is_skipped, rollbacks=len(said) - len(weight_0),
                     left_out=sum(weight_0), reason=said[0]['reason'] if said else 'skipped' if is_skipped else None))
  return dict(tries=tries, noticed=sum(row['noticed'] for row in rows), identical=identical, rows=rows)


def main(argv: Sequence[str]) -> None:
  """Print the ledger, and write it as JSON if asked."""
  del argv
  logging.set_verbosity(logging.WARNING)
  with tempfile.TemporaryDirectory() as folder:
    digits.prepare(folder)
    ledger = try_all(folder, pathlib.Path(folder), flags.FLAGS.tries, flags.FLAGS.seed)
  if flags.FLAGS.output:
    pathlib.Path(flags.FLAGS.output).write_text(json.dumps(ledger, indent=1) + '\n')
  print(json.dumps({name: value for name, value in ledger.items() if name != 'rows'}))


if __name__ == '__main__':
  flags.DEFINE_integer('tries', 100, 'Faults.')
  flags.DEFINE_integer('seed', 0, 'Of the faults.')
  flags.DEFINE_string('output', None, 'File for the ledger, JSON.')
  app.run(main)
