"""The metrics of a run, `metrics.jsonl`: one JSON object per line, whole across interruptions and full disks."""
from collections.abc import Callable
import json
import os
from typing import Any

from etils import epath

from vit_jax.base import files
from vit_jax.rundir.append import Appender

_DAMAGED = 'metrics.damaged.jsonl'


def read(path: epath.Path) -> tuple[list[tuple[str, dict[str, Any]]], list[bytes]]:
  """Read a metrics file.

  Args:
    path: of the file, which may be missing.

  Returns:
    ((line, what it says) of the good lines, the damaged lines). An incomplete last line, which a kill leaves, is in
    neither.

  Raises:
    OSError: it cannot be read.
  """
  content = path.read_bytes() if path.exists() else b''
  *lines, _ = content.split(b'\n')
  good, damaged = [], []
  for line in lines:
    try:
      values = json.loads(line)
      if not isinstance(values, dict) or type(values.get('step')) is not int:
        raise ValueError
      good.append((line.decode() + '\n', values))
    except (ValueError, RecursionError):  # UnicodeDecodeError and JSONDecodeError are ValueErrors
      damaged.append(line + b'\n')
  return good, damaged


class MetricsFile:
  """Appends to a metrics file. Lines that cannot be written are kept, and tried again with the next one.

  Damaged lines are moved to `metrics.damaged.jsonl`.

  Args:
    path: of the file.
    last_step: lines of later steps, from a run that was interrupted, are dropped.
    warn: gets a line about what cannot be written, once until it can be again.

  Raises:
    OSError: the file cannot be read.
    FileError: it cannot be written.
  """

  def __init__(self, path: epath.Path, last_step: int, warn: Callable[[str], None]):
    self._path, self._warn, self._failed = path, warn, False
    good, damaged = read(path)
    self._lines = [line for line, values in good if values['step'] <= last_step]
    self._of_last_step = {line for line, values in good if values['step'] == last_step}
    if damaged:
      aside = Appender(path.parent / _DAMAGED)
      aside.write(b''.join(damaged))
      aside.sync()
      aside.close()
      warn(f'warning: {path}: {len(damaged)} of {len(good) + len(damaged)} lines are damaged and were moved to '
           f'{_DAMAGED}')
    self._rewrite()

  def append(self, step: int, values: dict[str, float | None]) -> None:
    """Append the metrics of a step, unless they are there already, from an evaluation that is done again."""
    line = json.dumps(dict(step=step, **values)) + '\n'
    if line in self._of_last_step:
      return
    self._lines.append(line)
    self._try(self._append)

  def rewind(self, step: int) -> None:
    """Drop the lines of the steps after `step`."""
    self._lines = [line for line in self._lines if json.loads(line)['step'] <= step]
    self._try(self._rewrite)

  def sync(self) -> None:
    """Make sure that a power loss does not lose what was written."""
    self._try(self._sync)

  def close(self) -> None:
    """Write what could not be written before."""
    if self._failed:
      self._try(self._sync)

  def _try(self, function: Callable[[], None]) -> None:
    try:
      if self._failed:
        self._check_folder()
        self._rewrite()
      else:
        function()
    except OSError as error:
      if not self._failed:
        self._warn(f'warning: {self._path}: cannot be written: {error.__cause__ or error}. Training goes on; what is '
                   'missing is kept and tried again at every log line')
      self._failed = True
      return
    if self._failed:
      self._warn(f'{self._path} is written again, and complete')
    self._failed = False

  def _check_folder(self) -> None:
    if not files.is_remote(self._path):
      os.stat(self._path.parent)  # a folder that has vanished is not made again: another disk may be there now

  def _append(self) -> None:
    if files.is_remote(self._path):  # object stores cannot append
      return self._rewrite()
    file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)  # fails if it has vanished
    try:
      line = self._lines[-1].encode()
      if (written := os.write(file, line)) < len(line):
        os.write(file, line[written:])  # raises what has stopped the first write
    finally:
      os.close(file)

  def _sync(self) -> None:
    if not files.is_remote(self._path):
      files.sync(self._path)

  def _rewrite(self) -> None:
    files.write(self._path, ''.join(self._lines), 'the metrics')
