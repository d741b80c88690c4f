"""What training changes in a model: `python -m experiments.trained_beside_untrained --output=runs/comparison`.

Trains a small Vision Transformer of 4×4 patches on the digits for 20 epochs, and beside it the same model for one step
at a learning rate of almost zero. Then draws the attention distance, entropy and rollout of both, with the other
figures of `vit_jax.analyze`, on images of the test split.
"""
from collections.abc import Sequence
import pathlib

from absl import app, flags
import numpy as np
from PIL import Image

from vit_jax.run import cli

TRAINED = {'model.patch_size': 2, 'train.duration': '20 epochs'}
UNTRAINED = TRAINED | {'train.duration': '1 steps', 'optim.warmup': '0 steps', 'optim.peak_lr': 1e-9}
COUNT = 300


def define_flags() -> None:
  """Define the flags of this command."""
  flags.DEFINE_string('output', None, 'Folder for both runs, the images and the analysis.', required=True)


def run(output: str) -> None:
  """Train twice, write the images into class folders, and analyze."""
  import vit_jax  # after the flags: --help need not wait for jax
  from vit_jax import analyze
  folder = pathlib.Path(output)
  for name, changes in dict(trained=TRAINED, untrained=UNTRAINED).items():
    vit_jax.train.run(vit_jax.recipe('digits', **changes), str(folder / name))
  write_images(folder / 'images')
  analyze.run(str(folder / 'trained'), str(folder / 'images'), str(folder / 'analysis'),
              source2=str(folder / 'untrained'), count=COUNT)


def write_images(folder: pathlib.Path) -> None:
  """Write the test split of the digits, a folder per class."""
  from vit_jax.data.images import decode
  from vit_jax.data.sources import registry
  source = registry.open_source('digits', 'test')
  for index in range(len(source)):
    record = source[index]
    path = folder / source.class_names[record['label']] / f'{index}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(decode.decode(record['image'], 1))[..., 0]).save(path)


def main(argv: Sequence[str]) -> None:
  """Run the experiment."""
  cli.no_arguments(list(argv), '--output=runs/comparison')
  cli.call(run, flags.FLAGS.output)


if __name__ == '__main__':
  define_flags()
  app.run(main)
