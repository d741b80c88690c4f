"""Saves that fail: what is said of them, when to try again, and when to give up."""
import contextlib
import errno
import logging
import shutil
import sys
import time
from typing import Any

from etils import epath

from vit_jax.base import files
from vit_jax.base.errors import RetryError
from vit_jax.base.machine import system_errors

GIVE_UP = 600.0  # seconds from the first failure on in which a save is tried again
_FIRST_DELAY, _LONGEST_DELAY = 1.0, 60.0  # seconds between two tries; each is twice as long as the one before


class SaveFailures:
  """The failed saves since the last one that succeeded.

  Args:
    directory: of the checkpoints.

  Attributes:
    untold: whether the last failure was neither a warning nor an error yet.
  """

  def __init__(self, directory: epath.Path):
    self._directory = directory
    self._first = self._next = self._delay = 0.0
    self._text, self.untold = '', False

  def __bool__(self) -> bool:
    return bool(self._text)

  def add(self, step: int, error: BaseException, needed: int, saved: int | None) -> None:
    """Note that a save failed.

    Args:
      step: that was to be saved.
      error: why it was not.
      needed: bytes of its state.
      saved: the latest step that is saved, or None.
    """
    now = time.monotonic()
    self._first = self._first if self else now
    self._delay = min(2 * self._delay, _LONGEST_DELAY) if self else _FIRST_DELAY
    self._next = now + self._delay
    kept = 'nothing is saved yet' if saved is None else f'step {saved} is saved'
    self._text, self.untold = f'step {step} is not saved: {self._directory}: {system_errors.reason(error)}', True
    if system_errors.number(error) in (errno.ENOSPC, errno.EDQUOT):
      self._text += f' (the state has {_size(needed)}{_free(self._directory)})'
    self._text += f'; {kept}'

  def clear(self) -> None:
    """Note that a save succeeded."""
    self._text, self.untold = '', False

  def is_time(self) -> bool:
    """Return whether a failed save should be tried again now."""
    return bool(self) and time.monotonic() >= self._next

  def seconds_to_wait(self) -> float:
    """Return the time until the next try."""
    return max(0.0, self._next - time.monotonic())

  def warning(self) -> str | None:
    """Return what to say of a failure, once, as one line.

    Raises:
      RetryError: saves have failed for `GIVE_UP` seconds.
    """
    if self and time.monotonic() - self._first >= GIVE_UP:
      raise self.error(f'saving has failed for {GIVE_UP / 60:g} minutes: ')
    if not self.untold:
      return None
    self.untold = False
    return f'warning: {self._text}. Training goes on; saving is tried again for {GIVE_UP / 60:g} minutes'

  def error(self, before: str = '') -> RetryError:
    """Return the error that ends a run because of a failure."""
    self.untold = False
    return RetryError(f'{before}{self._text}. When the reason is gone, start the same command again to resume')


class OrbaxLog(logging.Filter):
  """Keeps Orbax's tracebacks of failed saves from the log, where they have hundreds of lines.

  Attributes:
    errors: what they were of, in the order in which they came.
  """

  def __init__(self):
    super().__init__()
    self.errors: list[BaseException] = []

  def install(self) -> None:
    """Keep them from the log from here on."""
    logging.getLogger('absl').addFilter(self)
    _drop_late_errors()

  def remove(self) -> None:
    """Let them into the log again."""
    logging.getLogger('absl').removeFilter(self)

  def filter(self, record: logging.LogRecord) -> bool:
    """Return whether to log a record."""
    if 'orbax' not in record.pathname:
      return True
    if isinstance(record.exc_info, tuple) and record.exc_info[1] is not None:
      self.errors.append(record.exc_info[1])
      return False
    return 'Metadata file' not in record.getMessage()  # of a step that is not whole, which we name ourselves


def _drop_late_errors() -> None:
  """Keep TensorStore from printing that it calls loops which the first failed array ended, from here on."""
  before = sys.unraisablehook
  if getattr(before, '__name__', '') == _drop_late_errors.__name__:
    return

  def report(unraisable: Any) -> None:
    if str(unraisable.exc_value) != 'Event loop is closed':
      before(unraisable)

  report.__name__ = _drop_late_errors.__name__
  # Of several arrays that failed, all but the first are errors that nothing reads.
  logging.getLogger('asyncio').addFilter(lambda record: 'orbax' not in record.getMessage())
  sys.unraisablehook = report


def _size(number: int) -> str:
  return f'{number / 2**20:,.1f} MiB'


def _free(directory: epath.Path) -> str:
  if files.is_remote(directory):
    return ''
  with contextlib.suppress(OSError):
    return f', there are {_size(shutil.disk_usage(directory).free)} free'
  return ''
