"""Describe a file of weights or a run: `python -m vit_jax.describe SOURCE`.

With --num_classes, --image_size, --patch_size or --channels it also says what a fine-tune with those would change.
"""
from collections.abc import Sequence
import json

from absl import app, flags

from vit_jax.base.text import printable
from vit_jax.run import cli


def define_flags() -> None:
  """Define the flags of this command."""
  flags.DEFINE_multi_integer('image_size', None, 'Pixels; twice for rows and columns.')
  flags.DEFINE_multi_integer('patch_size', None, 'Pixels; twice for rows and columns.')
  flags.DEFINE_integer('channels', None, 'Channels of the images to fine-tune on.')
  flags.DEFINE_integer('num_classes', None, 'Classes of the data to fine-tune on.')
  cli.define_source_flags()
  flags.DEFINE_bool('ema', False, 'For a run directory or a checkpoint with an EMA: take the EMA.')
  flags.DEFINE_bool('json', False, 'Print one JSON object.')


def main(argv: Sequence[str]) -> None:
  """Read, describe and print."""
  if len(argv) != 2:
    raise app.UsageError(f'expected one SOURCE, got {argv[1:]}')
  from vit_jax.pretrained.adapt import Adaptation  # after the flags: --help need not wait for jax
  from vit_jax.pretrained.describe import describe
  values = flags.FLAGS
  adaptation = Adaptation(image_size=cli.pair(values.image_size), patch_size=cli.pair(values.patch_size),
                          channels=values.channels, num_classes=values.num_classes)
  description = cli.call(lambda: describe(argv[1], ema=values.ema, adaptation=adaptation, **cli.source_options()))
  print(json.dumps(description.to_json(), indent=2) if values.json else printable(description.to_text()))


if __name__ == '__main__':
  define_flags()
  cli.start(main)
