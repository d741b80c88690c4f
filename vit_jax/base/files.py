"""Paths that users give, and files that are written whole or not at all."""
from collections.abc import Iterator
import contextlib
import json
import os
import pathlib
import shutil
from typing import Any

from etils import epath

from vit_jax.base.errors import FileError

PathLike = str | os.PathLike[str]


def is_remote(path: PathLike) -> bool:
  """Return whether a path is on an object store, such as gs://bucket/run."""
  return '://' in os.fspath(path)


def expand(path: PathLike) -> epath.Path:
  """Return a user's path as an absolute one: `~` and relative paths are resolved, remote paths stay as they are."""
  if is_remote(path):
    return epath.Path(path)
  return epath.Path(os.path.abspath(os.path.expanduser(os.fspath(path))))


@contextlib.contextmanager
def replacing(path: PathLike, what: str = 'the file') -> Iterator[epath.Path]:
  """Yield a temporary path beside `path` and rename it to `path` if the block ends without an error.

  Readers see the old file or the new one, never half of it; on an error the old file stays. Missing folders are made.

  Args:
    path: local or remote file.
    what: what the file is, for the error.

  Raises:
    FileError: the file cannot be written.
  """
  target = epath.Path(path)
  # The suffix stays at the end: writers choose the format by it.
  aside = target.with_name(f'.{os.getpid()}.{target.name}')
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    yield aside
    sync(aside)
    aside.replace(target)
    sync(target.parent)
  except OSError as error:
    with contextlib.suppress(OSError):
      aside.unlink(missing_ok=True)
    if isinstance(error, FileError):
      raise
    raise FileError(f'{path}: cannot write {what}: {error}; choose another place or make room') from error
  except BaseException:
    with contextlib.suppress(OSError):
      aside.unlink(missing_ok=True)
    raise


@contextlib.contextmanager
def new_folder(path: PathLike, what: str = 'the folder') -> Iterator[pathlib.Path]:
  """Yield a temporary folder beside `path`, a local folder still to be made; rename it to `path` if the block succeeds.

  Args:
    path: must not exist. Missing parents are made.
    what: what the folder is, for the error.

  Raises:
    FileError: the folder cannot be written.
  """
  target = local(path)
  aside = target.with_name(f'.{os.getpid()}.{target.name}')
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    aside.mkdir()
    yield aside
    aside.rename(target)
  except FileError:
    raise
  except OSError as error:
    raise FileError(f'{path}: cannot write {what}: {error}; choose another place or make room') from error
  finally:
    shutil.rmtree(aside, ignore_errors=True)


def sync(path: PathLike) -> None:
  """Write a local file or folder to the disk, so that it survives a power loss; does nothing for a remote one."""
  if is_remote(path):
    return
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def write(path: PathLike, content: str | bytes, what: str = 'the file') -> None:
  """Write a whole file or leave the old one as it was; arguments and errors as of `replacing`."""
  with replacing(path, what) as aside:
    if isinstance(content, bytes):
      aside.write_bytes(content)
    else:
      aside.write_text(content)


def read_json(path: PathLike, limit: int = 16 << 20) -> Any:
  """Return the value in a JSON file.

  Args:
    path: local or remote file.
    limit: bytes that it may have.

  Raises:
    OSError: it cannot be read.
    ValueError: it has more bytes, is not JSON, or nests it too deeply.
  """
  file = epath.Path(path)
  if file.stat().length > limit:
    raise ValueError(f'it has {file.stat().length:,} bytes; at most {limit:,} are read')
  try:
    return json.loads(file.read_text())
  except RecursionError as error:
    raise ValueError('it nests values too deeply') from error


def local(path: PathLike) -> pathlib.Path:
  """Return `expand(path)` as a local path; for files that libraries open themselves."""
  return pathlib.Path(os.fspath(expand(path)))
