"""Draw a position grid before and after it is resized for fine-tuning: `python -m experiments.position_resize`.

Each tile is the cosine similarity of one position with all others (paper, figure 7, center). After the resize a
position must still be most similar to its neighbors, on the finer grid.
"""
from collections.abc import Sequence

from absl import app, flags

from vit_jax.run import cli

NEW = (24, 24)


def define_flags() -> None:
  """Define the flags of this command."""
  flags.DEFINE_string('model', None, 'Weights with learned positions; by default sines and cosines on 14×14.')
  flags.DEFINE_string('output', 'docs/position_resize.png', 'Where to write the picture.')


def main(argv: Sequence[str]) -> None:
  """Draw, and print where."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  from vit_jax.analysis import position_similarity  # after the flags: --help need not wait for jax
  values = flags.FLAGS
  grid = cli.call(position_similarity.read_grid, values.model)
  position_similarity.draw_resizes(grid, NEW, values.output)
  print(f'wrote {values.output}')


if __name__ == '__main__':
  define_flags()
  app.run(main)
