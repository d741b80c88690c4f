"""Reads weights in one format and writes them in another."""
from vit_jax.base.files import PathLike
from vit_jax.pretrained.formats.base import ImageSize
from vit_jax.pretrained.load import read
from vit_jax.pretrained.save import save


def convert(source: PathLike, destination: PathLike, *, format: str | None = None, approximate: bool = False,
            strict: bool = True, ema: bool = False, image_size: ImageSize = None, dtype: str | None = None) -> list[str]:
  """Read weights and write them in another format.

  Args:
    source: see `load.read`.
    destination: see `save.save`.
    format: a name of `registry.FORMATS`; None: 'google' for an `.npz` file, else 'huggingface'.
    approximate: whether to accept another GELU form or LayerNorm epsilon.
    strict: whether missing, unused and non-finite arrays are errors.
    ema: for a run directory: whether to take the exponential moving average of the parameters.
    image_size: (rows, columns) in pixels, for files that do not say it.
    dtype: of the arrays written, see `save.save`; None: as in the source.

  Returns:
    Messages about what was assumed, changed, not stored and written.

  Raises:
    UserError: the source cannot be read, or the format cannot hold the model.
    FileError: nothing to read, or the destination exists already.
  """
  weights = read(source, image_size=image_size, strict=strict, ema=ema)
  paths, lines = save(weights, destination, format, approximate, dtype)
  read_lines = [f'read: {line}' for line in (*weights.notes, *weights.problems)]
  return [*read_lines, *lines, *(f'wrote {path}' for path in paths)]
