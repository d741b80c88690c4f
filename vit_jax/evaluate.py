"""Evaluate a run's checkpoint: `python -m vit_jax.evaluate --workdir=runs/digits`.

Prints one JSON object with the step and every metric, and reports whether the run recorded the same numbers.
"""
import json
import sys

from absl import flags

from vit_jax.run import cli


def define_flags() -> None:
  """Define the command's flags."""
  flags.DEFINE_string('workdir', None, 'Run directory to evaluate.', required=True)
  flags.DEFINE_integer('step', None, 'Which checkpoint; the latest by default.')
  flags.DEFINE_string('data_dir', None, "Directory of the datasets, if it is not where the run's config says.")
  cli.define_host_flags()


def main(argv: list[str]) -> None:
  """Reject stray arguments, then evaluate and print."""
  cli.no_arguments(argv)
  from vit_jax.run import evaluation  # after the flags: --help need not wait for jax
  cli.set_up_compiler()
  cli.call(cli.start_hosts)
  step, values, recorded = cli.call(evaluation.evaluate, flags.FLAGS.workdir, flags.FLAGS.step, flags.FLAGS.data_dir)
  import jax
  if jax.process_index() != 0:
    return
  print(json.dumps(dict(step=step, **values)))
  known = {name: recorded[name] for name in values if name in recorded}
  if known:
    same = known == values
    print('Equal to what the run recorded at this step.' if same else f'The run recorded {known}.', file=sys.stderr)


if __name__ == '__main__':
  define_flags()
  cli.start(main)
