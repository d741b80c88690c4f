"""Checkpoints: everything a run needs to resume, saved by Orbax in the background, whole or not at all."""
from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import math
import shutil
import time
from typing import Any, Literal

from absl import logging
from etils import epath
import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from vit_jax.base import files
from vit_jax.base.durations import Interval, Pace
from vit_jax.base.errors import UserError
from vit_jax.base.machine import system_errors
from vit_jax.base.text import listing
from vit_jax.rundir import restoring
from vit_jax.rundir.checks import digests, manifest, readback
from vit_jax.rundir.record import RunRecord
from vit_jax.rundir.restoring import UNFINISHED, Exchange
from vit_jax.rundir.save_failures import OrbaxLog, SaveFailures


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """Section `checkpoint` of a recipe.

  Attributes:
    every: steps or minutes between two checkpoints.
    keep: how many of the latest to keep; of two, one is left if the disk damages the other.
    keep_best: how many of the best to keep as well; if any, every evaluated step is saved.
    best: the metric that ranks them; the evaluator knows whether larger or smaller is better.
  """
  every: Interval = Interval(10, 'minute')
  keep: int = 2
  keep_best: int = 0
  best: str = 'test/accuracy'

  def __post_init__(self):
    if not self.every.number > 0:
      raise UserError(f'checkpoint.every: must be longer than 0, got {self.every}')
    for name, least in dict(keep=1, keep_best=0).items():
      if getattr(self, name) < least:
        raise UserError(f'checkpoint.{name}: must be at least {least}, got {getattr(self, name)}')


class NotFiniteError(UserError):
  """A state that must not be saved."""


