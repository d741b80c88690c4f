"""Run a study: trials in a fixed order, each kept once it is done, and a table of means with their spread.

A study is a list of `Trial`s. `run` carries out those that `runs.json` does not hold yet, and writes `runs.json` and
`table.md` after each, so that a killed study resumes where it stopped. A trial that trains does so in its own
directory, where `vit_jax.train.run` resumes from its checkpoints.
"""
from collections.abc import Callable, Sequence
import dataclasses
import json
import pathlib
import statistics
import time

from vit_jax.base import files
from vit_jax.base.errors import UserError
from vit_jax.base.text import count

Numbers = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Trial:
  """One row of a study, for one seed.

  Attributes:
    row: name of the row in the table; the seeds of a row are averaged.
    seed: of everything random.
    measure: directory for its runs → {column: value}.
  """
  row: str
  seed: int
  measure: Callable[[pathlib.Path], Numbers]

  @property
  def key(self) -> str:
    """Name of the trial in `runs.json` and of its directory."""
    return f'{self.row}/{self.seed}'


def run(trials: Sequence[Trial], settings: dict[str, object], results: files.PathLike, workdir: files.PathLike) -> str:
  """Carry out the trials that are not done yet, and return the table.

  Args:
    trials: in the order in which to run them.
    settings: what all trials share, such as the data and the number of epochs; recorded in `runs.json`.
    results: directory for `runs.json` and `table.md`.
    workdir: directory for the runs of the trials.

  Raises:
    UserError: `results` holds trials with other settings.
  """
  folder, workdir = files.local(results), files.local(workdir)
  done = _read(folder / 'runs.json', settings)
  missing = [trial for trial in trials if trial.key not in done]
  print(f'{count(len(trials), "trial")}, {len(trials) - len(missing)} done', flush=True)
  started = time.monotonic()
  for number, trial in enumerate(missing):
    done[trial.key] = trial.measure(workdir / trial.key)
    files.write(folder / 'runs.json', json.dumps(dict(settings=settings, trials=done), indent=1) + '\n')
    files.write(folder / 'table.md', table(done))
    minutes = (time.monotonic() - started) / 60
    left = minutes / (number + 1) * (len(missing) - number - 1)
    print(f'{trial.key}: {describe(done[trial.key])}  [{minutes:.0f} min, about {left:.0f} min left]', flush=True)
  return table(done)


def table(done: dict[str, Numbers]) -> str:
  """Return a Markdown table of {'ROW/SEED': numbers}: a line per row, mean ± standard deviation over its seeds.

  The standard deviation is the sample's (n - 1); a row with one seed has none.
  """
  rows: dict[str, list[Numbers]] = {}
  for key, numbers in done.items():
    rows.setdefault(key.rpartition('/')[0], []).append(numbers)
  columns = list(dict.fromkeys(name for seeds in rows.values() for numbers in seeds for name in numbers))
  lines = ['| | ' + ' | '.join(columns) + ' | seeds |', '|---' * (len(columns) + 2) + '|']
  for row, seeds in rows.items():
    cells = [_cell([numbers[name] for numbers in seeds if name in numbers]) for name in columns]
    lines.append(f'| {row} | {" | ".join(cells)} | {len(seeds)} |')
  return '\n'.join(lines) + '\n'


def describe(numbers: Numbers) -> str:
  """Return numbers as one line."""
  return '  '.join(f'{name} {value:.4g}' for name, value in numbers.items())


def _cell(values: Sequence[float]) -> str:
  """Return the mean of some values, and their spread if there are several."""
  if not values:
    return ''
  mean = statistics.fmean(values)
  return f'{mean:.2f}' if len(values) == 1 else f'{mean:.2f} ± {statistics.stdev(values):.2f}'


def _read(path: pathlib.Path, settings: dict[str, object]) -> dict[str, Numbers]:
  """Return the trials that are done; {} if there is no such file.

  Raises:
    UserError: they were done with other settings.
  """
  if not path.exists():
    return {}
  stored = json.loads(path.read_text())
  if stored['settings'] != settings:
    raise UserError(f'{path}: holds trials with other settings, {stored["settings"]}; these are {settings}. Choose '
                    'another --output')
  return stored['trials']
