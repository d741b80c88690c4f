"""What training steps cost on TPU slices, by the TPU compiler: `python -m experiments.benchmarks.plan_table`.

B/16, L/16 and H/14 on 8 chips of each kind (no TPU is needed, pip install -e '.[tpu]' is). Prints one JSON object a
plan, and keeps experiments/benchmarks/plan.md. `experiments.benchmarks.weak_scaling` goes from 8 to 256 chips of one kind.
"""
import datetime
import json
import pathlib
import sys

from absl import app
from absl import flags
import jax

from vit_jax.configs import vit
from vit_jax import plan

FOLDER = pathlib.Path(__file__).parent
IMAGES_PER_CHIP = {'b16': 64, 'l16': 32, 'h14': 16}
TOPOLOGIES = ('v5e:2x4', 'v6e:2x4', 'v4:2x2x2', 'v5p:2x2x2')
COLUMNS = {
    'model': lambda row: f'{row["model"]}, {row["batch_per_device"]}',
    'topology': lambda row: row['topology'],
    'chips': lambda row: row['devices'],
    'M cycles': lambda row: _number(row['cycles'], 1e6, 1),
    'images/s per chip': lambda row: _number(row['images_per_second'], 1, 0),
    'of peak': lambda row: _number(row['utilisation'], 0.01, 1, ' %'),
    'needed GB': lambda row: _number(row['needed_gb'], 1, 2),
    'temporaries GB': lambda row: _number(row['temp_gb'], 1, 2),
    'available GB': lambda row: _number(row['hbm_gb'], 1, 2, '' if row['fits'] else ', does not fit'),
    'collectives, MB': lambda row: ', '.join(f'{kind} {value["count"]}× {1e3 * value["gb"]:.1f}'
                                             for kind, value in row['collectives'].items()) or '-',
    'collectives ms, at least': lambda row: _number(row['collective_milliseconds'], 1, 1),
    'compiled in s': lambda row: _number(row['compile_seconds'], 1, 0),
}


def config(model, chips, **changes):
  """The ImageNet recipe of a model with IMAGES_PER_CHIP, no dropout; `changes` such as {'parallel.strategy': …}."""
  recipe = vit.get_config(f'{model},imagenet')
  recipe.data.batch_size = chips * IMAGES_PER_CHIP[model]
  recipe.model.dropout = 0.0
  for key, value in changes.items():
    section, name = key.split('.')
    recipe[section] = {**recipe.get(section, {}), name: value}
  return recipe


def rows(models, topologies, **changes):
  """Yields a plan, see `planning.estimate.estimate`, for each model on each (topology, chips)."""
  say = lambda text: print(text, file=sys.stderr, flush=True)
  for model in models:
    for topology, chips in topologies:
      yield plan.plan(config(model, chips, **changes), topology, say=say)
      jax.clear_caches()


def write(found, path, title, command):
  """Writes plans as a Markdown table with date, versions and command."""
  versions = ', '.join(f'{name} {version}' for name, version in found[0]['versions'].items())
  lines = [f'# {title}', '', f'{datetime.date.today()}, {versions}. Estimates of the TPU compiler for one step of '
           'the ImageNet recipe (bfloat16 products, class token, AdamW) without dropout, per chip. Not a run. Cycles do '
           'not include collectives, whose time is a lower bound from the links; tpu_step.md also has the cycles that '
           'the compiler schedules.', '', f'    {command}', '',
           '| ' + ' | '.join(COLUMNS) + ' |', '|' + '---|' * len(COLUMNS)]
  lines += ['| ' + ' | '.join(str(column(row)) for column in COLUMNS.values()) + ' |' for row in found]
  path.parent.mkdir(exist_ok=True)
  path.write_text('\n'.join(lines) + '\n')


def make(models, topologies, path, title, command, **changes):
  """Plans, prints a JSON line each, and keeps the table up to date."""
  found = []
  for row in rows(models, topologies, **changes):
    found.append(row)
    print(json.dumps(row), flush=True)
    write(found, path, title, command)


def _number(value, unit, digits, after=''):
  return '-' if value is None else f'{value / unit:,.{digits}f}{after}'


def main(argv):
  """Plans all models for all kinds of chips."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  make(flags.FLAGS.models, [(topology, 8) for topology in flags.FLAGS.topologies], FOLDER / 'plan.md',
       'Steps on TPU chips', f'python -m experiments.benchmarks.plan_table --models={",".join(flags.FLAGS.models)}')


if __name__ == '__main__':
  flags.DEFINE_list('models', list(IMAGES_PER_CHIP), 'Of b16, l16, h14.')
  flags.DEFINE_list('topologies', list(TOPOLOGIES), 'Slices of 8 chips.')
  app.run(main)
