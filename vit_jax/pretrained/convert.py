"""Reads weights in one format and writes them in another."""
from collections.abc import Sequence

from vit_jax.base.files import PathLike
from vit_jax.pretrained.adapt import Adaptation, adapt
from vit_jax.pretrained.formats.base import ImageSize
from vit_jax.pretrained.load import read
from vit_jax.pretrained.save import save


def convert(source: PathLike, destination: PathLike, *, format: str | None = None, approximate: bool = False,
            strict: bool = True, ema: bool = False, trained_at: ImageSize = None, image_size: ImageSize = None,
            class_names: Sequence[str] | None = None, dtype: str | None = None) -> list[str]:
  """Read weights and write them in another format.

  Args:
    source: see `load.read`.
    destination: see `save.save`.
    format: a name of `registry.FORMATS`; None: 'google' for an `.npz` file, else 'huggingface'.
    approximate: whether to accept another GELU form or LayerNorm epsilon.
    strict: whether missing, unused and non-finite arrays are errors.
    ema: for a run directory, or a checkpoint that has one: whether to take the EMA of the parameters.
    trained_at: image size that the model was trained at, (rows, columns) in pixels, for files that do not say it.
    image_size: image size to convert to; another number of patches resizes the position embedding.
    class_names: one name per logit; None: those that come with the weights.
    dtype: of the arrays written, see `save.save`; None: as in the source.

  Returns:
    Messages about what was assumed, changed, not stored and written.

  Raises:
    UserError: the source cannot be read, or the format cannot hold the model.
    FileError: nothing to read, or the destination exists already.
  """
  weights = read(source, trained_at=trained_at, image_size=image_size, class_names=class_names, strict=strict, ema=ema)
  weights, changes = adapt(weights, Adaptation(image_size=image_size))
  paths, lines = save(weights, destination, format, approximate, dtype)
  read_lines = [f'read: {line}' for line in (*weights.notes, *weights.problems)]
  return [*read_lines, *changes, *lines, *(f'wrote {path}' for path in paths)]
