"""Files that only grow, local or on an object store."""
import os

from etils import epath

from vit_jax.base import files


class Appender:
  """A file to append to.

  Local files get each write at once, by one system call, so that a kill loses nothing. Object stores cannot append: the
  content is kept in memory, and the object is written again by `sync`.

  Args:
    path: of the file; its folder exists. What is there already stays.

  Raises:
    OSError: it cannot be opened, or is a symbolic link.
  """

  def __init__(self, path: epath.Path):
    self._path, self._file, self._content = path, None, b''
    if files.is_remote(path):
      self._content = path.read_bytes() if path.exists() else b''
    else:
      self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)

  def fileno(self) -> int | None:
    """Return the descriptor of a local file."""
    return self._file

  def write(self, content: bytes) -> None:
    """Append to the file.

    Raises:
      OSError: it cannot be written, or not completely.
    """
    if self._file is None:
      self._content += content
    elif (written := os.write(self._file, content)) < len(content):
      os.write(self._file, content[written:])  # raises what has stopped the first write

  def sync(self) -> None:
    """Make sure that a power loss does not lose what was written.

    Raises:
      OSError: it cannot be written.
    """
    if self._file is None:
      files.write(self._path, self._content)
    else:
      os.fsync(self._file)

  def close(self) -> None:
    """Close the file; object stores need `sync` before."""
    if self._file is not None:
      os.close(self._file)
      self._file = None
