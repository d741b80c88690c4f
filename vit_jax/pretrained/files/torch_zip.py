"""Reads PyTorch's files since 1.6: a zip archive of a pickle that describes tensors, and their bytes.

The pickle is read by `pickles`, which only builds data; the bytes of a tensor are read on demand.
"""
from collections.abc import Iterator, Mapping
import contextlib
import pathlib
from typing import Any
import zipfile

import numpy as np

from vit_jax.base.errors import UserError
from vit_jax.pretrained.files import pickles
from vit_jax.pretrained.files import tensors as tensors_lib
from vit_jax.pretrained.files.archive import MAX_RATIO, SLACK, open_archive

_PICKLE = 'data.pkl'
_CHUNK = 1 << 20


def holds_pickle(path: pathlib.Path) -> bool:
  """Return whether a zip archive is a PyTorch file; False if it is damaged."""
  try:
    with open_archive(path) as (_, entries):
      return any(_is_pickle(entry) for entry in entries)
  except Exception:  # a dozen types for random bytes; the reader that opens the file next explains them
    return False


def conversion(path: pathlib.Path) -> str:
  """Return a command that writes the state dict of a PyTorch file as safetensors; it runs what the pickle says."""
  return (f"python -c \"import torch, safetensors.torch as s; d = torch.load('{path}', map_location='cpu', "
          "weights_only=False); d = d.get('state_dict', d.get('model', d)); s.save_file({k: v.contiguous().clone() "
          "for k, v in d.items() if torch.is_tensor(v)}, 'model.safetensors')\"")


@contextlib.contextmanager
def open_tensors(path: pathlib.Path) -> Iterator[tensors_lib.Tensors]:
  """Open a file as `Tensors`: the pickle is read at once, arrays are read on demand."""
  with open_archive(path) as (archive, entries):
    members = {entry.filename: entry for entry in entries}
    root = _root(entries)
    try:
      tensors = pickles.tensors_of(_content(archive, members[f'{root}{_PICKLE}']))
    except UserError as error:
      raise type(error)(f'{error}; if you trust the file, convert it: {conversion(path)}') from error
    _check_byte_order(archive, members.get(f'{root}byteorder'))
    if not tensors or len(tensors) > tensors_lib.MAX_ENTRIES:
      raise UserError(f'it holds {len(tensors):,} tensors; expected 1 to {tensors_lib.MAX_ENTRIES:,}')
    shapes = {name: _checked_shape(name, tensor, root, members) for name, tensor in tensors.items()}
    dtypes = {name: tensor.storage.dtype for name, tensor in tensors.items()}
    total = sum(tensors_lib.count(shape) * np.dtype(dtypes[name]).itemsize for name, shape in shapes.items())
    if total > MAX_RATIO * path.stat().st_size + SLACK:
      raise UserError(f'its tensors share their bytes: {total:,} from a file of {path.stat().st_size:,}')
    read = lambda name: _read(archive, members[f'{root}data/{tensors[name].storage.key}'], tensors[name])
    yield tensors_lib.Tensors(path, shapes, dtypes, lambda name: tensors_lib.guarded(path, name, lambda: read(name)))


def _is_pickle(entry: zipfile.ZipInfo) -> bool:
  return entry.filename == _PICKLE or entry.filename.endswith(f'/{_PICKLE}')


def _root(entries: list[zipfile.ZipInfo]) -> str:
  """Return the folder of the archive that everything is in, with its slash."""
  roots = [entry.filename.removesuffix(_PICKLE) for entry in entries if _is_pickle(entry)]
  if len(roots) != 1 or roots[0].count('/') > 1:
    raise UserError(f'it holds {len(roots)} files {_PICKLE}; expected one, as torch.save writes it')
  if any(entry.filename in (f'{roots[0]}constants.pkl', f'{roots[0]}version.txt')
         or entry.filename.startswith(f'{roots[0]}code/') for entry in entries):
    raise UserError('it is a TorchScript program, not a state dict: save model.state_dict() instead')
  return roots[0]


def _content(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
  if entry.file_size > pickles.MAX_PICKLE:
    raise UserError(f'its pickle has {entry.file_size:,} bytes; at most {pickles.MAX_PICKLE:,} are read')
  _check_stored(entry)
  with archive.open(entry) as file:
    return file.read()


def _check_stored(entry: zipfile.ZipInfo) -> None:
  if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or entry.compress_size != entry.file_size:
    raise UserError(f'{entry.filename} is compressed or encrypted, which torch.save does not do')


def _check_byte_order(archive: zipfile.ZipFile, entry: zipfile.ZipInfo | None) -> None:
  """Refuse a file of a big-endian machine; a file without a statement is little-endian."""
  if entry is not None and (entry.file_size > 10 or _content(archive, entry) != b'little'):
    raise UserError('its byte order is not little-endian: save it again on an ordinary machine')


def _checked_shape(name: str, tensor: pickles.Tensor, root: str,
                   members: Mapping[str, zipfile.ZipInfo]) -> tensors_lib.Shape:
  """Return the shape of a tensor, having checked that it is inside its storage and its storage inside the archive."""
  name, storage = name[:200], tensor.storage
  entry = members.get(f'{root}data/{storage.key}')
  if entry is None:
    raise UserError(f'the storage {storage.key[:80]!r} of {name} is not in the file')
  _check_stored(entry)
  if storage.elements < 0 or storage.elements * np.dtype(storage.dtype).itemsize != entry.file_size:
    raise UserError(f'the storage of {name} claims {storage.elements} elements of {storage.dtype}, which does not '
                    f'match its {entry.file_size:,} bytes')
  shape, strides, offset = tensor.shape, tensor.strides, tensor.offset
  if not all(map(_are_naturals, (shape, strides, (offset,)))) or len(shape) != len(strides):
    raise UserError(f'{name} has an impossible shape, stride or offset')
  # Fewer elements in the storage than in the tensor: it repeats some, which no parameter does.
  if tensors_lib.count(shape) > storage.elements or offset + _span(shape, strides) > storage.elements:
    raise UserError(f'{name} of shape {shape} is larger than its storage of {storage.elements:,} elements')
  return shape


def _are_naturals(values: Any) -> bool:
  return (isinstance(values, tuple) and len(values) <= tensors_lib.MAX_RANK
          and all(type(n) is int and 0 <= n < 1 << 48 for n in values))


def _span(shape: tensors_lib.Shape, strides: tensors_lib.Shape) -> int:
  """Return the number of elements from the first to the last of a tensor."""
  if 0 in shape:
    return 0
  return 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, tensor: pickles.Tensor) -> np.ndarray:
  dtype = np.dtype(tensor.storage.dtype)
  content = bytearray(_span(tensor.shape, tensor.strides) * dtype.itemsize)
  with archive.open(entry) as file:
    if tensor.offset:  # after a seek the CRC is not checked
      file.seek(tensor.offset * dtype.itemsize)
    done = 0
    while done < len(content):
      if not (chunk := file.read(min(_CHUNK, len(content) - done))):
        raise UserError('its storage ends too early')
      content[done:done + len(chunk)] = chunk
      done += len(chunk)
    file.read(1)  # reaching the end checks the CRC
  elements = np.frombuffer(content, dtype)
  strides = tuple(stride * dtype.itemsize for stride in tensor.strides)
  array = np.lib.stride_tricks.as_strided(elements, tensor.shape, strides)
  return np.ascontiguousarray(array).reshape(tensor.shape)
