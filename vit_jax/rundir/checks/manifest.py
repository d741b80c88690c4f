"""The files of a checkpoint, with sizes and hashes: which of them a disk has lost or changed.

Orbax does not notice all damage, and says of the rest only that something failed. Local files only: object stores
check what they hold.
"""
import hashlib
import json
import os
import pathlib

from vit_jax.base import files

NAME = 'files.json'


def write(folder: files.PathLike) -> None:
  """Write the manifest of a local folder that is complete, and all its files to the disk, to survive a power loss.

  Files directly in the folder are not listed: Orbax writes the time to one of them later, and reads without them.
  """
  folder = pathlib.Path(folder)
  names = sorted(str(path.relative_to(folder)) for path in folder.glob('*/**/*') if path.is_file())
  (folder / NAME).write_text(json.dumps({name: _describe(folder / name) for name in names}, indent=1))
  for place, _, found in os.walk(folder):
    for path in (*(os.path.join(place, name) for name in found), place):
      files.sync(path)


def problems(folder: files.PathLike) -> list[str]:
  """Return what is wrong with the files of a folder, a line each; nothing if it has no manifest.

  Raises:
    OSError: a file is there and cannot be read.
  """
  folder = pathlib.Path(folder)
  if files.is_remote(folder) or not (folder / NAME).exists():
    return []
  try:
    listed = json.loads((folder / NAME).read_text())
    return [f'{name} {reason}' for name, expected in listed.items() if (reason := _reason(folder / name, expected))]
  except (ValueError, TypeError, AttributeError):
    return [f'{NAME} was changed']


def _reason(path: pathlib.Path, expected: list) -> str | None:
  size, _ = expected
  if not path.exists():
    return 'is missing'
  if path.stat().st_size != size:
    return f'has {path.stat().st_size:,} bytes, not {size:,}'
  return None if _describe(path) == expected else 'was changed'


def _describe(path: pathlib.Path) -> list:
  """Return [size in bytes, SHA-256]."""
  with path.open('rb') as file:
    return [path.stat().st_size, hashlib.file_digest(file, 'sha256').hexdigest()]
