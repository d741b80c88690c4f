"""Opens weight files.

Files are untrusted. What a file declares is checked before it is used: names, dtypes, shapes and sizes against the
bytes that are there. Nothing in a file is ever executed (no pickle), and every fault is an error that names the file.
"""
from collections.abc import Iterator
import contextlib
import pathlib

from vit_jax.base.errors import FileError, MissingFileError
from vit_jax.base.files import PathLike, local
from vit_jax.pretrained.files import npz, safetensors_file
from vit_jax.pretrained.files.tensors import Tensors


@contextlib.contextmanager
def open_file(path: PathLike) -> Iterator[Tensors]:
  """Open an `.npz` or `.safetensors` file, recognized by its first bytes, as `Tensors` valid inside the `with` block.

  Raises:
    FileError: neither of the two, or damaged.
    MissingFileError: no such file.
  """
  path = local(path)
  if not path.is_file():
    raise MissingFileError(f'{path}: no such file')
  with open(path, 'rb') as file:
    start = file.read(9)
  if start.startswith(b'PK'):
    reader = npz
  elif start[8:] == b'{':
    reader = safetensors_file
  else:
    raise FileError(f'{path}: expected an .npz or .safetensors file, got first bytes {start!r}; {_hint(path)}')
  with contextlib.ExitStack() as stack:
    try:
      tensors = stack.enter_context(reader.open_tensors(path))
    except Exception as error:  # as in `tensors.guarded`
      raise FileError(f'{path}: damaged or not a weight file: {error}') from error
    yield tensors


def _hint(path: pathlib.Path) -> str:
  if path.suffix in ('.bin', '.pt', '.pth', '.pkl', '.ckpt'):
    return 'pickles can run code and are never loaded: use the model.safetensors of the same model'
  return 'the file may be truncated, or an error page saved in its place'
