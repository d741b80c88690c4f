"""Wording shared by messages: short lists, plurals, and text of strangers that a terminal can print."""
from collections.abc import Iterable, Sequence
import logging
import re

from absl import logging as absl_logging

# Control characters but line feed and tab; marks and overrides of the writing direction; line and paragraph separators;
# halves of surrogate pairs, which stand for bytes of a file name that are not UTF-8 and which cannot be printed.
_UNPRINTABLE = re.compile('[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]')


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


def printable(text: object) -> str:
  r"""Return text without characters by which a name could steer a terminal or hide what it says: they become \uXXXX.

  In JSON text, that means the same characters. Line feeds and tabs stay.

  >>> printable('ant\x1b[2J')
  'ant\\u001b[2J'
  """
  return _UNPRINTABLE.sub(lambda found: f'\\u{ord(found[0]):04x}', str(text))


def printable_name(name: object) -> str:
  r"""Return a name as `printable` text on one line.

  >>> printable_name('ant\tbee')
  'ant\\u0009bee'
  """
  return re.sub('[\t\n]', lambda found: f'\\u{ord(found[0]):04x}', printable(name))


def make_logging_printable() -> None:
  """Make what is logged `printable`; harmless to call again."""
  absl_logging.get_absl_handler().addFilter(_make_printable)


def _make_printable(record: logging.LogRecord) -> bool:
  record.msg, record.args = printable(record.getMessage()), ()
  return True
