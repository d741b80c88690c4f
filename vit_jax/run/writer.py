"""What a run prints and writes: progress, `metrics.jsonl`, TensorBoard event files."""
from collections.abc import Mapping
import json
import math
import os
import sys
import time

import tensorboardX
import tqdm

from vit_jax.base import files
from vit_jax.base.text import printable
from vit_jax.rundir.layout import RunDir

# Formats of the numbers in a progress line, and their short names in a progress bar.
_SHOWN = {'loss': ('.4f', 'loss'), 'learning_rate': ('.2e', 'lr'), 'images_per_second': ('.0f', 'img/s'),
          'input_wait': ('.1%', 'wait')}


def finite(values: Mapping[str, float]) -> dict[str, float | None]:
  """Return {name: number} for JSON, which has no NaN; None says that there was no number."""
  return {name: float(value) if math.isfinite(value) else None for name, value in values.items()}


class Writer:
  """Writes metrics and progress; an inactive one (all processes but the first) does nothing.

  Args:
    run_dir: gets `metrics.jsonl` and `tensorboard/`.
    num_steps: length of the run.
    start_step: where this process begins; lines of later steps, from a run that was interrupted, are dropped.
    active: whether to write at all.
  """

  def __init__(self, run_dir: RunDir, num_steps: int, start_step: int, *, active: bool = True):
    self._active = active
    if not active:
      return
    self._path = run_dir.metrics_path
    self._lines = [line for line, values in run_dir.read_metrics() if values['step'] <= start_step]
    self._rewrite()
    self._board_path = run_dir.tensorboard_path
    self._board = tensorboardX.SummaryWriter(os.fspath(self._board_path), purge_step=start_step + 1)
    self._num_steps = num_steps
    self._start: tuple[int, float] | None = None  # (step, time) after the first step: the pace leaves out compilation
    self._bar = None
    if sys.stderr.isatty():
      self._bar = tqdm.tqdm(total=num_steps, initial=start_step, unit='step', dynamic_ncols=True)

  def rewind(self, step: int) -> None:
    """Drop the metrics of the steps after `step`, to which the run rolls back."""
    if self._active:
      self._lines = [line for line in self._lines if json.loads(line)['step'] <= step]
      self._rewrite()
      self._board.close()
      self._board = tensorboardX.SummaryWriter(os.fspath(self._board_path), purge_step=step + 1)

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
    self._append(json.dumps(dict(step=step, **found)) + '\n')
    for name, value in found.items():
      if value is not None:
        self._board.add_scalar(name, value, step)
    self._board.flush()

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
    if self._bar is not None:
      self._bar.set_postfix({_SHOWN[name][1]: value for name, value in shown.items()}, refresh=False)
      return
    pairs = '  '.join(f'{name} {value}' for name, value in shown.items())
    self.say(f'step {step}/{self._num_steps}  {pairs}  eta {self._eta(step)}')

  def close(self) -> None:
    """End the bar and the files."""
    if self._active:
      self._board.close()
      if self._bar is not None:
        self._bar.close()

  def _eta(self, step: int) -> str:
    """Return the remaining time at the pace since the first step, or '?' before there is one."""
    start, since = self._start or (step, 0.0)
    if step == start:
      return '?'
    return tqdm.tqdm.format_interval((time.monotonic() - since) / (step - start) * (self._num_steps - step))

  def _append(self, line: str) -> None:
    self._lines.append(line)
    if files.is_remote(self._path):  # object stores cannot append
      self._rewrite()
    else:
      with open(self._path, 'a') as file:
        file.write(line)

  def _rewrite(self) -> None:
    files.write(self._path, ''.join(self._lines), 'the metrics')
