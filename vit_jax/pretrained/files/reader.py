"""Opens files of weights.

A file comes from a stranger.  What it declares is checked before it is believed: names, types, shapes and sizes against
the bytes that are there.  Nothing in it is ever executed (no pickle); every fault is a ValueError that names the file.
"""
import contextlib
import pathlib

from vit_jax.pretrained.files import npz
from vit_jax.pretrained.files import safetensors_file


@contextlib.contextmanager
def open_file(path):
  """Opens an `.npz` or `.safetensors` file, told by its first bytes, as `Tensors` that live in the `with` block.

  Raises:
    ValueError: neither of them, or damaged.
    FileNotFoundError: no such file.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f'no such file: {path}')
  with open(path, 'rb') as file:
    start = file.read(9)
  kind = npz if start.startswith(b'PK') else safetensors_file if start[8:] == b'{' else None
  if kind is None:
    raise ValueError(f'{path}: neither an .npz nor a .safetensors file (first bytes {start!r}); {_foreign(path)}')
  with contextlib.ExitStack() as stack:
    try:
      tensors = stack.enter_context(kind.opened(path))
    except Exception as error:  # as in `tensors.guarded`
      raise ValueError(f'{path}: damaged or not a weights file: {error}') from error
    yield tensors


def _foreign(path):
  if path.suffix in ('.bin', '.pt', '.pth', '.pkl', '.ckpt'):
    return 'pickles can run code and are never loaded: take the model.safetensors of the same model'
  return 'the file may be truncated or an error page that was saved in its place'
