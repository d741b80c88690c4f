"""Classify images: `python -m vit_jax.predict --model=runs/flowers photo.jpg photos/`.

The model is a run directory, a file or a name that `vit_jax.load` takes; images are prepared as in its evaluation.
Folders are searched for images, except links to folders. Prints a table, with --json one object per line, or --csv.
Images that cannot be read are named on standard error, the others are still predicted, and the exit status is 1.
"""
from collections.abc import Sequence
from typing import Any

from absl import app, flags

from vit_jax.base.errors import UserError
from vit_jax.run import cli


def run(source: str, arguments: Sequence[str], *, form: str = 'table', top: int = 5, batch_size: int = 32,
        loss: str | None = None, ema: bool = False, step: int | None = None, **options: Any) -> int:
  """Predict and print to standard output.

  Args:
    source: of the model, see `vit_jax.load`.
    arguments: images, and folders to search for images.
    form: a name of `inference.report.FORMS`.
    top: how many classes per image to print.
    batch_size: images that the model sees at once.
    loss: 'softmax' or 'sigmoid'; None is what the model was trained with, softmax if it does not say.
    ema: for a run directory: whether to use the EMA of the parameters.
    step: for a run directory: which checkpoint; None is the latest.
    **options: trained_at, class_names and preprocessing, see `vit_jax.load`.

  Returns:
    How many images could not be read.

  Raises:
    UserError: nothing to predict, a folder without images, a number that is not positive, or a bad model.
  """
  from vit_jax.inference import images as images_lib
  for name, value in dict(top=top, batch_size=batch_size).items():
    if value < 1:
      raise UserError(f'--{name}: must be at least 1, got {value}')
  images = [image for argument in arguments for image in images_lib.find_images(argument)]
  if not images:
    raise UserError('arguments: name at least one image or folder: '
                    'python -m vit_jax.predict --model=MODEL photo.jpg photos/')
  cli.set_up_compiler()  # after the cheap checks: jax takes seconds
  from vit_jax.inference import predict, report
  from vit_jax.pretrained import load
  model = load.load(source, ema=ema, step=step, **options)
  if model.num_classes is None:
    raise UserError(f'--model: {source} has no head, so it predicts no classes. Train one on its features: '
                    f'python -m vit_jax.probe --model={source} --config.data.name=folder:PATH --output=DIR')
  names = model.class_names or [str(label) for label in range(model.num_classes or 0)]
  return report.print_predictions(predict.stream(model, images, batch_size, loss), images, names, form, top)


def define_flags() -> None:
  """Define the flags of this command."""
  flags.DEFINE_string('model', None, 'Run directory, file or name of a model.', required=True)
  flags.DEFINE_integer('top', 5, 'How many classes per image to print.')
  flags.DEFINE_integer('batch_size', 32, 'Images that the model sees at once.')
  flags.DEFINE_enum('loss', None, ['softmax', 'sigmoid'], 'What the model was trained with; by default it says so.')
  flags.DEFINE_bool('ema', False, 'For a run directory or a checkpoint with an EMA: use the EMA.')
  flags.DEFINE_integer('step', None, 'For a run directory: which checkpoint; the latest by default.')
  cli.define_source_flags()
  flags.DEFINE_string('transform', None, "How images are prepared, such as 'resize_small(256)|central_crop'; the model "
                      'says it by default.')
  flags.DEFINE_multi_float('mean', None, 'Subtracted from pixels scaled to 0..1; once, or once per channel.')
  flags.DEFINE_multi_float('std', None, 'Divided by after that; once, or once per channel.')
  flags.DEFINE_bool('json', False, 'Print one JSON object per line.')
  flags.DEFINE_bool('csv', False, 'Print comma-separated values.')


def _preprocessing() -> dict[str, Any]:
  """Return what the flags say about how images are prepared."""
  values = flags.FLAGS
  statistics = {name: numbers for name, numbers in dict(mean=values.mean, std=values.std).items() if numbers}
  given = {name: numbers[0] if len(numbers) == 1 else tuple(numbers) for name, numbers in statistics.items()}
  return dict(given, transform=values.transform) if values.transform else given


def main(argv: Sequence[str]) -> int:
  """Predict and return the exit status: 1 if an image could not be read."""
  values = flags.FLAGS
  if values.json and values.csv:
    raise app.UsageError('choose one of --json and --csv')
  form = 'json' if values.json else 'csv' if values.csv else 'table'
  unreadable = cli.call(lambda: run(
      values.model, argv[1:], form=form, top=values.top, batch_size=values.batch_size, loss=values.loss,
      ema=values.ema, step=values.step, preprocessing=_preprocessing(), **cli.source_options()))
  return 1 if unreadable else 0


if __name__ == '__main__':
  define_flags()
  cli.start(main)
