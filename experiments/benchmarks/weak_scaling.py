"""Weak scaling by the TPU compiler's estimates: `python -m experiments.benchmarks.weak_scaling --strategy=pmap`.

The batch per chip is constant from 8 to 256 chips; cycles, memory and collective bytes per chip should be constant too.
Prints one JSON object per plan, and writes experiments/benchmarks/weak_scaling_STRATEGY.md.
"""
import json

from absl import app, flags

from experiments.benchmarks import plan_table
from vit_jax.run import cli

TOPOLOGIES = {8: 'v5e:2x4', 16: 'v5e:4x4', 32: 'v5e:4x8', 64: 'v5e:8x8', 128: 'v5e:8x16', 256: 'v5e:16x16'}

# With pmap every chip holds the whole state, in the mesh eight chips share one.
STRATEGIES = {
    'mesh': dict(strategy='mesh', data=-1, fsdp=8),
    'pmap': dict(strategy='pmap', data=-1, fsdp=1),
}


def main(argv: list[str]) -> None:
  """Reject stray arguments, then plan all models for all sizes."""
  cli.no_arguments(argv, '--strategy=pmap')
  values = flags.FLAGS
  topologies = [(TOPOLOGIES[int(chips)], int(chips)) for chips in values.chips]
  changes = {f'parallel.{name}': value for name, value in STRATEGIES[values.strategy].items()}
  changes.update(json.loads(values.changes))
  command = (f'python -m experiments.benchmarks.weak_scaling --strategy={values.strategy} '
             f'--models={",".join(values.models)} --chips={",".join(values.chips)}')
  command += '' if values.changes == '{}' else f" --changes='{values.changes}'"
  plan_table.make(values.models, topologies, plan_table.FOLDER / f'weak_scaling_{values.strategy}.md',
                  f'Weak scaling on v5e, {values.strategy}', command, **changes)


if __name__ == '__main__':
  flags.DEFINE_enum('strategy', 'pmap', list(STRATEGIES), 'parallel.strategy; in a mesh eight chips share a state.')
  flags.DEFINE_string('changes', '{}', 'Other changes to the config, such as '
                      "'{\"parallel.fsdp\": -1, \"parallel.data\": 1}'.")
  flags.DEFINE_list('models', list(plan_table.IMAGES_PER_CHIP), 'Of b16, l16, h14.')
  flags.DEFINE_list('chips', ['8', '32', '256'], f'Of {list(TOPOLOGIES)}.')
  app.run(main)
