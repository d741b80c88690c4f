"""Draw what the model will see: `python -m vit_jax.show --config=configs/digits.py --output=sheet.png`.

The sheet has a row per example, spread evenly over the training split: on the left as evaluation sees it, then as
training does in consecutive epochs, augmented and mixed as the config says, with the classes and their weights below.
Nothing is trained.

With --workdir=RUN of a run that predicts hidden patches (masked patch prediction, MAE, SimMIM), it shows images of its
test split, what of them was hidden, and what the trained model fills in.

With --health=RUN, it shows the health panels of a run that was trained with --config.health.every=1: attention, tokens,
gradients and updates, layer by layer (docs/evaluating.md).

With --operations and two photos as arguments, it shows every operation at several strengths instead.
"""
from absl import app, flags

from vit_jax.run import cli


def define_flags() -> None:
  """Define the command's flags."""
  cli.define_config_flag(required=False)
  flags.DEFINE_integer('count', 8, 'Number of examples.')
  flags.DEFINE_integer('draws', 6, 'How often each example is shown as training sees it.')
  flags.DEFINE_string('workdir', None, 'Run whose hidden patches are shown instead, as its model fills them in.')
  flags.DEFINE_integer('step', None, 'With --workdir: which checkpoint; the latest by default.')
  flags.DEFINE_bool('operations', False, 'Show all operations on two photos instead.')
  flags.DEFINE_string('health', None, 'Run whose health panels are shown instead.')
  flags.DEFINE_string('output', 'sheet.png', 'Picture to write; .png or .jpg.')


def main(argv: list[str]) -> None:
  """Draw the sheet and print where it is."""
  values = flags.FLAGS
  given = [values.config, values.workdir, values.health, values.operations or None]
  if sum(value is not None for value in given) != 1:
    raise app.UsageError('expected one of --config=RECIPE, --workdir=RUN, --health=RUN, --operations')
  if not values.operations:
    cli.no_arguments(argv, '--count=8')
  cli.call(_write_sheet if values.health is None else _write_health, argv[1:])


def _write_sheet(paths: list[str]) -> None:
  from vit_jax.analysis import augmentation_sheet, reconstructions  # after the flags: --help need not wait for jax
  from vit_jax.base import pictures
  values = flags.FLAGS
  if values.operations:
    sheet = pictures.draw(augmentation_sheet.operations(augmentation_sheet.read_photos(paths)))
  elif values.workdir is not None:
    sheet = pictures.draw(reconstructions.rows(values.workdir, values.count, values.step))
  else:
    sheet = pictures.draw(*augmentation_sheet.examples(values.config, values.count, values.draws))
  pictures.save(sheet, values.output)
  print(f'Wrote {values.output}, {sheet.width} × {sheet.height} pixels.')


def _write_health(paths: list[str]) -> None:
  del paths
  from vit_jax.analysis import health
  values = flags.FLAGS
  health.save(health.draw(health.read(values.health)), values.output)
  print(f'Wrote {values.output}.')


if __name__ == '__main__':
  define_flags()
  cli.start(main)
