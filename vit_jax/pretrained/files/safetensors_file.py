"""Reads `.safetensors` files: eight bytes of header length, a JSON header, then the raw arrays without gaps.

The header is checked here, as strictly as the format's specification words it, before the library sees the file.
"""
from collections.abc import Iterator
import contextlib
import json
import pathlib
import struct
from typing import Any, NoReturn, TypeGuard

import numpy as np
import safetensors

from vit_jax.base.errors import UserError
from vit_jax.pretrained.files import tensors as tensors_lib

MAX_HEADER = 16 << 20
# Only float arrays are read; arrays of the others may be in a file, unused.
DTYPES = dict(F64='float64', F32='float32', F16='float16', BF16='bfloat16', I64='int64', I32='int32', I16='int16',
              I8='int8', U64='uint64', U32='uint32', U16='uint16', U8='uint8', BOOL='bool')


@contextlib.contextmanager
def open_tensors(path: pathlib.Path) -> Iterator[tensors_lib.Tensors]:
  """Open a file as `Tensors`: the header is checked at once, arrays are copied out on demand."""
  fetch = lambda name: tensors_lib.guarded(path, name, lambda: _read(path, name))
  header = _checked_header(path)
  shapes = {name: tuple(entry['shape']) for name, entry in header.items()}
  yield tensors_lib.Tensors(path, shapes, {name: DTYPES[entry['dtype']] for name, entry in header.items()}, fetch)


def _read(path: pathlib.Path, name: str) -> np.ndarray:
  # Opened for each array: the pages of a memory map that stays open count as ours, a second copy of the model.
  with safetensors.safe_open(path, framework='numpy') as file:
    return file.get_tensor(name)


def _checked_header(path: pathlib.Path) -> dict[str, Any]:
  """Return {name: {dtype, shape, data_offsets}} of a file whose header agrees with the file's size."""
  size = path.stat().st_size
  with open(path, 'rb') as file:
    length = struct.unpack('<Q', file.read(8))[0]
    if not 2 <= length <= min(size - 8, MAX_HEADER):
      raise UserError(f'its header claims {length:,} bytes in a file of {size:,} (at most {MAX_HEADER:,} are read)')
    text = file.read(length)
  header = json.loads(text.decode('utf-8'), object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
  header.pop('__metadata__', None)
  if not header or len(header) > tensors_lib.MAX_ENTRIES:
    raise UserError(f'it holds {len(header):,} arrays; expected 1 to {tensors_lib.MAX_ENTRIES:,}')
  position = 0
  for begin, end, name in sorted(_checked_span(name, entry) for name, entry in header.items()):
    if begin != position:
      raise UserError(f'{name} begins at byte {begin} of the data; expected {position} (an overlap or a gap)')
    position = end
  if position != size - 8 - length:
    raise UserError(f'its arrays take {position:,} bytes but the file has {size - 8 - length:,}; is it truncated?')
  return header


def _checked_span(name: str, entry: Any) -> tuple[int, int, str]:
  """Return (begin, end, name): the bytes of the data that hold an array."""
  if not isinstance(entry, dict) or set(entry) != {'dtype', 'shape', 'data_offsets'}:
    raise UserError(f'the header of {name} is not {{dtype, shape, data_offsets}}')
  dtype, shape, offsets = entry['dtype'], entry['shape'], entry['data_offsets']
  if dtype not in tuple(DTYPES):
    raise UserError(f'{name} has the unknown dtype {str(dtype)[:40]!r}; expected one of {sorted(DTYPES)}')
  if not _are_naturals(shape) or len(shape) > tensors_lib.MAX_RANK:
    raise UserError(f'{name} has the impossible shape {str(shape)[:80]}')
  if not _are_naturals(offsets) or len(offsets) != 2:
    raise UserError(f'{name} has the impossible data_offsets {str(offsets)[:80]}')
  if offsets[1] - offsets[0] != tensors_lib.count(shape) * np.dtype(DTYPES[dtype]).itemsize:
    raise UserError(f'{name}, {dtype} of shape {shape}, does not match its data_offsets {offsets}')
  return offsets[0], offsets[1], name


def _are_naturals(values: Any) -> TypeGuard[list[int]]:
  return isinstance(values, list) and all(type(n) is int and 0 <= n < 1 << 48 for n in values)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  values = dict(pairs)
  if len(values) < len(pairs):
    raise UserError('its header names an array twice')
  return values


def _refuse_constant(name: str) -> NoReturn:
  raise UserError(f'its header holds {name}')
