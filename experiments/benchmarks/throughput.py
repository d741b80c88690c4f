"""Images per second of training and inference, compared with timm on the same chip.

  python -m experiments.benchmarks.throughput --models=B/16,L/16 --peers=timm --output=experiments/benchmarks/gpu.md

Every library runs in its own process with one device, built and warmed up; then they take turns, round after round, so
that other load on the machine affects them equally. Needs no network; a peer whose packages are missing (PyTorch, timm)
is left out. --batch, --mode and --dtype choose what is run; --json prints one object per line.
"""
from collections.abc import Callable, Iterable, Mapping, Sequence
import contextlib
import dataclasses
import datetime
import functools
import importlib.util
import json
import os
import pathlib
import select
import statistics
import subprocess
import sys
import time
from typing import Any

from absl import app, flags

from experiments.benchmarks import contender
from vit_jax.base import files
from vit_jax.base.choices import choose
from vit_jax.planning import chips
from vit_jax.run import cli

ROOT = pathlib.Path(__file__).parent.parent.parent
BATCHES = {'Ti': 512, 'S': 256, 'B': 128, 'L': 64, 'H': 32}  # images that fit a chip with 40 GB
SHARED_GPU = {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}  # the other libraries need memory too
OPERATIONS = {'train': 6, 'inference': 2}  # per multiply-add of the forward pass (PaLM, arXiv 2204.02311, appendix B)

