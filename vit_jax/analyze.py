"""Draw what a model has learned: `python -m vit_jax.analyze --model=runs/flowers --images=flowers --output=analysis`.

The model is a run directory, a file or a name that `vit_jax.load` takes. With --model2 another one is drawn beside it,
and the layers of both are compared. Images are prepared as in the evaluation of the models; class folders are the
classes of the linear probe.

Writes a picture per figure, the numbers (numbers.npz, numbers.csv), and index.html, one page that has all pictures in
it. What does not apply to a model is said there. Images that cannot be read are named on standard error, the others are
still used, and the exit status is 1.
"""
import sys
from typing import Any

from absl import flags

from vit_jax.base.text import printable
from vit_jax.run import cli

# As in vit_jax.analysis.report.figures, which takes seconds to import.
FIGURES = ('filters', 'positions', 'distance', 'entropy', 'rollout', 'norms', 'cka', 'probe')


def run(source: str, images: str, output: str, *, source2: str | None = None, figures: tuple[str, ...] = FIGURES,
        count: int = 128, batch_size: int = 16, **options: Any) -> int:
  """Analyze a model, or two, and print what was written.

  Args:
    source: of the model, see `vit_jax.load`.
    images: folder with images, which is searched through.
    output: folder to write; it must be new, empty, or written by this command.
    source2: of a second model; None: none.
    figures: some of FIGURES.
    count: number of images, evenly spread over the folder.
    batch_size: images that a model sees at once.
    **options: of `vit_jax.load`, for both models.

  Returns:
    How many images could not be read.

  Raises:
    UserError: no images, a bad number, an unknown figure, a folder in the way, or a bad model.
  """
  from vit_jax.analysis import inputs
  from vit_jax.analysis.report import folder
  folder.check(figures, batch_size, output)
  paths = inputs.choose_images(images, count)
  cli.set_up_compiler()
  from vit_jax.pretrained import load
  sources = [source] if source2 is None else [source, source2]
  names = sources if len(set(sources)) == len(sources) else [source, f'{source} (2)']
  models = {name: load.load(given, **options) for name, given in zip(names, sources, strict=True)}
  print(f'{len(paths):,} images of {images}, {batch_size} at a time', flush=True)
  unreadable = folder.analyze(models, paths, figures, output, batch_size)
  for path, reason in unreadable.items():
    print(printable(f'error: {path}: {reason}'), file=sys.stderr)
  print(f'Wrote {output}; open {output}/{folder.PAGE} in a browser.')
  return len(unreadable)


def define_flags() -> None:
  """Define the flags of this command."""
  flags.DEFINE_string('model', None, 'Run directory, file or name of a model.', required=True)
  flags.DEFINE_string('model2', None, 'A second model, drawn beside the first and compared with it.')
  flags.DEFINE_string('images', None, 'Folder with images, and folders of images.', required=True)
  flags.DEFINE_string('output', None, 'Folder to write; new, or written by this command.', required=True)
  flags.DEFINE_list('figures', list(FIGURES), 'Figures to draw, separated by commas.')
  flags.DEFINE_integer('count', 128, 'Number of images, evenly spread over the folder.')
  flags.DEFINE_integer('batch_size', 16, 'Images that a model sees at once.')
  flags.DEFINE_bool('ema', False, 'For run directories and checkpoints with an EMA: use the EMA.')
  flags.DEFINE_multi_integer('trained_at', None, 'Image size that the models were trained at, for files that do not '
                             'say it; twice for rows and columns.')


def main(argv: list[str]) -> int:
  """Analyze and return the exit status: 1 if an image could not be read."""
  values = flags.FLAGS
  cli.no_arguments(argv, '--model=runs/digits --images=photos --output=analysis')
  unreadable = cli.call(lambda: run(
      values.model, values.images, values.output, source2=values.model2, figures=tuple(values.figures),
      count=values.count, batch_size=values.batch_size, ema=values.ema, trained_at=cli.pair(values.trained_at)))
  return 1 if unreadable else 0


if __name__ == '__main__':
  define_flags()
  cli.start(main)
