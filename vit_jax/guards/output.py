"""Printing that never ends a run: closed pipes, closed terminals and full disks are survived, and a log has a copy."""
from collections.abc import Callable
import contextlib
import logging
import os
import sys
from typing import Any, TextIO

Log = Callable[[str], None]


def open_standard_files() -> None:
  """Open /dev/null for standard files that are closed, or the next file that is opened would be taken for one of them.

  Characters that the output's encoding does not have are escaped from here on.
  """
  for number in range(3):
    try:
      os.fstat(number)
    except OSError:
      os.open(os.devnull, os.O_RDWR)  # the lowest free number
  for name in ('stdout', 'stderr'):
    stream: Any = getattr(sys, name)
    if stream is None:
      setattr(sys, name, open(os.devnull, 'w', encoding='utf-8'))  # noqa: SIM115
    elif hasattr(stream, 'reconfigure'):
      stream.reconfigure(errors='backslashreplace')


class Output:
  """Guards `sys.stdout` and `sys.stderr` until `close`: what cannot be printed is dropped, and a log gets all that can.

  Once a write fails, the file is replaced by /dev/null, for C++ too. What contains a carriage return, as progress bars
  do, is not logged. Warnings of Python's logging are logged as well.

  Args:
    log: gets what is printed.
  """

  def __init__(self, log: Log | None = None):
    self._log = log
    self._before = sys.stdout, sys.stderr
    self._ours: tuple[Any, Any] = (_Stream(sys.stdout, 'standard output', log),
                                   _Stream(sys.stderr, 'standard error', log))
    sys.stdout, sys.stderr = self._ours
    self._handler = _Handler(log) if log else None
    if self._handler:
      logging.getLogger().addHandler(self._handler)

  def close(self) -> None:
    """Give the streams back as they were."""
    for name, before, ours in zip(('stdout', 'stderr'), self._before, self._ours, strict=True):
      ours.flush()
      if getattr(sys, name) is ours:
        setattr(sys, name, before)
    if self._handler:
      logging.getLogger().removeHandler(self._handler)

  def __enter__(self) -> 'Output':
    return self

  def __exit__(self, *error: object) -> None:
    self.close()


class _Handler(logging.Handler):
  """Writes warnings and errors of Python's logging to a log."""

  def __init__(self, log: Log):
    super().__init__(logging.WARNING)
    self._log = log

  def emit(self, record: logging.LogRecord) -> None:
    self._log(f'{record.levelname.lower()}: {record.getMessage()}\n')


class _Stream:
  """A text stream whose writes never fail; see `Output`."""

  def __init__(self, stream: 'TextIO | _Stream', name: str, log: Log | None):
    # Of one that is guarded already, by a command, the stream below: this one is to notice that it is gone.
    self._stream: TextIO = stream._stream if isinstance(stream, _Stream) else stream
    self._name, self._log, self._gone = name, log, False

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)

  def write(self, text: str) -> int:
    """Write to the stream and to the log; return the length of the text."""
    if self._log and '\r' not in text:
      self._log(text)
    self._try(lambda stream: stream.write(_encodable(text, stream)))
    if '\n' in text:
      self.flush()
    return len(text)

  def flush(self) -> None:
    """Flush the stream."""
    self._try(lambda stream: stream.flush())

  def _try(self, function: Callable[[TextIO], object]) -> None:
    if self._gone:
      return
    try:
      function(self._stream)
    except (OSError, ValueError) as error:  # ValueError: it is closed
      with contextlib.suppress(OSError, ValueError):
        number = self._stream.fileno()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, number)
        os.close(null)
      self._gone = True
      if self._log:
        self._log(f'\nwarning: {self._name} is gone ({error}); the run goes on, and prints to this log only\n')


def _encodable(text: str, stream: TextIO) -> str:
  """Return a text with escapes for the characters that a stream's encoding does not have, such as × in ASCII."""
  encoding = getattr(stream, 'encoding', None) or 'utf-8'
  try:
    text.encode(encoding, getattr(stream, 'errors', None) or 'strict')
  except UnicodeEncodeError:
    return text.encode(encoding, 'backslashreplace').decode(encoding)
  return text