Setting = Mapping[str, Any]
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Entry:
  """What takes part in a comparison.

  Attributes:
    library: name in `contender.CONTENDERS`.
    python: a Python that has what the library needs.
    changes: to our recipe, {'SECTION.KEY': value}.
    environment: further environment variables.
  """
  library: str
  python: str = sys.executable
  changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Contender:
  """A process that runs `experiments.benchmarks.contender`.

  Args:
    entry: the library and how to run it.
    setting: dict of model, mode, batch, dtype and image_size.

  Attributes:
    deadline: `time.monotonic()` by which it must answer; None: no limit.
  """

  def __init__(self, entry: Entry, setting: Setting):
    self._arguments = dict(library=entry.library, changes=entry.changes, **setting)
    self.deadline: float | None = None
    command = [entry.python, '-m', 'experiments.benchmarks.contender', json.dumps(self._arguments)]
    environment = {**SHARED_GPU, **os.environ, **entry.environment}
    self._process = subprocess.Popen(command, cwd=ROOT, env=environment, text=True,
                                     stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert self._process.stdin and self._process.stdout
    self._commands, self._answers = self._process.stdin, self._process.stdout

  @functools.cached_property
  def about(self) -> dict[str, Any]:
    """Wait for the first step; return what `contender.serve` answers first.

    Raises:
      ValueError: the process fails or misses the deadline; it is ended.
    """
    return self._answer()

  def run(self, steps: int) -> dict[str, Any]:
    """Run steps; return the dict that `contender.serve` describes; raise as `about` does."""
    self._commands.write(f'{steps}\n')
    self._commands.flush()
    return self._answer()

  def close(self) -> None:
    """End the process."""
    self._commands.close()
    self._process.wait()
    self._answers.close()

  def _answer(self) -> dict[str, Any]:
    limit = None if self.deadline is None else max(0.0, self.deadline - time.monotonic())
    if not select.select([self._answers], [], [], limit)[0]:
      self._process.kill()
      self.close()
      raise ValueError(f'{self._arguments} missed the deadline')
    line = self._answers.readline()
    if not line:
      self.close()
      raise ValueError(f'{self._arguments} ended with exit status {self._process.returncode}; its output is above')
    return json.loads(line)


def measure(setting: Setting, entries: Mapping[str, Entry], rounds: int, seconds: float,
            log: Callable[[str], None] = lambda text: None, together: bool = False,
            limits: tuple[float, float] | None = None) -> list[Row]:
  """Measure vit_jax and others in one setting.

  Args:
    setting: dict of model, mode, batch, dtype and image_size.
    entries: {name in the table: what to run}; the first is vit_jax, to which the others are compared. Any other whose
      process fails before its first step is done is left out, with a line in the log.
    rounds: turns of each.
    seconds: approximate length of a turn.
    log: called with lines of progress.
    together: compile all at the same time, which takes less time in all but more for each.
    limits: seconds from now until the first steps, and until everything must be done.

  Returns:
    Rows, see `summary`: vit_jax first, the others with `speedup` and `speedup_per_cpu_second`, the ratio of vit_jax's
    rate to theirs.

  Raises:
    ValueError: the process of the first entry fails, or any fails after its first step.
  """
  now, first = time.monotonic(), next(iter(entries))
  with contextlib.ExitStack() as stack:
    contenders, turns = {}, {}

    def start(name: str) -> Contender:
      contender = Contender(entries[name], setting)
      contender.deadline = limits and now + limits[0]
      stack.callback(contender.close)
      return contender

    started = {name: start(name) for name in entries} if together else {}
    for name in entries:
      contender = started.get(name) or start(name)
      try:
        log(f'{name}: first step {contender.about["first_step_seconds"]:.1f} s')
      except ValueError as error:
        if name == first:
          raise
        log(f'{name} is left out: {error}')
      else:
        contenders[name] = contender
        contender.deadline = limits and now + limits[1]
    steps = {name: _steps_in(seconds, one) for name, one in contenders.items()}
    for number in range(rounds):
      for name, one in contenders.items():
        turns.setdefault(name, []).append(dict(one.run(steps[name]), steps=steps[name]))
      log(f'round {number + 1} of {rounds}')
  work = OPERATIONS[setting['mode']] * contenders[first].about['multiply_adds']
  ours, *others = [summary(name, setting, one.about, turns[name], work) for name, one in contenders.items()]
  for row in others:
    row['speedup'] = round(ours['images_per_second'] / row['images_per_second'], 3)
    row['speedup_per_cpu_second'] = round(ours['images_per_cpu_second'] / row['images_per_cpu_second'], 3)
  return [ours, *others]


def summary(library: str, setting: Setting, about: Mapping[str, Any], turns: Sequence[Mapping[str, Any]], work: float
            ) -> Row:
  """Summarize the turns of a library.

  Args:
    library: its name in the table.
    setting: see `measure`.
    about: the first answer of `contender.serve`.
    turns: its further answers, each with its `steps`.
    work: operations per image.

  Returns:
    dict: `library`, the setting, parts of `about`, and medians over the turns: `images_per_second` and its `spread`
    (minimum, maximum), `images_per_cpu_second` (of all threads: comparable if others use the CPU as well);
    `utilisation` (0..1; None if the chip's peak is not known or the arithmetic is not bfloat16), `peak_memory_gb`.
  """
  rates = [turn['steps'] * setting['batch'] / turn['seconds'] for turn in turns]
  rate = statistics.median(rates)
  per_cpu = statistics.median(turn['steps'] * setting['batch'] / turn['cpu_seconds'] for turn in turns)
  peak = chips.peak(about['device']) if setting['dtype'] == 'bfloat16' else None
  return dict(
      library=library, **setting, device=about['device'], images_per_second=round(rate, 2),
      spread=[round(min(rates), 2), round(max(rates), 2)], images_per_cpu_second=round(per_cpu, 2),
      utilisation=round(rate * work / peak, 4) if peak else None,
      peak_memory_gb=round(turns[-1]['peak_memory'] / 1e9, 3),
      first_step_seconds=round(about['first_step_seconds'], 1), value=turns[-1]['value'], versions=about['versions'])


def _steps_in(seconds: float, one: Contender) -> int:
  """Return the number of steps that take about `seconds`; warms up on the way."""
  one.run(2)
  timed = one.run(2)
  return max(1, round(2 * seconds / timed['seconds']))


def table(rows: Sequence[Row], command: str) -> list[str]:
  """Return Markdown lines: date, chip, versions, command, and a row per measurement."""
  versions = {name: version for row in rows for name, version in row['versions'].items()}
  head = [f'{datetime.date.today()}, {rows[0]["device"]}, {os.cpu_count()} CPU cores, medians of interleaved rounds']
  lines = [', '.join([*head, *(f'{name} {version}' for name, version in versions.items())]), '', f'    {command}', '',
           '| ' + ' | '.join(COLUMNS) + ' |', '|' + '---|' * len(COLUMNS)]
  return lines + ['| ' + ' | '.join(column(row) for column in COLUMNS.values()) + ' |' for row in rows]


def find_peers(names: Iterable[str], python: str | None = None) -> dict[str, Entry]:
  """Return {name: entry} of the peers, without those whose packages are missing, which are listed on stderr.

  Args:
    names: in `contender.CONTENDERS`.
    python: a Python that has their packages; None: this one.
  """
  peers = {name: kind for name, kind in contender.CONTENDERS.items() if name != 'vit_jax'}
  found = {}
  for name in names:
    needs = choose(peers, name, '--peers').NEEDS
    if python or all(map(importlib.util.find_spec, needs)):
      found[name] = Entry(name, python or sys.executable)
    else:
      print(f'{name} is left out; it needs: pip install {" ".join(needs)}', file=sys.stderr)
  return found


def run(values: Any) -> None:
  """Measure every setting that the flags name; print and write the results."""
  ours = Entry('vit_jax', changes=json.loads(values.changes))
  entries, rows = {'vit_jax': ours, **find_peers(values.peers, values.peer_python)}, []
  log = lambda text: print(text, file=sys.stderr, flush=True)
  for model in values.models:
    for mode in values.mode:
      for dtype in values.dtype:
        size = values.batch or BATCHES.get(model.partition('/')[0], 16)
        setting = dict(model=model, mode=mode, batch=size, dtype=dtype, image_size=values.image_size)
        log(f'{model} {mode}, batch {size}, {dtype}')
        found = measure(setting, entries, values.rounds, values.seconds, log)
        rows += found
        if values.json:
          print('\n'.join(map(json.dumps, found)), flush=True)
  lines = table(rows, 'python -m experiments.benchmarks.throughput ' + ' '.join(sys.argv[1:]))
  if not values.json:
    print('\n'.join(lines))
  if values.output:
    files.write(values.output, '\n'.join(['# Throughput', '', *lines, '']), 'the table')


COLUMNS: dict[str, Callable[[Row], str]] = {
    'model': lambda row: f'{row["model"]} {row["mode"]}',
    'batch': lambda row: str(row['batch']),
    'type': lambda row: row['dtype'],
    'library': lambda row: row['library'],
    'images/s': lambda row: f'{row["images_per_second"]:,} ({row["spread"][0]:,} to {row["spread"][1]:,})',
    'speed-up': lambda row: f'{row["speedup"]:.2f} times' if 'speedup' in row else '',
    'images/CPU s': lambda row: f'{row["images_per_cpu_second"]:,}',
    'speed-up per CPU second': lambda row: f'{row["speedup_per_cpu_second"]:.2f} times' if 'speedup' in row else '',
    'of peak': lambda row: '-' if row['utilisation'] is None else f'{row["utilisation"]:.1%}',
    'peak memory GB': lambda row: f'{row["peak_memory_gb"]:.2f}',
    'first step s': lambda row: f'{row["first_step_seconds"]:.1f}',
}


def main(argv: list[str]) -> None:
  """Reject stray arguments, then measure."""
  cli.no_arguments(argv, '--models=B/16')
  run(flags.FLAGS)


if __name__ == '__main__':
  flags.DEFINE_list('models', ['B/16', 'L/16', 'H/14'], 'Variants.')
  flags.DEFINE_integer('batch', None, f'Images per step; by default by size: {BATCHES}.')
  flags.DEFINE_list('mode', ['train', 'inference'], 'What to run.')
  flags.DEFINE_list('dtype', ['bfloat16'], 'Of activations and products: bfloat16, float32.')
  flags.DEFINE_list('peers', ['timm'], 'Libraries to compare with.')
  flags.DEFINE_string('peer_python', None, 'A Python that has what the peers need, if not this one.')
  flags.DEFINE_integer('image_size', 224, 'Pixels of a side.')
  flags.DEFINE_integer('rounds', 7, 'Turns of each library.')
  flags.DEFINE_float('seconds', 5.0, 'Approximate length of a turn.')
  flags.DEFINE_string('changes', '{}', "To our recipe, such as '{\"model.unroll\": true}'.")
  flags.DEFINE_string('output', None, 'Markdown file for the table.')
  flags.DEFINE_bool('json', False, 'Print one JSON object per measurement.')
  app.run(main)
