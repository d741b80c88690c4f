"""Text of strangers: printed without characters that steer a terminal."""
import json
import logging
import re

from absl import logging as absl_logging

from vit_jax.base import text
from vit_jax.base.text import printable, printable_name

HOSTILE = 'ant\x1b[2J\x9b31m\x7f\r\x00\u202eeeb\u2028\udcff'


def test_ordinary_text_stays_as_it_is():
  for name in ('hummingbird', 'Straßenbahn', '蟻', 'עברית', '🐜', 'a\nb\tc', '20° \\ "x"'):
    assert printable(name) == name


def test_control_characters_become_their_numbers():
  assert printable(HOSTILE) == (r'ant\u001b[2J\u009b31m\u007f\u000d\u0000\u202eeeb\u2028\udcff')
  assert printable_name('a\nb\tc\x1b') == r'a\u000ab\u0009c\u001b'
  everything = ''.join(map(chr, range(0x3000)))
  assert all(character.isprintable() or character in '\n\t' or not re.match(r'[\x00-\x1f\x7f-\x9f]', character)
             for character in printable(everything))
  printable(everything).encode()


def test_json_keeps_its_meaning():
  value = {'name': HOSTILE}
  line = printable(json.dumps(value, ensure_ascii=False))
  assert json.loads(line) == value and '\x9b' not in line


def test_log_lines_are_printable():
  handler = absl_logging.get_absl_handler()
  before = list(handler.filters)
  try:
    text.make_logging_printable()
    text.make_logging_printable()
    assert len(handler.filters) == len(before) + (text._make_printable not in before)
    record = logging.LogRecord('x', logging.WARNING, '', 0, 'ignored %s', (HOSTILE,), None)
    assert handler.filter(record)
    assert record.getMessage() == f'ignored {printable(HOSTILE)}'
  finally:
    handler.filters[:] = before
