"""Images a second of training and inference, beside timm on the same chip: `python -m experiments.benchmarks.throughput`.

  python -m experiments.benchmarks.throughput --models=B/16,L/16,H/14 --peers=timm --output=experiments/benchmarks/gpu.md

Every contender is a process of its own with one device, built and warmed; then all run in turn, round after round, so
that what else the machine does hits them alike. Needs no network; a peer whose packages are missing (PyTorch, timm)
is left out. --batch, --mode and --dtype say what is run; --json prints one object a line.
"""
import contextlib
import datetime
import importlib.util
import json
import os
import pathlib
import statistics
import subprocess
import sys

from absl import app
from absl import flags

from experiments.benchmarks import contender
from vit_jax.planning import peaks

ROOT = pathlib.Path(__file__).parent.parent.parent
BATCHES = {'Ti': 512, 'S': 256, 'B': 128, 'L': 64, 'H': 32}  # images that a chip with 40 GB has room for
SHARED_GPU = {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}  # the others need room, too
OPERATIONS = {'train': 6, 'inference': 2}  # a multiply-add of the forward pass; see planning.flops


class Contender:
  """A process that runs `experiments.benchmarks.contender`.

  Args:
    python: of the process.
    arguments: of `contender.serve`.
  """

  def __init__(self, python, **arguments):
    self.arguments = arguments
    self._process = subprocess.Popen(
        [python, '-m', 'experiments.benchmarks.contender', json.dumps(arguments)], cwd=ROOT, env={**SHARED_GPU, **os.environ},
        text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    self.about = self._answer()

  def run(self, steps):
    """Runs steps; see `contender.serve` for the dict it returns."""
    self._process.stdin.write(f'{steps}\n')
    self._process.stdin.flush()
    return self._answer()

  def close(self):
    """Ends the process."""
    self._process.stdin.close()
    self._process.wait()

  def _answer(self):
    line = self._process.stdout.readline()
    if not line:
      raise ValueError(f'{self.arguments} ended with exit status {self._process.wait()}; what it said is above')
    return json.loads(line)


def measure(setting, peers, rounds, seconds, changes, say=lambda text: None):
  """Measures us and the peers in one setting.

  Args:
    setting: dict of model, mode, batch, dtype and image_size.
    peers: {name of contender.CONTENDERS: path of the Python that has what it needs}.
    rounds: how often each contender has its turn.
    seconds: how long a turn is, about.
    changes: to our recipe, {'SECTION.KEY': value}.
    say: called with lines of progress.

  Returns:
    A list of dicts, see `summary`; ours first, the others with `ours`, how many times as quick we are.

  Raises:
    ValueError: a contender that fails.
  """
  with contextlib.ExitStack() as stack:
    contenders, turns = {}, {}
    for name, python in {'vit_jax': sys.executable, **peers}.items():
      contenders[name] = Contender(python, who=name, changes=changes, **setting)
      stack.callback(contenders[name].close)
      say(f'{name}: first step {contenders[name].about["first_step_seconds"]:.1f} s')
    steps = {name: _steps_in(seconds, one) for name, one in contenders.items()}
    for number in range(rounds):
      for name, one in contenders.items():
        turns.setdefault(name, []).append(dict(one.run(steps[name]), steps=steps[name]))
      say(f'round {number + 1} of {rounds}')
  work = OPERATIONS[setting['mode']] * contenders['vit_jax'].about['multiply_adds']
  found = [summary(name, setting, one.about, turns[name], work) for name, one in contenders.items()]
  for row in found[1:]:
    row['ours'] = round(found[0]['images_per_second'] / row['images_per_second'], 3)
    row['ours_per_cpu_second'] = round(found[0]['images_per_cpu_second'] / row['images_per_cpu_second'], 3)
  return found


def summary(who, setting, about, turns, work):
  """What the turns of a contender come to.

  Args:
    who: its name.
    setting: see `measure`.
    about: what it said of itself.
    turns: what `contender.serve` answered, each with its `steps`.
    work: operations an image.

  Returns:
    dict: `who`, the setting, what `contender.serve` said, and medians over the turns: `images_per_second` and its
    `spread` (least, most), `images_per_cpu_second` (of all threads: what a CPU that others use as well can do);
    `utilisation` (0..1; None where the chip's peak is not known or the arithmetic is not bfloat16), `peak_memory_gb`.
  """
  rates = [turn['steps'] * setting['batch'] / turn['seconds'] for turn in turns]
  rate = statistics.median(rates)
  per_cpu = statistics.median(turn['steps'] * setting['batch'] / turn['cpu_seconds'] for turn in turns)
  known = peaks.peak(about['device']) if setting['dtype'] == 'bfloat16' else None
  return dict(
      who=who, **setting, device=about['device'], images_per_second=round(rate, 2),
      spread=[round(min(rates), 2), round(max(rates), 2)], images_per_cpu_second=round(per_cpu, 2),
      utilisation=round(rate * work / known, 4) if known else None,
      peak_memory_gb=round(turns[-1]['peak_memory'] / 1e9, 3),
      first_step_seconds=round(about['first_step_seconds'], 1), value=turns[-1]['value'], versions=about['versions'])


def _steps_in(seconds, one):
  """How many steps take about that long; warms up on the way."""
  one.run(2)
  timed = one.run(2)
  return max(1, round(2 * seconds / timed['seconds']))


def table(rows, command):
  """Markdown lines: date, chip, versions, command, and a row for each measurement."""
  versions = {name: version for row in rows for name, version in row['versions'].items()}
  head = [f'{datetime.date.today()}, {rows[0]["device"]}, {os.cpu_count()} CPU cores, medians of interleaved rounds']
  lines = [', '.join([*head, *(f'{name} {at}' for name, at in versions.items())]), '', f'    {command}', '',
           '| ' + ' | '.join(COLUMNS) + ' |', '|' + '---|' * len(COLUMNS)]
  return lines + ['| ' + ' | '.join(column(row) for column in COLUMNS.values()) + ' |' for row in rows]


def find_peers(names, python):
  """{peer: Python to run it}, without those whose packages are missing; these are named on stderr."""
  there = {}
  for name in names:
    if name not in contender.CONTENDERS or name == 'vit_jax':
      raise ValueError(f'unknown peer {name!r}; choose from {sorted(set(contender.CONTENDERS) - {"vit_jax"})}')
    if python or all(map(importlib.util.find_spec, contender.CONTENDERS[name].NEEDS)):
      there[name] = python or sys.executable
    else:
      print(f'{name} is left out; it needs: pip install {" ".join(contender.CONTENDERS[name].NEEDS)}', file=sys.stderr)
  return there


def run(values):
  """Measures every setting that the flags name; prints and writes."""
  peers, rows = find_peers(values.peers, values.peer_python), []
  say = lambda text: print(text, file=sys.stderr, flush=True)
  for model in values.models:
    for mode in values.mode:
      for dtype in values.dtype:
        size = values.batch or BATCHES.get(model.partition('/')[0], 16)
        setting = dict(model=model, mode=mode, batch=size, dtype=dtype, image_size=values.image_size)
        say(f'{model} {mode}, batch {size}, {dtype}')
        found = measure(setting, peers, values.rounds, values.seconds, json.loads(values.changes), say)
        rows += found
        if values.json:
          print('\n'.join(map(json.dumps, found)), flush=True)
  lines = table(rows, 'python -m experiments.benchmarks.throughput ' + ' '.join(sys.argv[1:]))
  if not values.json:
    print('\n'.join(lines))
  if values.output:
    pathlib.Path(values.output).write_text('\n'.join(['# Throughput', '', *lines, '']))


COLUMNS = {
    'model': lambda row: f'{row["model"]} {row["mode"]}',
    'batch': lambda row: str(row['batch']),
    'type': lambda row: row['dtype'],
    'library': lambda row: row['who'],
    'images/s': lambda row: f'{row["images_per_second"]:,} ({row["spread"][0]:,} to {row["spread"][1]:,})',
    'speed-up': lambda row: f'{row["ours"]:.2f} times' if 'ours' in row else '',
    'images/CPU s': lambda row: f'{row["images_per_cpu_second"]:,}',
    'speed-up per CPU second': lambda row: f'{row["ours_per_cpu_second"]:.2f} times' if 'ours' in row else '',
    'of peak': lambda row: '-' if row['utilisation'] is None else f'{row["utilisation"]:.1%}',
    'peak memory GB': lambda row: f'{row["peak_memory_gb"]:.2f}',
    'first step s': lambda row: f'{row["first_step_seconds"]:.1f}',
}


def main(argv):
  """Parses nothing more, measures."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  run(flags.FLAGS)


if __name__ == '__main__':
  flags.DEFINE_list('models', ['B/16', 'L/16', 'H/14'], 'Variants.')
  flags.DEFINE_integer('batch', None, f'Images a step; by default by size: {BATCHES}.')
  flags.DEFINE_list('mode', ['train', 'inference'], 'What to run.')
  flags.DEFINE_list('dtype', ['bfloat16'], 'Of activations and products: bfloat16, float32.')
  flags.DEFINE_list('peers', ['timm'], 'Libraries to compare with.')
  flags.DEFINE_string('peer_python', None, 'A Python that has what the peers need, if not this one.')
  flags.DEFINE_integer('image_size', 224, 'Pixels of a side.')
  flags.DEFINE_integer('rounds', 7, 'How often each has its turn.')
  flags.DEFINE_float('seconds', 5.0, 'How long a turn takes, about.')
  flags.DEFINE_string('changes', '{}', "To our recipe, such as '{\"model.unroll\": true}'.")
  flags.DEFINE_string('output', None, 'Markdown file for the table.')
  flags.DEFINE_bool('json', False, 'Print one JSON object a measurement.')
  app.run(main)
