"""What a run tells: lines or a progress bar, `metrics.jsonl`, TensorBoard event files."""
import json
import math
import sys
import time

from etils import epath
import tensorboardX
import tqdm


class Report:
  """Writes metrics and progress; a silent one (`active=False`, all processes but the first) does nothing.

  Args:
    workdir: gets `metrics.jsonl` and `tensorboard/`; local or gs://.
    total_steps: length of the run.
    start_step: where this process begins; lines of later steps, from a run that was cut, are dropped.
    active: whether to write at all.
  """

  def __init__(self, workdir, total_steps, start_step, *, active=True):
    self._active = active
    if not active:
      return
    self._path = epath.Path(workdir) / 'metrics.jsonl'
    self._lines = self._keep_until(start_step)
    self._board = tensorboardX.SummaryWriter(str(epath.Path(workdir) / 'tensorboard'), purge_step=start_step + 1)
    self._total = total_steps
    self._start = None  # (step, time) when the first is done: the pace leaves out start-up and compilation
    self._bar = None
    if sys.stderr.isatty():
      self._bar = tqdm.tqdm(total=total_steps, initial=start_step, unit='step', dynamic_ncols=True)

  def say(self, text):
    """Prints a line, above the bar where there is one."""
    if self._active:
      tqdm.tqdm.write(text, file=sys.stdout)
      sys.stdout.flush()

  def write(self, step, values):
    """Appends {name: number} at a step to metrics.jsonl and TensorBoard."""
    if not self._active:
      return
    values = {name: float(value) for name, value in values.items()}
    # JSON has no NaN; null says that there was no number.
    finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
    self._append(json.dumps(dict(step=step, **finite)) + '\n')
    for name, value in finite.items():
      if value is not None:
        self._board.add_scalar(name, value, step)
    self._board.flush()

  def tick(self, step):
    """Says that a step is done; moves the bar."""
    if not self._active:
      return
    self._start = self._start or (step, time.monotonic())
    if self._bar is not None:
      self._bar.update(step - self._bar.n)

  def progress(self, step, values):
    """Shows how training goes: loss, learning rate, images/s, share of time waiting for input, ETA."""
    if not self._active:
      return
    formats = {'loss': '.4f', 'learning_rate': '.2e', 'images_per_second': '.0f', 'input_wait': '.1%'}
    shown = {name: format(values[f'train/{name}'], form) for name, form in formats.items() if f'train/{name}' in values}
    if self._bar is not None:
      short = dict(learning_rate='lr', images_per_second='img/s', input_wait='wait')
      self._bar.set_postfix({short.get(name, name): value for name, value in shown.items()}, refresh=False)
      return
    pairs = '  '.join(f'{name} {value}' for name, value in shown.items())
    self.say(f'step {step}/{self._total}  {pairs}  eta {self._eta(step)}')

  def close(self):
    """Ends the bar and the files."""
    if self._active:
      self._board.close()
      if self._bar is not None:
        self._bar.close()

  def _eta(self, step):
    """The remaining time at the pace since the first step, or '?' before there is one."""
    start, since = self._start or (step, 0.0)
    if step == start:
      return '?'
    return tqdm.tqdm.format_interval((time.monotonic() - since) / (step - start) * (self._total - step))

  def _keep_until(self, step):
    """Drops the lines after `step`; a half-written last line too."""
    lines = []
    for line in self._path.read_text().splitlines(keepends=True) if self._path.exists() else []:
      if line.endswith('\n') and json.loads(line)['step'] <= step:
        lines.append(line)
    self._rewrite(lines)
    return lines

  def _append(self, line):
    self._lines.append(line)
    if '://' in str(self._path):  # object stores cannot append
      self._rewrite(self._lines)
    else:
      with open(self._path, 'a') as file:
        file.write(line)

  def _rewrite(self, lines):
    aside = self._path.with_suffix('.jsonl.tmp')
    aside.write_text(''.join(lines))
    aside.replace(self._path)
