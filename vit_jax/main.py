"""Trains a model: `python -m vit_jax.main --config=configs/digits.py --workdir=runs/digits`.

Run again, the same command goes on where the run stopped.  Any key of the config can be set on the command line:
`--config.optim.peak_lr=3e-4`.  On several hosts every one runs this same command.
"""
from absl import app
from absl import flags
from ml_collections.config_flags import config_flags

from vit_jax.run import cli as commands


class RecipeParser(config_flags.ConfigFileFlagParser):
  """Loads a recipe and gives it the sections it leaves out, so that any key can be set on the command line."""

  def parse(self, path):
    """Returns what the recipe's get_config() returns, completed."""
    config = super().parse(path)
    from vit_jax.run import config as config_lib  # only now: --help need not wait for jax
    return config_lib.with_sections(config) if hasattr(config, 'to_dict') else config


def main(argv):
  """Parses nothing more, trains."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}; flags look like --workdir=runs/digits')
  from vit_jax import train  # after the flags: --help need not wait for jax
  commands.prepare()
  commands.call(commands.start_hosts)
  commands.call(train.run, flags.FLAGS.config, flags.FLAGS.workdir)


if __name__ == '__main__':  # flags are the process's: not on import, as from a test or notebook
  # Keys a recipe does not mention are accepted here, and checked against the builders by `config.resolve`.
  config_flags.DEFINE_config_file(
      'config', None, 'Recipe, a file of configs/; --config.SECTION.KEY=VALUE overrides a key.', lock_config=False,
      accept_new_attributes=True)
  flags.FLAGS['config'].parser = RecipeParser('config', lock_config=False)
  flags.DEFINE_string('workdir', None, 'Folder for config, metrics and checkpoints; local or gs://.', required=True)
  flags.mark_flag_as_required('config')
  commands.define_host_flags()
  app.run(main)
