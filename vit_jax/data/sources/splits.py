"""Split strings of our own sources, written as TFDS writes them: `train[:90%]`, `train[100:]`, `train+val`."""

import re
from typing import Mapping, NamedTuple


class Part(NamedTuple):
  """One term of a split string: `name[start:stop]`, the bounds as text, empty or None where there are none."""
  name: str
  start: str | None
  stop: str | None


def parse(split: str) -> list[Part]:
  """The terms of a split string; raises ValueError where it is none."""
  number = r'-?\d+(?:\.\d+(?=%))?%?'
  matches = [re.fullmatch(rf'\s*([^\[\]+]+?)\s*(?:\[\s*({number})?\s*:\s*({number})?\s*\])?\s*', term)
             for term in split.split('+')]
  if not all(matches):
    raise ValueError(f'Expected a split such as train, train[:90%], train[100:] or train+val, got {split!r}.')
  return [Part(*match.groups()) for match in matches]


def bounds(part: Part, sizes: Mapping[str, int], split: str) -> range:
  """The records of a split that a part asks for.

  Args:
    part: a term of the split string.
    sizes: how many records each split holds.
    split: the whole string, for messages.

  Raises:
    ValueError: the bounds hold no record, or reach beyond the split.
  """
  size = sizes[part.name]
  start, stop = _position(part.start or '0', size), _position(part.stop or f'{size}', size)
  if not 0 <= start < stop <= size:
    raise ValueError(f'Split {split!r}: {part.name} has {size} images, and records {start} to {stop} of them are '
                     f'none or too many. Expected bounds such as {part.name}[:90%] or {part.name}[:{size}].')
  return range(start, stop)


def _position(bound: str, size: int) -> int:
  """A bound such as '-10' or '33.3%' as a number from the start; percent are rounded as TFDS rounds them."""
  position = round(float(bound[:-1]) * size / 100) if bound.endswith('%') else int(bound)
  return position + size if bound.startswith('-') else position
