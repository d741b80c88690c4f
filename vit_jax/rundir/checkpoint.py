"""Checkpoints: everything a run needs to resume, saved by Orbax in the background, whole or not at all."""
from collections.abc import Callable, Mapping
import dataclasses
import math
import time
from typing import Any, Literal

from absl import logging
from etils import epath
import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from vit_jax.base import files
from vit_jax.base.durations import Interval, Pace
from vit_jax.base.errors import UserError
from vit_jax.base.text import listing
from vit_jax.rundir import digests, integrity, manifest, migration
from vit_jax.rundir.integrity import DamagedCheckpointError
from vit_jax.rundir.record import RunRecord

# In the name of a step while it is written, by Orbax; of one that was found to be damaged, by us.
_UNFINISHED, _DAMAGED = '.orbax-checkpoint-tmp', 'damaged-'


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
    rank = lambda metrics: _rank(metrics, config.best, better)
    policies: list[Any] = [checkpoint_managers.LatestN(config.keep)]
    if config.keep_best:
      policies.append(checkpoint_managers.BestN(get_metric_fn=rank, n=config.keep_best,
                                                keep_checkpoints_without_metrics=False))
    self._manager = open_to_read(directory) if read_only else ocp.CheckpointManager(
        directory, item_handlers=_handlers(), options=ocp.CheckpointManagerOptions(
            # Without `best_fn` Orbax does not write the metrics, and a resumed run would not know which was the best.
            best_fn=rank if config.keep_best else None,
            # Called before a step gets its name, so before older ones are deleted.
            async_options=ocp.AsyncOptions(post_finalization_callback=lambda: _finish(directory)),
            cleanup_tmp_directories=True,  # those of a run that was killed; a reader leaves them, the run may be alive
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies)))
    self._config, self._check_lock = config, check_lock
    self._every = None if config.every.minutes or pace is None else pace.steps(config.every)
    self._last_time = time.monotonic()

  def due(self, step: int, *, at_log: bool, evaluated: bool) -> bool:
    """Return whether to save now: the interval is over, or the step was evaluated and the best are kept.

    Args:
      step: just finished.
      at_log: whether metrics were logged at it. Wall-clock intervals are checked only then, by process 0's clock, so
        that all processes agree.
      evaluated: whether it was evaluated.
    """
    if evaluated and self._config.keep_best:
      return True
    if self._every is not None:
      return step % self._every == 0
    minutes = self._config.every.minutes or 0.0
    return at_log and _broadcast_from_process_0(time.monotonic() - self._last_time >= 60 * minutes)

  def save(self, step: int, state: Any, record: RunRecord, metrics: dict[str, float] | None = None) -> None:
    """Start saving; an error of the previous save is raised here.

    Args:
      step: of the checkpoint.
      state: as `Strategy.fetch` returns it.
      record: what to store beside it.
      metrics: of the step if it was evaluated.

    Raises:
      NotFiniteError: numbers that are not finite, which would replace a good checkpoint.
    """
    if self._config.keep_best and metrics is not None and self._config.best not in metrics:
      raise UserError(f'checkpoint.best: unknown {self._config.best!r}; choose from {sorted(metrics)}')
    self._check_lock()
    found, not_finite = digests.compute(state)
    if not_finite:
      saved = self.latest()
      raise NotFiniteError(f'step {step}: not saved, as numbers of the state are not finite: {listing(not_finite, 5)}; '
                      + ('nothing was saved before' if saved is None else f'step {saved} is saved'))
    record = dataclasses.replace(record, digests=found)
    self._manager.save(step, metrics=metrics if self._config.keep_best else None, args=ocp.args.Composite(
        state=ocp.args.PyTreeSave(state), run=ocp.args.JsonSave(record.to_json())))
    self._last_time = time.monotonic()

  def latest(self) -> int | None:
    """Return the step of the latest whole checkpoint, or None."""
    return self._manager.latest_step()

  def steps(self) -> list[int]:
    """Return the steps of all checkpoints, ascending."""
    return sorted(self._manager.all_steps())

  def restore(self, step: int, abstract_state: Any) -> tuple[Any, RunRecord]:
    """Read a checkpoint, of this version or an older one.

    Args:
      step: of the checkpoint.
      abstract_state: tree of jax.ShapeDtypeStruct; leaves with a sharding become jax arrays with that sharding, however
        they were sharded when they were saved, leaves without one NumPy arrays.

    Raises:
      DamagedCheckpointError: files are missing or were changed.
      UserError: the checkpoint cannot be read for another reason, which may pass.
    """
    where = self._manager.directory / str(step)
    with integrity.reading(where, self.steps()):
      names = migration.old_names(self._manager.item_metadata(step)['state'].tree['params'])
      stored = migration.rename(abstract_state, names)
      restored = self._manager.restore(step, args=ocp.args.Composite(
          state=ocp.args.PyTreeRestore(stored, restore_args=jax.tree.map(_restore_args, stored), partial_restore=True),
          run=ocp.args.JsonRestore()))
    state = migration.rename(restored['state'], migration.new_names(names))
    record = integrity.read_record(restored['run'], where)
    integrity.check_digests(record, state, where)
    return state, record

  def restore_latest(self, abstract_state: Any) -> tuple[int, Any, RunRecord] | None:
    """Read the latest checkpoint that is whole; None if there is none.

    A damaged one is renamed to 'damaged-STEP', which a warning says, and the one before it is read.

    Args:
      abstract_state: as for `restore`.

    Raises:
      DamagedCheckpointError: all are damaged; or the latest, of a run with several processes, which might not agree.
      UserError: the latest cannot be read for another reason.
    """
    steps = self.steps()
    for step in reversed(steps):
      try:
        return step, *self.restore(step, abstract_state)
      except DamagedCheckpointError as error:
        if jax.process_count() > 1:
          raise
        moved = integrity.free_name(self._manager.directory / f'{_DAMAGED}{step}')
        (self._manager.directory / str(step)).rename(moved)
        self._manager.reload()
        logging.warning('%s. It is now named %s', error, moved.name)
    if steps:
      raise DamagedCheckpointError(
          f'{self._manager.directory}: all checkpoints were damaged ({listing(steps)}) and have been renamed to '
          f'{_DAMAGED}STEP. Bring back a copy, or run the same command again to start from the beginning')
    return None

  def wait(self) -> None:
    """Wait for the save in progress and raise its error."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Wait for the save in progress, raise its error, and end."""
    self._manager.wait_until_finished()
    self._manager.close()


