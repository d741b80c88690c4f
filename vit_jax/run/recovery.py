"""What a run does about numbers that went wrong: it skips, rolls back, leaves out examples, and stops with a report."""
from collections.abc import Callable, Iterable
import dataclasses
import json
import math
from typing import Any

import jax

from vit_jax.base import files
from vit_jax.base.errors import FileError, UserError
from vit_jax.base.text import count, listing
from vit_jax.data.loading.loader import BatchIterator
from vit_jax.guards.losses import LossWatch, Trouble
from vit_jax.objectives.base import Metric, mean_of
from vit_jax.run.build import Parts
from vit_jax.run.writer import Writer, finite
from vit_jax.rundir.checkpoint import Checkpoints
from vit_jax.rundir.layout import RunDir
from vit_jax.rundir.record import RunRecord
from vit_jax.training import diagnosis, recompute
from vit_jax.training.diagnosis import Diagnosis
from vit_jax.training.left_out import leave_out, pick_cause
from vit_jax.training.state import TrainState
from vit_jax.training.step import Metrics

_MOST_PENDING = 256  # losses that stay on the devices before they are fetched, if nothing is logged or saved before
_ADVICE = "Lower optim.peak_lr, lengthen optim.warmup, or set optim.clip_norm=1.0 and model.dtype='float32'"


@dataclasses.dataclass
class LoopState:
  """Where a run is: enough to resume from, and what a checkpoint holds.

  Attributes:
    step: optimizer steps taken.
    state: on the devices.
    position: of the data loader, the number of batches that the steps used; None before the first.
    record: what to store beside the state; its position and metrics are those of the last save.
  """
  step: int
  state: TrainState
  position: dict[str, int] | None
  record: RunRecord


