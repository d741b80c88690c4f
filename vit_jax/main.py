"""Trains a model: `python -m vit_jax.main --config=configs/digits.py --workdir=runs/digits`.

Run again, the same command goes on where the run stopped.  Any key of the config can be set on the command line:
`--config.optim.peak_lr=3e-4`.
"""
from absl import app
from absl import flags
from ml_collections import config_flags

from vit_jax import commands


def main(argv):
  """Parses nothing more, trains."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}; flags look like --workdir=runs/digits')
  from vit_jax import train  # after the flags: --help need not wait for jax
  commands.call(train.run, flags.FLAGS.config, flags.FLAGS.workdir)


if __name__ == '__main__':  # flags are the process's: not on import, as from a test or notebook
  # Keys a recipe does not mention are accepted here, and checked against the builders by `config.resolve`.
  config_flags.DEFINE_config_file(
      'config', None, 'Recipe, a file of configs/; --config.SECTION.KEY=VALUE overrides a key.', lock_config=False,
      accept_new_attributes=True)
  flags.DEFINE_string('workdir', None, 'Folder for config, metrics and checkpoints; local or gs://.', required=True)
  flags.mark_flag_as_required('config')
  app.run(main)
