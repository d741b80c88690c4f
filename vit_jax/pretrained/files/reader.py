"""Opens weight files.

Files are untrusted. What a file declares is checked before it is used: names, dtypes, shapes and sizes against the
bytes that are there. Nothing in a file is ever executed: pickles are read by an interpreter of our own that only builds
data. Every fault is an error that names the file.
"""
from collections.abc import Callable, Iterator
import contextlib
import pathlib

from vit_jax.base.errors import FileError, MissingFileError
from vit_jax.base.files import PathLike, local
from vit_jax.pretrained.files import npz, pickles, safetensors_file, sharded, torch_zip
from vit_jax.pretrained.files.tensors import Tensors


@contextlib.contextmanager
def open_file(path: PathLike) -> Iterator[Tensors]:
  """Open a file of weights as `Tensors`, valid inside the `with` block.

  Args:
    path: an `.npz`, `.safetensors` or PyTorch file, recognized by its first bytes, or the `.index.json` of several.

  Raises:
    FileError: none of these, or damaged.
    MissingFileError: no such file.
  """
  path = local(path)
  if not path.is_file():
    raise MissingFileError(f'{path}: no such file')
  reader = _reader(path)
  with contextlib.ExitStack() as stack:
    try:
      tensors = stack.enter_context(reader(path))
    except MissingFileError as error:
      raise MissingFileError(f'{path}: {error}') from error
    except pickles.NotData as error:
      raise FileError(f'{path}: {error}') from error
    except Exception as error:  # as in `tensors.guarded`
      raise FileError(f'{path}: damaged or not a weight file: {error}') from error
    yield tensors


def _reader(path: pathlib.Path) -> Callable[[pathlib.Path], contextlib.AbstractContextManager[Tensors]]:
  if path.name.endswith(sharded.SUFFIX):
    return lambda path: sharded.open_tensors(path, open_file)
  with open(path, 'rb') as file:
    start = file.read(9)
  if start.startswith(b'PK'):
    return torch_zip.open_tensors if torch_zip.holds_pickle(path) else npz.open_tensors
  if start[8:] == b'{':
    return safetensors_file.open_tensors
  if start[:1] == b'\x80' and start[1:2] in (b'\2', b'\3', b'\4', b'\5'):
    raise FileError(f'{path}: a bare pickle, as PyTorch wrote it before version 1.6: it can run code and is never '
                    f'loaded; if you trust it, convert it: {torch_zip.conversion(path)}')
  raise FileError(f'{path}: expected an .npz, .safetensors or PyTorch file, got first bytes {start!r}; the file may be '
                  'truncated, or an error page saved in its place')