class Recovery:
  """Watches the numbers of a run, and rolls it back.

  After a rollback the run repeats its steps bit for bit. When it comes to the step that went wrong, that step is
  examined: if it goes wrong again, the examples that are the cause get weight 0, at their place in the batch; if not,
  memory or a device had failed, and the rollback has mended it. So the outcome does not depend on when the trouble was
  found, nor on the checkpoint or the devices.

  Args:
    parts: of the run.
    checkpoints: where to roll back to.
    writer: where to log.
    run_dir: gets the report.
    restore: step of a checkpoint → where the run was then.
  """

  def __init__(self, parts: Parts, checkpoints: Checkpoints, writer: Writer, run_dir: RunDir,
               restore: Callable[[int], LoopState]):
    self._parts, self._checkpoints, self._writer, self._restore = parts, checkpoints, writer, restore
    self._config, self._report_path = parts.config.guard, run_dir.numbers_path
    strategy = parts.strategy
    self._diagnose = strategy.compile(
        diagnosis.make_program(parts.model, parts.gradients, parts.losses, strategy), donate=False)
    self._recompute = strategy.compile(
        recompute.make_program(parts.shard_gradients, parts.losses, strategy), donate=False)
    self._pending: list[tuple[int, Metric]] = []
    self._trouble: Trouble | None = None
    self._suspects: set[int] = set()  # steps to examine before they are taken
    self._step, self._warned = 0, 0  # step judged last; skipped steps that a line has told of
    self._rollbacks, self._until = 0, 0  # how many since the last calm stretch; the step up to which there was trouble
    self._watch = LossWatch(self._config, {})
    self._left_out: dict[int, list[int]] = {}

  def resume(self, record: RunRecord) -> None:
    """Begin where a checkpoint was saved, or at the start of a run."""
    self._watch = LossWatch(self._config, record.guard)
    self._left_out = {int(step): rows for step, rows in record.guard.get('left_out', {}).items()}
    self._pending, self._trouble, self._warned = [], None, self._watch.skipped

  def noted_in(self, record: RunRecord) -> RunRecord:
    """Return the record with what `resume` reads."""
    left_out = {str(step): rows for step, rows in self._left_out.items()}
    return dataclasses.replace(record, guard=dict(self._watch.to_json(), left_out=left_out))

  @property
  def skipped(self) -> int:
    """Steps of the run that were skipped."""
    return self._watch.skipped

  @property
  def may_save(self) -> bool:
    """Whether the state may replace a good checkpoint: not amid skipped steps, whose cause may be in the state."""
    return not self._watch.in_a_row

  def is_special(self, step: int) -> bool:
    """Return whether a step is examined, computed again or without some examples: another program may compile."""
    every = self._config.recompute
    return step in self._suspects or step in self._left_out or bool(every and step % every == 0)

  def fetch(self, batches: BatchIterator, step: int) -> dict[str, jax.Array]:
    """Return the next batch, which is that of `step`, on the devices; some of its examples may have weight 0."""
    batch: Any = next(batches)
    if rows := self._left_out.get(step):
      batch = leave_out(batch, rows, self._parts.pace.batch_size, jax.process_index() * len(batch['id']))
    return self._parts.strategy.put(batch)

  def examine(self, at: LoopState, batches: BatchIterator, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Return the batch of the next step, without the examples that are a cause if the step went wrong before."""
    step = at.step + 1
    if step not in self._suspects:
      return batch
    self._suspects.remove(step)
    self._judge(len(self._pending))
    found, limit = diagnosis.read(self._diagnose(at.state, batch)), self._watch.limit()
    if found.finite and (limit is None or found.loss <= limit):
      self._writer.say(f'Step {step} is sound now, with a loss of {found.loss:.4g}: its batch was not the cause.')
      return batch
    rows = pick_cause(found.losses, math.inf if limit is None else self._watch.usual())
    rows = rows or range(len(found.losses))  # every loss is sound, but the gradient is not
    self._left_out[step] = sorted({*rows, *self._left_out.get(step, ())})
    self._writer.say(self._describe(step, found))
    self._report(self._event(step, found))
    batches.set_state(dict(next_index=batches.get_state()['next_index'] - 1))
    return self.fetch(batches, step)

  def recompute(self, at: LoopState, batch: dict[str, jax.Array]) -> Trouble | None:
    """Compute the gradient of the next step again, if it is its turn; return which device is wrong, or None."""
    step = at.step + 1
    if not self._config.recompute or step % self._config.recompute:
      return None
    devices = recompute.recompute(self._recompute, self._parts.strategy, at.state, batch).disagreeing()
    if not devices:
      return None
    return Trouble(f'computed again, its gradient is another: {listing(devices)} computed something wrong', step,
                   step - 1, devices=tuple(devices))

  def add(self, step: int, metrics: Metrics) -> None:
    """Take note of a step; its loss stays on the devices until `review`."""
    self._pending.append((step, metrics['loss']))
    if len(self._pending) > _MOST_PENDING:
      self._judge(_MOST_PENDING // 2)  # done long ago: nothing waits

  def review(self, *, last: bool = False) -> Trouble | None:
    """Return what is wrong with the steps so far, or None.

    Args:
      last: whether the run ends here, so that a state after skipped steps would be its result.
    """
    self._judge(len(self._pending))
    if self._trouble is None and last and self._watch.in_a_row:
      self._trouble = self._watch.streak(self._step)
    if self._watch.skipped > self._warned and self._trouble is None:
      number, self._warned = self._watch.skipped - self._warned, self._watch.skipped
      self._writer.say(f'warning: {count(number, "step")} up to step {self._step} skipped, because loss or gradient '
                       f'were not finite; {self._watch.skipped:,} in all')
    return self._trouble

  def roll_back(self, at: LoopState, trouble: Trouble, batch: dict[str, jax.Array]) -> LoopState:
    """Return the state of the last good checkpoint.

    Args:
      at: where the run is; its state is given up.
      trouble: the reason.
      batch: any, of a step.

    Raises:
      UserError: there is no checkpoint, or the run has rolled back too often without getting further.
    """
    if trouble.first > self._until + self._config.window:
      self._rollbacks = 0
    self._until = max(trouble.first, trouble.last)
    found = None if trouble.devices else diagnosis.read(self._diagnose(at.state, batch))
    self._checkpoints.settle()
    step = max((step for step in self._checkpoints.steps() if step < trouble.first), default=None)
    self._report(dict(
        step=trouble.first, reason=trouble.reason, statistics=finite(trouble.statistics), devices=trouble.devices,
        layers_not_finite=found.broken_layers() if found else {}, rolled_back_to=step))
    if step is None or self._rollbacks == self._config.rollbacks:
      raise UserError(self._final_words(trouble, step))
    self._rollbacks += 1
    self._writer.say(f'warning: step {trouble.first:,}: {trouble.reason}{_layers(found)}. '
                     f'Rolling back to step {step:,}')
    at.state = None  # type: ignore  # to make room
    restored = self._restore(step)
    self.resume(restored.record)
    self._suspects = set(range(trouble.first, trouble.last + 1))
    self._writer.rewind(step)
    return restored

  def _judge(self, number: int) -> None:
    """Fetch the losses of the oldest pending steps and judge them, up to the first trouble."""
    taken, self._pending = self._pending[:number], self._pending[number:]
    losses = jax.device_get([loss for _, loss in taken])
    for (step, _), loss in zip(taken, losses, strict=True):
      self._step = step
      if self._trouble is None and len(self._left_out.get(step, ())) < self._parts.pace.batch_size:
        self._trouble = self._watch.add(step, mean_of(loss))

  def _final_words(self, trouble: Trouble, step: int | None) -> str:
    rolled = f'the run rolled back {count(self._rollbacks, "time")} and did not get past it (guard.rollbacks)'
    what = 'nothing was saved before it' if step is None else f'{rolled}; step {step:,} is saved'
    advice = 'Run it without these devices' if trouble.devices else _ADVICE
    return f'step {trouble.first:,}: {trouble.reason}; {what}. {self._report_path} says more. {advice}'

  def _describe(self, step: int, found: Diagnosis) -> str:
    rows = self._left_out[step]
    if len(rows) == len(found.losses):
      return f'warning: step {step:,} goes wrong again, by no example alone; it will be skipped'
    source = self._parts.data.source
    names = listing([source.describe(int(found.ids[row])) for row in rows], 5)
    return f'warning: step {step:,} goes wrong again; {count(len(rows), "example")} get weight 0 in it: {names}'

  def _event(self, step: int, found: Diagnosis) -> dict[str, Any]:
    source, rows = self._parts.data.source, self._left_out[step]
    examples = [dict(row=row, id=int(found.ids[row]), name=source.describe(int(found.ids[row])),
                     **finite(dict(loss=float(found.losses[row])))) for row in rows]
    return dict(step=step, reason='these examples got weight 0', examples=examples,
                layers_not_finite=found.broken_layers(), gradient_norms=finite(found.grads),
                statistics=finite(dict(self._watch.statistics(), loss=found.loss, grad_norm=found.grad_norm)))

  def _report(self, event: dict[str, Any]) -> None:
    """Add an event to the report of the run."""
    if jax.process_index():
      return
    events: Iterable[Any] = ()
    try:
      events = json.loads(self._report_path.read_text())['events']
    except (OSError, ValueError, KeyError, TypeError):  # the first one, or a file that was damaged
      pass
    try:
      files.write(self._report_path, json.dumps(dict(events=[*events, event]), indent=2) + '\n', 'the report')
    except FileError as error:  # no reason to end training
      self._writer.say(f'warning: {error}')


def _layers(found: Diagnosis | None) -> str:
  """Return which layers are not finite, as the end of a sentence; '' if all are."""
  parts = [f'{name} of {listing(layers, 4)}' for name, layers in (found.broken_layers() if found else {}).items()]
  return f' (not finite: {"; ".join(parts)})' if parts else ''
