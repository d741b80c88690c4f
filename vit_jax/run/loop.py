"""The training loop: the side effects of a run happen in the order of its lines."""
import collections
from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import jax

from vit_jax.data.loading.loader import BatchIterator
from vit_jax.evaluators.base import Evaluator
from vit_jax.guards.losses import Trouble
from vit_jax.guards.signals import StopRequest
from vit_jax.guards.watchdog import Watchdog, Work
from vit_jax.run.build import Parts
from vit_jax.run.meters import InputStallMonitor, Meters
from vit_jax.run.recovery import LoopState, Recovery
from vit_jax.run.writer import Writer
from vit_jax.rundir.checkpoint import Checkpoints, NotFiniteError
from vit_jax.training.health import make_panel
from vit_jax.training.state import TrainState
from vit_jax.training.step import Metrics

Measure = Callable[[str, Evaluator, Any, Any], dict[str, float]]


class _StopEvaluationError(Exception):
  """The run was asked to stop during an evaluation."""


class Loop:
  """A loop over the steps of a run, which can be entered at any `LoopState`.

  Args:
    parts: of the run.
    checkpoints: where to save.
    writer: where to log.
    stop: whether the run was asked to stop.
    recovery: what to do about numbers that went wrong.
    watchdog: to which the loop says what it does.
  """

  def __init__(self, parts: Parts, checkpoints: Checkpoints, writer: Writer, stop: StopRequest, recovery: Recovery,
               watchdog: Watchdog | None = None):
    self._parts, self._checkpoints, self._writer, self._stop = parts, checkpoints, writer, stop
    self._recovery = recovery
    self._watchdog = watchdog or Watchdog()
    self._log_every = parts.pace.steps(parts.config.train.log_every)
    self._eval_every = parts.pace.steps(parts.config.train.eval_every)
    self._step_fn = parts.strategy.compile(parts.step, donate=True)
    self._panel_every = self._eval_every * (parts.config.health.every or 0)
    self._panel = parts.strategy.compile(make_panel(
        parts.model, parts.merge, parts.gradients, parts.optimizer.transform, parts.config.normalization,
        parts.strategy), donate=False)
    self._failed = False  # whether an error ends the run
    self._sound: LoopState | None = None  # where the run is, unless it has to roll back
    self._meters = Meters(parts.pace)
    self._stalls = InputStallMonitor(self._eval_every)
    # On a CPU several programs with collectives in flight can deadlock; elsewhere one ahead hides the dispatch.
    self._ahead = 0 if jax.default_backend() == 'cpu' else 1

  def run(self, at: LoopState) -> LoopState:
    """Take steps from `at` to the end of the run.

    An error that comes after a step is raised when that step is saved, if its state is finite and there is one process.
    Of several processes none can save alone: they make the steps since the last save again.
    """
    begun, self._sound = at.step, at
    try:
      return self._run(at)
    except Exception:
      if self._sound and self._sound.step > begun and jax.process_count() == 1:
        self._save_before_error(self._sound)
      raise

  def _run(self, at: LoopState) -> LoopState:
    """Take steps; the effects of a step come in the order of these lines."""
    parts, recovery, num_steps = self._parts, self._recovery, self._parts.num_steps
    batches = iter(parts.data.train_batches())
    self._watchdog.begin(Work.START, at.step)
    parts.context.on_batch = self._between_batches
    if at.record.evaluation_due and not self._evaluate(at):
      self._stop.exit()
    if at.step == num_steps:
      return at
    self._watchdog.begin(Work.START, at.step)
    in_flight: collections.deque[Metrics] = collections.deque()
    first = at.step + 1
    batch, error = self._begin(at, batches), None

    while at.step < num_steps:
      if recovery.is_special(at.step + 1):
        self._watchdog.begin(Work.START)
        batch = recovery.examine(at, batches, batch)
        if trouble := recovery.recompute(at, batch):
          at, batch = self._roll_back(at, trouble, batches, batch)
          continue
      health = self._measure_health(at, batch)
      at.state, metrics = self._step_fn(at.state, batch)
      at.step += 1
      at.position = batches.get_state()  # before the next batch is fetched: state and position belong together
      last = at.step == num_steps
      self._watchdog.begin(Work.FETCH, at.step - 1)
      if not last:
        batch, error = self._fetch(lambda at=at: recovery.fetch(batches, at.step + 1), metrics)
      self._watchdog.begin(Work.STEP)
      in_flight.append(metrics)
      while len(in_flight) > self._ahead:
        jax.block_until_ready(in_flight.popleft())
      self._meters.add(metrics)
      recovery.add(at.step, metrics)
      if at.step == first:
        self._first_step_done(metrics)
        first = 0  # a rollback may come to it again

      if trouble := self._effects(at, health, last=last):
        at, batch = self._roll_back(at, trouble, batches, batch)
        continue
      if error:
        raise error
      self._writer.tick(at.step)
      self._watchdog.begin(Work.STEP, at.step)
    return at

  def _effects(self, at: LoopState, health: dict[str, float], *, last: bool) -> Trouble | None:
    """Log, evaluate and save a step if it is time for it; return what is wrong with the steps so far, or None."""
    logged, evaluated = (at.step % every == 0 or last for every in (self._log_every, self._eval_every))
    if (logged or evaluated) and (trouble := self._recovery.review(last=last)):
      return trouble
    if logged:
      self._log(at)
    evaluated = evaluated and self._evaluate(at)
    if health:
      self._writer.write(at.step, health)
    stopping = self._stop.should_stop()
    if warning := self._checkpoints.check():
      self._writer.say(warning)
    if last or stopping or self._checkpoints.due(at.step, at_log=logged, evaluated=evaluated):
      if trouble := self._recovery.review() or self._save(at, evaluated, surely=last or stopping):
        return trouble
    if stopping and (not last or at.record.evaluation_due):
      what = 'which is saved' if self._recovery.may_save else 'which was skipped: not saved'
      self._writer.say(f'Stopped after step {at.step}, {what}; run the same command again to resume.')
      self._stop.exit()
    if logged or evaluated:
      self._meters.restart_clock()
    return None

  def _begin(self, at: LoopState, batches: BatchIterator) -> dict[str, jax.Array]:
    """Return the batch of the first step after `at`."""
    self._recovery.resume(at.record)
    batches.set_state(at.position or dict(next_index=0))
    return self._recovery.fetch(batches, at.step + 1)

  def _roll_back(self, at: LoopState, trouble: Trouble, batches: BatchIterator,
                 batch: dict[str, jax.Array]) -> tuple[LoopState, dict[str, jax.Array]]:
    """Return where the run goes on, and its next batch."""
    self._watchdog.begin(Work.START, at.step)
    self._sound = None
    self._sound = at = self._recovery.roll_back(at, trouble, batch)
    at.record = dataclasses.replace(at.record, evaluation_due=False)  # if it was, this process has done it
    self._meters.forget()
    return at, self._begin(at, batches)

  def _between_batches(self) -> None:
    """Notice, during an evaluation, that the run was asked to stop."""
    self._watchdog.begin(Work.EVALUATE)
    if self._stop.should_stop():
      raise _StopEvaluationError

  def _measure_health(self, at: LoopState, batch: Any) -> dict[str, float]:
    """Return {'health/STATISTIC/LAYER': number} of the step that comes next, if it has a panel; else nothing."""
    number = at.step + 1
    if not self._panel_every or (number % self._panel_every and number != self._parts.num_steps):
      return {}
    with self._meters.pause():
      values = jax.device_get(self._panel(at.state, batch))
    return {f'health/{name}': float(value) for name, value in values.items()}

  def _first_step_done(self, metrics: Metrics) -> None:
    jax.block_until_ready(metrics)
    self._writer.say(f'First step took {self._meters.elapsed():.1f} s, including compilation.')
    self._meters.restart_clock()
    self._stop.arm()

  def _log(self, at: LoopState) -> None:
    learning_rate = float(self._parts.optimizer.schedule(at.step - 1))
    values = self._meters.take(at.step) | {'train/learning_rate': learning_rate}
    if skipped := self._recovery.skipped:
      values['train/skipped_steps'] = skipped
    self._writer.write(at.step, values)
    self._writer.progress(at.step, values)
    if warning := self._stalls.warning(at.step, values):
      self._writer.say(warning)

  def _evaluate(self, at: LoopState) -> bool:
    """Evaluate; return False, and let a resumed run do it first, if the run is asked to stop before the end."""
    at.record = dataclasses.replace(at.record, evaluation_due=True)
    self._watchdog.begin(Work.EVALUATE, at.step)
    if self._stop.should_stop():
      return False
    try:
      values = evaluate(self._parts, at.state)
    except _StopEvaluationError:
      return False
    at.record = dataclasses.replace(at.record, metrics=values, evaluation_due=False)
    self._writer.write(at.step, values)
    self._writer.say(f'step {at.step}/{self._parts.num_steps}  evaluation  {describe(values)}')
    return True

  def _save(self, at: LoopState, evaluated: bool, *, surely: bool) -> Trouble | None:
    """Save, unless the step was skipped; return what is wrong with the state, or None. Unless `surely`, do not wait."""
    if not self._recovery.may_save:
      return None
    self._watchdog.begin(Work.SAVE, at.step)
    self._writer.sync()
    at.record = dataclasses.replace(self._recovery.noted_in(at.record), position=at.position)
    state, measured = self._parts.strategy.fetch(at.state.to_save()), at.record.metrics if evaluated else None
    try:
      if surely:
        self._checkpoints.save_surely(at.step, state, at.record, measured, self._give_up_saving)
      else:
        self._checkpoints.save(at.step, state, at.record, measured)
    except NotFiniteError as error:
      return Trouble(str(error).removeprefix(f'step {at.step}: '), at.step, at.step - 1)
    return None

  def _give_up_saving(self) -> bool:
    """Return whether a save that failed at the end of the run is not tried again."""
    self._watchdog.begin(Work.SAVE)
    return self._failed or self._stop.should_stop()

  def _fetch(self, fetch: Callable[[], Any], metrics: Metrics) -> tuple[Any, Exception | None]:
    """Return the next batch and None; or the error, to raise after the effects of the step before."""
    try:
      return self._meters.wait(fetch, metrics), None
    except Exception as error:
      return {}, error

  def _save_before_error(self, at: LoopState) -> None:
    """Save the last step, unless it is saved, its state went down with the error, or saving itself fails."""
    self._failed = True
    try:
      if self._checkpoints.failing or self._checkpoints.is_saved(at.step) or not self._recovery.may_save:
        return
      if not (self._recovery.review() or self._save(at, False, surely=True)):
        self._writer.say(f'Step {at.step} is saved before an error ends the run.')
    except Exception as error:
      self._writer.say(f'Step {at.step} could not be saved before an error ends the run: {error}')


def call_evaluator(name: str, evaluator: Evaluator, params: Any, averages: Any) -> dict[str, float]:
  """Return what an evaluator measures; see `evaluate`."""
  del name
  return evaluator(params, averages)


def evaluate(parts: Parts, state: TrainState, measure: Measure = call_evaluator) -> dict[str, float]:
  """Return {'NAME/METRIC': value} of all evaluators, and 'NAME_ema/METRIC' of the averaged parameters.

  Args:
    parts: of the run.
    state: on the devices.
    measure: (NAME or NAME_ema, evaluator, parameters, running averages of the objective) → {METRIC: value}.
  """
  values = {}
  try:
    for name, evaluator in parts.evaluators.items():
      for suffix, params in (('', state.params), ('_ema', state.averaged_params)):
        if params is not None:
          measured = measure(f'{name}{suffix}', evaluator, params, state.for_objective)
          values.update({f'{name}{suffix}/{metric}': value for metric, value in measured.items()})
  finally:
    parts.context.features.forget()
  return values


def describe(values: Mapping[str, Any]) -> str:
  """Return metrics as one line."""
  return '  '.join(f'{name} {value:.4f}' for name, value in values.items())
