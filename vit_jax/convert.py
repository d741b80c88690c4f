"""Writes weights in another format: `python -m vit_jax.convert SOURCE DESTINATION --to=timm`.

SOURCE is a file, a directory, a workdir or a name of public weights; DESTINATION is new: an `.npz` file (google,
big_vision), or a directory or `.safetensors` file (huggingface, timm).
"""
from absl import app
from absl import flags

from vit_jax.run import cli as commands


def convert(source, destination, *, to=None, approximate=False, strict=True, average=False, image_size=None):
  """Reads weights and writes them in another format.

  Args:
    source: see `pretrained.load.read`.
    destination: see `pretrained.save.save`.
    to: name of the format.
    approximate: accept another GELU form or LayerNorm epsilon.
    strict: whether missing, unused and non-finite arrays are errors.
    average: of a workdir, the averaged parameters.
    image_size: rows and columns, if the file does not tell.

  Returns:
    Lines that say what was written, assumed, changed and not stored.

  Raises:
    ValueError, OSError: the source cannot be read, the format cannot hold it, or the destination is there already.
  """
  from vit_jax.pretrained import load
  from vit_jax.pretrained import save
  weights = load.read(source, image_size=image_size, strict=strict, average=average)
  written, lines = save.save(weights, destination, to, approximate)
  read = [f'read: {line}' for line in (*weights.notes, *weights.problems)]
  return [*read, *lines, *(f'wrote {path}' for path in written)]


def main(argv):
  """Converts and says what was done."""
  if len(argv) != 3:
    raise app.UsageError(f'expected SOURCE DESTINATION, got {argv[1:]}')
  values = flags.FLAGS
  size = values.image_size and (values.image_size * 2)[:2]
  for line in commands.call(lambda: convert(
      *argv[1:], to=values.to, approximate=values.approximate, strict=values.strict, average=values.average,
      image_size=size)):
    print(line)


if __name__ == '__main__':  # flags are the process's: not on import, as from a test or notebook
  flags.DEFINE_string('to', None, "'google', 'big_vision', 'huggingface' or 'timm'; by default 'google' for a "
                      "DESTINATION that ends in .npz, else 'huggingface'.")
  flags.DEFINE_bool('approximate', False, "Accept that the format's own code uses another GELU form or LayerNorm "
                    'epsilon than the model, so that outputs differ slightly.')
  flags.DEFINE_bool('strict', True, 'Missing, unused and non-finite arrays are errors.')
  flags.DEFINE_bool('average', False, 'Of a workdir, take the moving average of the parameters.')
  flags.DEFINE_multi_integer('image_size', None, 'What the model was trained at, if the file does not tell; twice for '
                             'rows and columns.')
  app.run(main)
