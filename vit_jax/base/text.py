"""Wording shared by messages: short lists and plurals."""
from collections.abc import Iterable, Sequence


def listing(items: Iterable[object], limit: int = 8, separator: str = ', ') -> str:
  """Join items, naming at most `limit` of them.

  >>> listing('abcd', limit=2)
  'a, b and 2 more'
  >>> listing(['a', 'b'])
  'a, b'
  """
  items = [str(item) for item in items]
  return separator.join(items[:limit]) + more(items, limit)


def more(items: Sequence[object], limit: int) -> str:
  """Return ' and N more' if there are more than `limit` items, else ''.

  >>> more('abcd', 3)
  ' and 1 more'
  """
  rest = len(items) - limit
  return f' and {rest:,} more' if rest > 0 else ''


def count(number: int, noun: str, plural: str | None = None) -> str:
  """Return a number with its noun, in the plural unless it is 1.

  >>> count(1, 'process', 'processes'), count(1_200, 'thread')
  ('1 process', '1,200 threads')
  """
  return f'{number:,} {noun if number == 1 else plural or noun + "s"}'
