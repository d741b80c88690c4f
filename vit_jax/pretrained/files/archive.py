"""Zip archives of arrays, opened with limits: what they claim is checked before anything is unpacked."""
from collections.abc import Iterator
import contextlib
import pathlib
import struct
import zipfile

from vit_jax.base.errors import UserError
from vit_jax.pretrained.files import tensors as tensors_lib

# Weights hardly compress, so a file that claims to hold far more than its own size is a zip bomb.
MAX_RATIO, SLACK = 16, 64 << 20
MAX_DIRECTORY = 16 << 20


@contextlib.contextmanager
def open_archive(path: pathlib.Path) -> Iterator[tuple[zipfile.ZipFile, list[zipfile.ZipInfo]]]:
  """Open a zip archive; yield (archive, entries).

  Raises:
    UserError: it is damaged, too large or claims to unpack to far more than its size, or names an entry twice.
  """
  _check_directory(path)
  with zipfile.ZipFile(path) as archive:
    entries = archive.infolist()
    _check_entries(entries, path.stat().st_size)
    yield archive, entries


def _check_directory(path: pathlib.Path) -> None:
  """Refuse a huge table of contents before `zipfile` makes objects of it."""
  with open(path, 'rb') as file:
    file.seek(max(0, path.stat().st_size - (1 << 17)))
    tail = file.read()
  end = tail.rfind(b'PK\5\6')
  if end < 0 or len(tail) < end + 22:
    raise UserError('the end of the zip archive is missing; the file is truncated')
  sizes = [struct.unpack_from('<I', tail, end + 12)[0]]
  if (large := tail.rfind(b'PK\6\6', 0, end)) >= 0 and len(tail) >= large + 48:
    sizes = [struct.unpack_from('<Q', tail, large + 40)[0], *(size for size in sizes if size != 0xFFFFFFFF)]
  if max(sizes) > MAX_DIRECTORY:
    raise UserError(f'its table of contents claims {max(sizes):,} bytes; at most {MAX_DIRECTORY:,} are read')


def _check_entries(entries: list[zipfile.ZipInfo], file_size: int) -> None:
  if not entries:
    raise UserError('it holds no arrays')
  if len(entries) > tensors_lib.MAX_ENTRIES:
    raise UserError(f'it holds {len(entries):,} entries; at most {tensors_lib.MAX_ENTRIES:,} are read')
  total = sum(entry.file_size for entry in entries)
  if total > MAX_RATIO * file_size + SLACK:
    raise UserError(f'it claims to unpack to {total:,} bytes from a file of {file_size:,}')
  if len({entry.filename for entry in entries}) < len(entries):
    raise UserError('two arrays have the same name')
