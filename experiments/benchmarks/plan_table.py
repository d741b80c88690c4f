"""The cost of training steps on TPU slices, by the TPU compiler: `python -m experiments.benchmarks.plan_table`.

B/16, L/16 and H/14 on 8 chips of each kind; needs no TPU, but pip install -e '.[tpu]'. Prints one JSON object per plan,
and writes experiments/benchmarks/plan.md. `experiments.benchmarks.weak_scaling` goes from 8 to 256 chips of one kind.
"""
from collections.abc import Callable, Iterable, Iterator, Sequence
import datetime
import json
import pathlib
import sys
from typing import Any

from absl import app, flags
import jax

from vit_jax.base import files
from vit_jax.configs import vit
from vit_jax.planning import planner
from vit_jax.planning.plan import Plan
from vit_jax.run import cli

FOLDER = pathlib.Path(__file__).parent
IMAGES_PER_CHIP = {'b16': 64, 'l16': 32, 'h14': 16}
TOPOLOGIES = ('v5e:2x4', 'v6e:2x4', 'v4:2x2x2', 'v5p:2x2x2')
COLUMNS: dict[str, Callable[[Plan], Any]] = {
    'model': lambda plan: f'{plan.setup.model}, {plan.setup.batch_per_device}',
    'topology': lambda plan: plan.setup.topology,
    'chips': lambda plan: plan.setup.devices,
    'M cycles': lambda plan: _number(plan.time.cycles, 1e6, 1),
    'images/s per chip': lambda plan: _number(plan.time.images_per_second, 1, 0),
    'of peak': lambda plan: _number(plan.time.utilization, 0.01, 1, ' %'),
    'needed GB': lambda plan: _number(plan.memory.needed, 1e9, 2),
    'temporaries GB': lambda plan: _number(plan.memory.temporaries, 1e9, 2),
    'available GB': lambda plan: _number(plan.memory.available, 1e9, 2, '' if plan.memory.fits else ', does not fit'),
    'collectives, MB': lambda plan: ', '.join(f'{kind} {row.count}× {row.bytes / 1e6:.1f}'
                                              for kind, row in plan.collectives.kinds.items()) or '-',
    'collectives ms, at least': lambda plan: _number(plan.collectives.milliseconds, 1, 1),
    'compiled in s': lambda plan: _number(plan.compile_seconds, 1, 0),
}


def config(model: str, chips: int, **changes: Any) -> Any:
  """Return a model's ImageNet recipe with IMAGES_PER_CHIP and no dropout; `changes` like {'parallel.strategy': …}."""
  recipe = vit.get_config(f'{model},imagenet')
  recipe.data.batch_size = chips * IMAGES_PER_CHIP[model]
  recipe.model.dropout = 0.0
  for key, value in changes.items():
    section, name = key.split('.')
    recipe[section] = {**recipe.get(section, {}), name: value}
  return recipe


def plans(models: Iterable[str], topologies: Sequence[tuple[str, int]], **changes: Any) -> Iterator[Plan]:
  """Yield a plan for each model on each (topology, chips)."""
  log = lambda text: print(text, file=sys.stderr, flush=True)
  for model in models:
    for topology, chips in topologies:
      yield planner.plan(config(model, chips, **changes), topology, log=log)
      jax.clear_caches()


def write(found: Sequence[Plan], path: pathlib.Path, title: str, command: str) -> None:
  """Write plans as a Markdown table with date, versions and command."""
  versions = ', '.join(f'{name} {version}' for name, version in found[0].setup.versions.items())
  lines = [f'# {title}', '', f'{datetime.date.today()}, {versions}. Estimates of the TPU compiler for one step of '
           'the ImageNet recipe (bfloat16 products, class token, AdamW) without dropout, per chip. Not a run. Cycles '
           'do not include collectives, whose time is a lower bound from the links; tpu_step.md also has the cycles '
           'that the compiler schedules.', '', f'    {command}', '',
           '| ' + ' | '.join(COLUMNS) + ' |', '|' + '---|' * len(COLUMNS)]
  lines += ['| ' + ' | '.join(str(column(plan)) for column in COLUMNS.values()) + ' |' for plan in found]
  files.write(path, '\n'.join(lines) + '\n', 'the table')


def make(models: Iterable[str], topologies: Sequence[tuple[str, int]], path: pathlib.Path, title: str, command: str,
         **changes: Any) -> None:
  """Plan, print a JSON line per plan, and keep the table up to date."""
  found = []
  for plan in plans(models, topologies, **changes):
    found.append(plan)
    print(json.dumps(plan.to_json()), flush=True)
    write(found, path, title, command)


def _number(value: float | None, unit: float, digits: int, suffix: str = '') -> str:
  return '-' if value is None else f'{value / unit:,.{digits}f}{suffix}'


def main(argv: list[str]) -> None:
  """Reject stray arguments, then plan all models for all kinds of chips."""
  cli.no_arguments(argv, '--models=b16')
  make(flags.FLAGS.models, [(topology, 8) for topology in flags.FLAGS.topologies], FOLDER / 'plan.md',
       'Steps on TPU chips', f'python -m experiments.benchmarks.plan_table --models={",".join(flags.FLAGS.models)}')


if __name__ == '__main__':
  flags.DEFINE_list('models', list(IMAGES_PER_CHIP), 'Of b16, l16, h14.')
  flags.DEFINE_list('topologies', list(TOPOLOGIES), 'Slices of 8 chips.')
  app.run(main)
