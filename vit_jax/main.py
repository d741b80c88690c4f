"""Train a model: `python -m vit_jax.main --config=configs/digits.py --workdir=runs/digits`.

Run the same command again to resume. Any key of the config can be set on the command line:
`--config.optim.peak_lr=3e-4`. If the run has several processes, each runs this same command.
"""
from absl import flags

from vit_jax.guards import output
from vit_jax.run import cli


def define_flags() -> None:
  """Define the command's flags."""
  cli.define_config_flag()
  flags.DEFINE_string('workdir', None, 'Directory for config, metrics and checkpoints; local or gs://.', required=True)
  cli.define_host_flags()


def main(argv: list[str]) -> None:
  """Reject stray arguments, then train."""
  cli.no_arguments(argv)
  from vit_jax import train  # after the flags: --help need not wait for jax
  with output.Output():
    cli.set_up_compiler()
    cli.call(cli.start_hosts, interruptible=False)
    cli.call(train.run, flags.FLAGS.config, flags.FLAGS.workdir, interruptible=False)


if __name__ == '__main__':
  define_flags()
  cli.start(main)