def _finish(directory: epath.Path) -> None:
  """Complete a step that has all its files, but not yet its name."""
  if jax.process_index() == 0 and not files.is_remote(directory):
    for step in directory.glob(f'*{_UNFINISHED}*'):
      manifest.write(step)


def _rank(metrics: Mapping[str, float], best: str, better: Literal['max', 'min']) -> float:
  """Return a number that is larger for a better checkpoint; -inf if it has no number of that name, or NaN.

  A checkpoint has none if `checkpoint.best` was another metric when it was saved and that one is measured only now.
  """
  value = metrics.get(best, math.nan)
  return -math.inf if math.isnan(value) else value if better == 'max' else -value


def open_to_read(directory: epath.Path) -> ocp.CheckpointManager:
  """Return a read-only Orbax manager of a directory of checkpoints."""
  before = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)  # Orbax warns of every option that follows from read_only
  try:
    options = ocp.CheckpointManagerOptions(read_only=True)
    return ocp.CheckpointManager(directory, item_handlers=_handlers(), options=options)
  finally:
    logging.set_verbosity(before)


def pick_step(steps: list[int], step: int | None, where: object) -> int:
  """Return which of the steps of a run's checkpoints to read; None is the latest.

  Raises:
    UserError: there is no such checkpoint.
  """
  if not steps:
    raise UserError(f'{where}: has no checkpoint yet, or only damaged ones')
  if step is not None and step not in steps:
    raise UserError(f'{where}: has no checkpoint of step {step}; there are {listing(steps)}')
  return steps[-1] if step is None else step


def _handlers() -> dict[str, Any]:
  """Return what reads and writes the two items of a checkpoint."""
  return dict(state=ocp.PyTreeCheckpointHandler(), run=ocp.JsonCheckpointHandler())


def _restore_args(leaf: jax.ShapeDtypeStruct) -> ocp.RestoreArgs:
  if leaf.sharding is None:
    return ocp.RestoreArgs(restore_type=np.ndarray)
  return ocp.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype)


def _broadcast_from_process_0(answer: bool) -> bool:
  if jax.process_count() == 1:
    return answer
  from jax.experimental import multihost_utils
  return bool(multihost_utils.broadcast_one_to_all(answer))
