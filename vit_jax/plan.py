"""Estimate the cost of a training step, without the machine: `python -m vit_jax.plan --config=… --topology=v5e:16x16`.

Compiles the step that `vit_jax.main` would run with the same config, for a TPU slice that you need not have or, without
--topology, for the devices that jax finds. Prints, per device, whether the step fits, its memory, the compiler's
estimate of its cycles and where they go, and its collectives. Exit status 1: it does not fit.
"""
import json
import sys

from absl import flags

from vit_jax.run import cli


def define_flags() -> None:
  """Define the command's flags."""
  cli.define_config_flag()
  flags.DEFINE_string('topology', None, 'TPU slice, such as v5e:16x16, v4:2x2x1 or v5litepod-256; by default the '
                      'devices that jax finds.')
  flags.DEFINE_integer('num_classes', None, 'Classes of the data, if the dataset is neither known nor prepared.')
  flags.DEFINE_bool('search', False, 'Find the largest batch that devices hold at once, without train.micro_batch, and '
                    'its cheapest rematerialization.')
  flags.DEFINE_bool('json', False, 'Print one JSON object.')


def main(argv: list[str]) -> None:
  """Reject stray arguments, then plan and print; progress goes to stderr."""
  cli.no_arguments(argv, '--topology=v5e:2x4')
  from vit_jax.planning import planner, report  # after the flags: --help need not wait for jax
  values = flags.FLAGS
  log = lambda text: print(text, file=sys.stderr, flush=True)
  plan = cli.call(lambda: planner.plan(values.config, values.topology, num_classes=values.num_classes,
                                       search=values.search, log=log))
  print(json.dumps(plan.to_json()) if values.json else report.text(plan))
  sys.exit(plan.memory.fits is False)


if __name__ == '__main__':
  define_flags()
  cli.start(main)
