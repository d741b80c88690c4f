"""Split strings of our own sources, written as for TFDS: `train[:90%]`, `train[100:]`, `train+val`."""
from collections.abc import Mapping
import re
from typing import NamedTuple

from vit_jax.base.errors import UserError


class Part(NamedTuple):
  """One term of a split string, `name[start:stop]`; the bounds are text, empty or None if they are left out."""
  name: str
  start: str | None
  stop: str | None


def parse(split: str) -> list[Part]:
  """Return the terms of a split string.

  Raises:
    UserError: it is malformed.

  >>> parse('train[:90%]+val')
  [Part(name='train', start=None, stop='90%'), Part(name='val', start=None, stop=None)]
  """
  number = r'-?\d+(?:\.\d+(?=%))?%?'
  parts = []
  for term in split.split('+'):
    match = re.fullmatch(rf'\s*([^\[\]+]+?)\s*(?:\[\s*({number})?\s*:\s*({number})?\s*\])?\s*', term)
    if not match:
      raise UserError(f'split {split!r}: expected a split such as train, train[:90%], train[100:] or train+val')
    parts.append(Part(*match.groups()))
  return parts


def bounds(part: Part, sizes: Mapping[str, int], split: str) -> range:
  """Return the indices of a split that a part selects.

  Args:
    part: term of the split string.
    sizes: number of records in each split.
    split: the whole string, for messages.

  Raises:
    UserError: the bounds select no record, or are outside the split.

  >>> bounds(parse('train[-10%:]')[0], {'train': 50}, 'train[-10%:]')
  range(45, 50)
  """
  size = sizes[part.name]
  start, stop = _position(part.start or '0', size), _position(part.stop or f'{size}', size)
  if not 0 <= start < stop <= size:
    raise UserError(f'split {split!r}: {part.name} has {size} images; records {start} to {stop} are none of them, or '
                    f'too many. Expected bounds such as {part.name}[:90%] or {part.name}[:{size}].')
  return range(start, stop)


def _position(bound: str, size: int) -> int:
  """Return a bound such as '-10' or '33.3%' as an index from the start; percentages are rounded as TFDS rounds them."""
  position = round(float(bound[:-1]) * size / 100) if bound.endswith('%') else int(bound)
  return position + size if bound.startswith('-') else position
