"""What a run prints and writes: progress, `log.txt`, `metrics.jsonl`, TensorBoard event files."""
from collections.abc import Callable, Mapping
import contextlib
import math
import os
import shlex
import socket
import sys
import time
import traceback
from types import TracebackType

import tqdm

from vit_jax.base.errors import UserError
from vit_jax.base.text import printable
from vit_jax.guards.output import Output
from vit_jax.rundir.append import Appender
from vit_jax.rundir.layout import RunDir
from vit_jax.rundir.metrics import MetricsFile
from vit_jax.rundir.tensorboard import EventFile

# Formats of the numbers in a progress line, and their short names in a progress bar.
_SHOWN = {'loss': ('.4f', 'loss'), 'learning_rate': ('.2e', 'lr'), 'images_per_second': ('.0f', 'img/s'),
          'input_wait': ('.1%', 'wait')}


def finite(values: Mapping[str, float]) -> dict[str, float | None]:
  """Return {name: number} for JSON, which has no NaN; None says that there was no number."""
  return {name: float(value) if math.isfinite(value) else None for name, value in values.items()}


class Writer:
  """Writes metrics and progress; an inactive one (all processes but the first) only guards the output.

  Nothing that it does after the start ends a run. Until `close`, whatever the process prints goes to the log as well.

  Args:
    run_dir: gets `log.txt`, `metrics.jsonl` and `tensorboard/`.
    num_steps: length of the run.
    start_step: where this process begins; lines of later steps, from a run that was interrupted, are dropped.
    active: whether to write at all.

  Raises:
    FileError: the metrics cannot be written.
  """

  def __init__(self, run_dir: RunDir, num_steps: int, start_step: int, *, active: bool = True):
    self._active, self._failed = active, set[str]()
    self._log: Appender | None = None
    self._output = Output(self._write_log if active else None)
    if not active:
      return
    try:
      self._guard('log', lambda: self._open_log(run_dir))
      self._metrics = MetricsFile(run_dir.metrics_path, start_step, self.say)
    except BaseException:
      self._output.close()
      raise
    self._board: EventFile | None = None
    self._board_path = run_dir.tensorboard_path
    self._guard('tensorboard', lambda: self._open_board(start_step + 1))
    self._num_steps = num_steps
    self._start: tuple[int, float] | None = None  # (step, time) after the first step: the pace leaves out compilation
    self._bar = None
    if sys.stderr.isatty():
      self._bar = tqdm.tqdm(total=num_steps, initial=start_step, unit='step', dynamic_ncols=True)

  def rewind(self, step: int) -> None:
    """Drop the metrics of the steps after `step`, to which the run rolls back."""
    if self._active:
      self._metrics.rewind(step)
      if self._board is not None:
        self._board.close()
        self._guard('tensorboard', lambda: self._open_board(step + 1))

  def say(self, text: str) -> None:
    """Print a line, above the bar if there is one."""
    if self._active:
      text = printable(text)
      tqdm.tqdm.write(text, file=sys.stdout)
      sys.stdout.flush()

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Append {name: number} of a step to metrics.jsonl and TensorBoard."""
    if not self._active:
      return
    found = finite(values)
    self._metrics.append(step, found)
    board = self._board
    if board is not None:
      self._guard('tensorboard', lambda: board.write(step, {k: v for k, v in found.items() if v is not None}))

  def sync(self) -> None:
    """Make sure that a power loss does not lose what was written; call it before a save."""
    if not self._active:
      return
    self._metrics.sync()
    for name, file in (('tensorboard', self._board), ('log', self._log)):
      if file is not None:
        self._guard(name, file.sync)

  def tick(self, step: int) -> None:
    """Note that a step is done; moves the bar."""
    if not self._active:
      return
    self._start = self._start or (step, time.monotonic())
    if self._bar is not None:
      self._bar.update(step - self._bar.n)

  def progress(self, step: int, values: Mapping[str, float]) -> None:
    """Show loss, learning rate, images per second, share of time spent waiting for input, and ETA."""
    if not self._active:
      return
    shown = {name: format(values[f'train/{name}'], form) for name, (form, _) in _SHOWN.items()
             if f'train/{name}' in values}
    pairs = '  '.join(f'{name} {value}' for name, value in shown.items())
    line = f'step {step}/{self._num_steps}  {pairs}  eta {self._eta(step)}'
    if self._bar is None:
      return self.say(line)
    self._write_log(line + '\n')
    self._bar.set_postfix({_SHOWN[name][1]: value for name, value in shown.items()}, refresh=False)

  def close(self) -> None:
    """End the bar and the files, and give the output back."""
    if self._active:
      if self._bar is not None:
        self._bar.close()
      self._metrics.close()
      for name, file in (('tensorboard', self._board), ('log', self._log)):
        if file is not None:
          self._guard(name, file.sync)
          file.close()
    self._output.close()
    self._log = None

  def log_descriptor(self) -> int | None:
    """Return the descriptor of the log, if it is a local file and this process writes it."""
    return self._log.fileno() if self._log else None

  def __enter__(self) -> 'Writer':
    return self

  def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
               trace: TracebackType | None) -> None:
    if isinstance(error, UserError):
      self._write_log(f'error: {error}\n')
    elif error is not None and not isinstance(error, (SystemExit, KeyboardInterrupt)):
      self._write_log(''.join(traceback.format_exception(error)))
    self.close()

  def _open_log(self, run_dir: RunDir) -> None:
    self._log = Appender(run_dir.log_path)
    self._write_log(f'--- {time.strftime("%Y-%m-%d %H:%M:%S %z")}, process {os.getpid()} on {socket.gethostname()}: '
                    f'{shlex.join(sys.argv)}\n')

  def _open_board(self, first_step: int) -> None:
    self._board = EventFile(self._board_path, first_step)

  def _write_log(self, text: str) -> None:
    log = self._log
    if log is not None:
      with contextlib.suppress(OSError):  # the same text was printed
        log.write(text.encode(errors='backslashreplace'))

  def _guard(self, what: str, function: Callable[[], None]) -> None:
    """Call a function that writes what a run can do without; say the first time that it fails."""
    try:
      function()
    except Exception as error:  # of any type: file systems of object stores have their own
      if what not in self._failed:
        self._failed.add(what)
        self.say(f'warning: {what}: cannot be written: {error}. Training goes on without')
      if what == 'tensorboard':
        self._board = None

  def _eta(self, step: int) -> str:
    """Return the remaining time at the pace since the first step, or '?' before there is one."""
    start, since = self._start or (step, 0.0)
    if step == start:
      return '?'
    return tqdm.tqdm.format_interval((time.monotonic() - since) / (step - start) * (self._num_steps - step))