class Checkpoints:
  """The checkpoints of one run.

  Args:
    directory: one subdirectory per step.
    config: when to save, what to keep.
    pace: to count epochs in steps; needed for saving.
    better: which values of `config.best` are better.
    read_only: do not modify the directory; the run may still be going.
    check_lock: called before each save, raises if another run has taken the directory over.
  """

  def __init__(self, directory: epath.Path, config: CheckpointConfig, pace: Pace | None = None, *,
               better: Literal['max', 'min'] = 'max', read_only: bool = False,
               check_lock: Callable[[], None] = lambda: None):
    self._directory, self._config, self._check_lock = directory, config, check_lock
    self._rank = lambda metrics: _rank(metrics, config.best, better)
    self._log = OrbaxLog()
    if not read_only:
      self._log.install()
    self._manager = restoring.open_to_read(directory) if read_only else self._open()
    self._failures = SaveFailures(directory)
    self._saving: _Save | None = None  # the save in progress
    self._every = None if config.every.minutes or pace is None else pace.steps(config.every)
    self._last_time = time.monotonic()

  def _open(self, *, clean: bool = True) -> ocp.CheckpointManager:
    """Return Orbax's manager, which removes steps that were not finished if `clean`."""
    policies: list[Any] = [checkpoint_managers.LatestN(self._config.keep)]
    if self._config.keep_best:
      policies.append(checkpoint_managers.BestN(get_metric_fn=self._rank, n=self._config.keep_best,
                                                keep_checkpoints_without_metrics=False))
    options = ocp.CheckpointManagerOptions(
        # Without `best_fn` Orbax does not write the metrics, and a resumed run would not know which was the best.
        best_fn=self._rank if self._config.keep_best else None,
        # The callback comes before a step gets its name, so before older ones are deleted. If folders were made in the
        # background, an error there would leave Orbax's threads waiting for five minutes.
        async_options=ocp.AsyncOptions(post_finalization_callback=self._finish,
                                       create_directories_asynchronously=False),
        cleanup_tmp_directories=clean,  # those of a run that was killed; a reader leaves them, the run may be alive
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies))
    return ocp.CheckpointManager(self._directory, item_handlers=restoring.handlers(), options=options)

  def due(self, step: int, *, at_log: bool, evaluated: bool) -> bool:
    """Return whether to save now: the interval is over, a save failed, or the step was evaluated and the best are kept.

    Args:
      step: just finished.
      at_log: whether metrics were logged at it. Wall-clock intervals are checked only then, by process 0's clock, so
        that all processes agree.
      evaluated: whether it was evaluated.
    """
    if (evaluated and self._config.keep_best) or (at_log and self._failures.is_time()):
      return True
    if self._every is not None:
      return step % self._every == 0
    minutes = self._config.every.minutes or 0.0
    return at_log and _broadcast_from_process_0(time.monotonic() - self._last_time >= 60 * minutes)

  def save(self, step: int, state: Any, record: RunRecord, metrics: dict[str, float] | None = None) -> None:
    """Start saving; `check` says whether that failed, and `due` then whether to save again.

    Args:
      step: of the checkpoint.
      state: as `Strategy.fetch` returns it.
      record: what to store beside it.
      metrics: of the step if it was evaluated.

    Raises:
      NotFiniteError: numbers that are not finite, which would replace a good checkpoint.
      RetryError: another run has taken the directory over.
    """
    if self._config.keep_best and metrics is not None and self._config.best not in metrics:
      raise UserError(f'checkpoint.best: unknown {self._config.best!r}; choose from {sorted(metrics)}')
    self._check_lock()
    found, not_finite = digests.compute(state)
    if not_finite:
      saved = self.latest()
      raise NotFiniteError(f'step {step}: not saved, as numbers of the state are not finite: {listing(not_finite, 5)}; '
                      + ('nothing was saved before' if saved is None else f'step {saved} is saved'))
    self.settle()
    record = dataclasses.replace(record, digests=found, step=step)
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
    self._saving = _Save(step, abstract, record)
    try:
      if self._failures:
        self._manager = self._open(clean=False)  # it may not have seen all steps when it was opened after the failure
      self._manager.save(step, metrics=metrics if self._config.keep_best else None, args=ocp.args.Composite(
          state=ocp.args.PyTreeSave(state), run=ocp.args.JsonSave(record.to_json())))
    except Exception as error:  # Orbax and TensorStore raise many kinds
      self._note_failure(error)
    self._last_time = time.monotonic()

  def save_surely(self, step: int, state: Any, record: RunRecord, metrics: dict[str, float] | None,
                  stop: Callable[[], bool]) -> None:
    """Save and wait until that is done; after a failure try again, until `stop()` or for `save_failures.GIVE_UP`.

    Arguments and errors as of `save`; in addition RetryError if it failed.
    """
    self.save(step, state, record, metrics)
    self.settle()
    while self._failures:
      if stop():
        raise self._failures.error()
      if warning := self._failures.warning():
        logging.warning('%s', warning.removeprefix('warning: '))
      time.sleep(min(1.0, self._failures.seconds_to_wait()))
      if self._failures.is_time():
        self.save(step, state, record, metrics)
        self.settle()

  def check(self) -> str | None:
    """Return a warning if the save in progress has failed since the last call; call it at every step.

    Raises:
      RetryError: saves have failed for `save_failures.GIVE_UP` seconds, or one has if there are several processes.
    """
    if jax.process_count() > 1 and self._saving and self._log.errors:
      # The others' threads wait for this one's: to end now, all of them, is the only way that is sure to end.
      self._note_failure(self._log.errors[0])
    elif self._saving and not self._manager.is_saving_in_progress():
      self.settle()
    if self._failures and jax.process_count() > 1:
      raise self._failures.error()
    return self._failures.warning()

  def latest(self) -> int | None:
    """Return the step of the latest whole checkpoint, or None."""
    return self._manager.latest_step()

  @property
  def failing(self) -> bool:
    """Whether the last save failed."""
    return bool(self._failures)

  def is_saved(self, step: int) -> bool:
    """Wait for the save in progress; return whether a step is saved."""
    self.settle()
    return step in self._manager.all_steps()

  def steps(self) -> list[int]:
    """Return the steps of all checkpoints, ascending."""
    return sorted(self._manager.all_steps())

  def restore(self, step: int, abstract_state: Any) -> tuple[Any, RunRecord]:
    """Read a checkpoint; see `restoring.restore`."""
    return restoring.restore(self._manager, step, abstract_state)

  def restore_latest(self, abstract_state: Any, exchange: Exchange = restoring.alone
                     ) -> tuple[int, Any, RunRecord] | None:
    """Read the latest checkpoint that is whole; see `restoring.restore_latest`."""
    return restoring.restore_latest(self._manager, abstract_state, exchange)

  def wait(self) -> None:
    """Wait for the save in progress; raise RetryError if it failed."""
    self.settle()
    if self._failures:
      raise self._failures.error()

  def close(self) -> None:
    """Wait for the save in progress, and end; a failure of it is logged."""
    if jax.process_count() > 1 and (self._failures or self._log.errors):
      return  # Orbax would wait for the other processes
    self.settle()
    if self._failures and self._failures.untold:
      logging.warning('%s', self._failures.error())
    self._manager.close()
    self._log.remove()

  def settle(self) -> None:
    """Wait for the save in progress and note whether it failed."""
    if self._saving is None:
      return
    try:
      self._manager.wait_until_finished()
    except Exception as error:  # Orbax and TensorStore raise many kinds
      self._note_failure(error)
    else:
      self._saving = None
      self._failures.clear()

  def _note_failure(self, error: BaseException) -> None:
    """Note that the save in progress failed, and remove what it has written."""
    assert self._saving is not None
    save = self._saving
    before = [step for step in self.steps() if step != save.step]
    if jax.process_count() == 1:
      self._reopen()
      if save.step in self._manager.all_steps():
        self._saving = None
        self._failures.clear()
        logging.warning('%s: an old checkpoint cannot be removed: %s', self._directory, system_errors.reason(error))
        return
    self._saving = None
    sizes = (leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(save.abstract))
    self._failures.add(save.step, error, sum(sizes), max(self.steps() or before, default=None))

  def _reopen(self) -> None:
    """End Orbax's threads after a failure, remove what they have written, and start with a manager without errors."""
    for _ in range(5):  # each error that it has kept is raised once
      try:
        self._manager.close()
        break
      except Exception:  # of many kinds; the first has been noted
        continue
    with contextlib.suppress(Exception):  # the next save opens it again
      for rest in self._directory.glob(f'*{UNFINISHED}*'):
        shutil.rmtree(rest, ignore_errors=True)
      self._manager = self._open(clean=False)

  def _finish(self) -> None:
    """Complete and check a step that has all its files, but not yet its name; called by Orbax in the background."""
    save = self._saving
    assert save is not None
    if jax.process_index() == 0 and not files.is_remote(self._directory):
      folder, = self._directory.glob(f'{save.step}{UNFINISHED}*')
      manifest.write(folder)
      readback.check(folder, save.abstract, save.record, save.step)


@dataclasses.dataclass(frozen=True)
class _Save:
  """A save in progress: its step, its state as jax.ShapeDtypeStruct, and its record."""
  step: int
  abstract: Any
  record: RunRecord


def _rank(metrics: Mapping[str, float], best: str, better: Literal['max', 'min']) -> float:
  """Return a number that is larger for a better checkpoint; -inf if it has no number of that name, or NaN.

  A checkpoint has none if `checkpoint.best` was another metric when it was saved and that one is measured only now.
  """
  value = metrics.get(best, math.nan)
  return -math.inf if math.isnan(value) else value if better == 'max' else -value


def _broadcast_from_process_0(answer: bool) -> bool:
  if jax.process_count() == 1:
    return answer
  from jax.experimental import multihost_utils
  return bool(multihost_utils.broadcast_one_to_all(answer))
