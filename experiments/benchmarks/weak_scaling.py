"""Does a step cost a chip the same on 8 chips and on 256? `python -m experiments.benchmarks.weak_scaling --strategy=pmap`.

The batch a chip is constant; by the TPU compiler's estimates its cycles, memory and collective bytes must be, too.
Prints one JSON object a plan, and keeps experiments/benchmarks/weak_scaling_STRATEGY.md.
"""
import json

from absl import app
from absl import flags

from experiments.benchmarks import plan_table

TOPOLOGIES = {8: 'v5e:2x4', 16: 'v5e:4x4', 32: 'v5e:4x8', 64: 'v5e:8x8', 128: 'v5e:8x16', 256: 'v5e:16x16'}

# Every chip with the whole state, or eight with one.
STRATEGIES = {
    'mesh': dict(strategy='mesh', data=-1, fsdp=8),
    'pmap': dict(strategy='pmap', data=-1, fsdp=1),
}


def main(argv):
  """Plans all models for all sizes."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  values = flags.FLAGS
  topologies = [(TOPOLOGIES[int(chips)], int(chips)) for chips in values.chips]
  changes = {f'parallel.{name}': value for name, value in STRATEGIES[values.strategy].items()}
  changes.update(json.loads(values.changes))
  command = (f'python -m experiments.benchmarks.weak_scaling --strategy={values.strategy} --models={",".join(values.models)} '
             f'--chips={",".join(values.chips)}')
  command += '' if values.changes == '{}' else f" --changes='{values.changes}'"
  plan_table.make(values.models, topologies, plan_table.FOLDER / f'weak_scaling_{values.strategy}.md',
                  f'Weak scaling on v5e, {values.strategy}', command, **changes)


if __name__ == '__main__':
  flags.DEFINE_enum('strategy', 'pmap', list(STRATEGIES), 'parallel.strategy; a mesh shares a state among eight chips.')
  flags.DEFINE_string('changes', '{}', "Other changes to the config, such as '{\"parallel.fsdp\": -1, \"parallel.data\": 1}'.")
  flags.DEFINE_list('models', list(plan_table.IMAGES_PER_CHIP), 'Of b16, l16, h14.')
  flags.DEFINE_list('chips', ['8', '32', '256'], f'Of {list(TOPOLOGIES)}.')
  app.run(main)
