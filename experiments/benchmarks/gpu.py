"""Training and inference on one GPU, vit_jax beside timm, within a limited time: `experiments/benchmarks/gpu.sh`.

  python -m experiments.benchmarks.gpu --output=experiments/benchmarks/gpu.md --minutes=9

Measures the rows of `ROWS` in order, each with its own time limit, and rewrites the table after each row, so that an
interruption loses one row. First, losses of a few float32 training steps are compared with those of the CPU.
"""
from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
import json
import sys
import time
from typing import Any

from absl import app, flags

from experiments.benchmarks import throughput
from vit_jax.base import files
from vit_jax.run import cli


@dataclasses.dataclass(frozen=True)
class Measurement:
  """What to measure, and how long it may take.

  Attributes:
    model: variant such as 'B/16'.
    mode: 'train' or 'inference'.
    batch: images per step.
    seconds: limit, with compilation.
  """
  model: str
  mode: str
  batch: int
  seconds: float


# By value: what does not fit the time is left out at the end. Compilation takes most of it. Batches fit three libraries
# beside each other into 80 GB.
ROWS = (
    Measurement('B/16', 'train', 128, 150.0),
    Measurement('L/16', 'train', 64, 200.0),
    Measurement('B/16', 'inference', 128, 100.0),
    Measurement('H/14', 'train', 24, 250.0),
    Measurement('B/16', 'train', 256, 150.0),
)
VARIANTS: Mapping[str, Mapping[str, Any]] = {'vit_jax, cudnn': {'model.attention': 'cudnn'}, 'vit_jax, xla': {}}
LOSSES = dict(model='Ti/16', mode='train', batch=8, dtype='float32', image_size=224)
LOSS_CHANGES = {'optim.warmup': '1 steps', 'optim.peak_lr': 1e-3}  # so that they move
LOSS_STEPS = 4
# Where float32 products are full float32 on both, only the order of sums differs.
LOSS_TOLERANCE = 1e-4


def compare_losses(seconds: float) -> str:
  """Return a line that compares the losses of training steps in float32 here and on the CPU.

  Args:
    seconds: time limit.

  Raises:
    ValueError: they differ by more than LOSS_TOLERANCE, or a process fails.
  """
  with contextlib.ExitStack() as stack:
    contenders = {}
    for name, platforms in (('here', ''), ('CPU', 'cpu')):
      environment = dict(JAX_PLATFORMS=platforms, JAX_DEFAULT_MATMUL_PRECISION='highest')
      contenders[name] = throughput.Contender(
          throughput.Entry('vit_jax', changes=LOSS_CHANGES, environment=environment), LOSSES)
      contenders[name].deadline = time.monotonic() + seconds
      stack.callback(contenders[name].close)
    losses = {name: [one.about['value'], *(one.run(1)['value'] for _ in range(LOSS_STEPS - 1))]
              for name, one in contenders.items()}
  difference = max(abs(here / there - 1) for here, there in zip(losses['here'], losses['CPU'], strict=True))
  text = (f'Losses of {LOSS_STEPS} training steps of {LOSSES["model"]} in float32: here {_numbers(losses["here"])}; '
          f'on the CPU {_numbers(losses["CPU"])}; largest relative difference {difference:.1e}.')
  if not difference < LOSS_TOLERANCE:
    raise ValueError(f'{text} Expected less than {LOSS_TOLERANCE}')
  return text


def _numbers(values: Sequence[float]) -> str:
  return ', '.join(f'{value:.6f}' for value in values)


def run(values: Any) -> None:
  """Compare the losses, then measure row after row; write the table after each."""
  started = time.monotonic()
  end = started + 60 * values.minutes
  environment = dict(XLA_FLAGS=values.xla_flags) if values.xla_flags else {}
  common = json.loads(values.changes)
  variants = {name: throughput.Entry('vit_jax', changes={**changes, **common}, environment=environment)
              for name, changes in VARIANTS.items() if name in values.variants}
  entries = {**variants, **throughput.find_peers(['timm'], values.peer_python)}
  log = lambda text: print(f'{time.monotonic() - started:4.0f} s  {text}', file=sys.stderr, flush=True)
  rows, notes = [], []

  def attempt(name: str, seconds: float, measure: Any) -> None:
    now = time.monotonic()
    if end - now < seconds / 2:
      notes.append(f'{name}: left out, as only {end - now:.0f} s were left.')
    else:
      try:
        measure(min(end - now, seconds))
      except ValueError as error:
        notes.append(f'{name}: {error}')
    log(f'{name}: done')
    _write(values.output, rows, notes)

  if 'losses' in values.rows:
    attempt('losses', 60.0, lambda limit: notes.append(compare_losses(limit)))
  for row in ROWS:
    name = f'{row.model} {row.mode} {row.batch}'
    if name not in values.rows:
      continue
    setting = dict(model=row.model, mode=row.mode, batch=values.batch or row.batch, dtype='bfloat16',
                   image_size=values.image_size)
    log(f'{name}, at most {row.seconds:.0f} s')
    attempt(name, row.seconds, lambda limit, setting=setting: rows.extend(throughput.measure(
        setting, entries, values.rounds, values.seconds, log, together=True, limits=(0.7 * limit, limit))))


def _write(path: str, rows: Sequence[throughput.Row], notes: Sequence[str]) -> None:
  lines = throughput.table(rows, 'experiments/benchmarks/gpu.sh') if rows else []
  files.write(path, '\n'.join(['# Training and inference on one GPU', '', *lines, '', *notes, '']), 'the table')


def main(argv: list[str]) -> None:
  """Reject stray arguments, then measure."""
  cli.no_arguments(argv, '--minutes=9')
  run(flags.FLAGS)


if __name__ == '__main__':
  flags.DEFINE_string('output', 'gpu.md', 'Markdown file for the table.')
  flags.DEFINE_float('minutes', 9.0, 'Time limit.')
  flags.DEFINE_list('rows', ['losses', *(f'{row.model} {row.mode} {row.batch}' for row in ROWS)], 'What to measure.')
  flags.DEFINE_multi_string('variants', list(VARIANTS), 'Forms of vit_jax to measure.')
  flags.DEFINE_string('xla_flags', '', 'XLA_FLAGS of vit_jax.')
  flags.DEFINE_string('peer_python', None, 'A Python that has timm, if not this one.')
  flags.DEFINE_integer('batch', None, 'Images per step, for a rehearsal on a CPU.')
  flags.DEFINE_integer('image_size', 224, 'Pixels of a side, for a rehearsal on a CPU.')
  flags.DEFINE_integer('rounds', 5, 'Turns of each library.')
  flags.DEFINE_float('seconds', 2.0, 'Approximate length of a turn.')
  flags.DEFINE_string('changes', '{}', "To our recipe, for a rehearsal: '{\"model.depth\": 1}'.")
  app.run(main)
