"""Reads and writes `.npz` files: zip archives of `.npy` arrays. Object arrays, which are pickles, are refused."""
from collections.abc import Iterator, Mapping
import contextlib
import os
import pathlib
import zipfile

import ml_dtypes
import numpy as np

from vit_jax.base.errors import UserError
from vit_jax.pretrained.files import tensors as tensors_lib
from vit_jax.pretrained.files.archive import open_archive

BFLOAT16 = np.dtype('V2')  # how NumPy stores it: two bytes without a meaning
_READ_HEADER = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@contextlib.contextmanager
def open_tensors(path: pathlib.Path) -> Iterator[tensors_lib.Tensors]:
  """Open a file as `Tensors`: headers are checked at once, arrays are read on demand."""
  with open_archive(path) as (archive, entries):
    for entry in entries:
      _check_entry(entry)
    members = {entry.filename.removesuffix('.npy'): entry for entry in entries}
    headers = {name: _checked_header(archive, name, entry) for name, entry in members.items()}
    fetch = lambda name: tensors_lib.guarded(path, name, lambda: _read(archive, members[name]))
    shapes = {name: shape for name, (shape, _) in headers.items()}
    dtypes = {name: 'bfloat16' if dtype == BFLOAT16 else dtype.name for name, (_, dtype) in headers.items()}
    yield tensors_lib.Tensors(path, shapes, dtypes, fetch)


def write(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
  """Write {name: array}, one array at a time, uncompressed like `np.savez`."""
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED) as archive:
    for name, array in arrays.items():
      # ZipInfo has a fixed date: the same weights give the same bytes.
      with archive.open(zipfile.ZipInfo(name + '.npy'), 'w', force_zip64=True) as file:
        array = np.ascontiguousarray(array)
        array = array.view(BFLOAT16) if array.dtype == ml_dtypes.bfloat16 else array
        np.lib.format.write_array(file, array, allow_pickle=False)


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
  with archive.open(entry) as file:
    array = np.lib.format.read_array(file, allow_pickle=False)
    file.read(1)  # reaching the end checks the CRC
  return array


def _check_entry(entry: zipfile.ZipInfo) -> None:
  if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or entry.flag_bits & 1:
    raise UserError(f'{entry.filename} is encrypted or compressed in a way NumPy does not write')
  if not entry.filename.endswith('.npy'):
    raise UserError(f'{entry.filename} is not an array; expected names that end in .npy')


def _checked_header(archive: zipfile.ZipFile, name: str,
                    entry: zipfile.ZipInfo) -> tuple[tensors_lib.Shape, np.dtype]:
  with archive.open(entry) as file:
    version = np.lib.format.read_magic(file)
    read_header = _READ_HEADER.get(version)
    if read_header is None:
      raise UserError(f'{name} has .npy format version {version}; expected 1.0 or 2.0')
    shape, _, dtype = read_header(file, max_header_size=10_000)
    start = file.tell()
  if dtype.hasobject:
    raise UserError(f'{name} holds Python objects, which are a pickle: it can run code and is never loaded')
  if len(shape) > tensors_lib.MAX_RANK or any(not 0 <= n < 1 << 48 for n in shape):
    raise UserError(f'{name} has the impossible shape {shape}')
  if start + tensors_lib.count(shape) * dtype.itemsize != entry.file_size:
    raise UserError(f'{name} declares {dtype} of shape {shape}, which does not match its {entry.file_size:,} bytes')
  return tuple(shape), dtype
