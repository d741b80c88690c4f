"""Checkpoints: all that a run is, saved together by Orbax in the background and whole or not at all."""
import time

from absl import logging
from etils import epath
import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from vit_jax.base.durations import Interval, Minutes


ITEMS = ('state', 'run')


class Checkpoints:
  """The checkpoints of one run.

  Args:
    directory: where they are, one folder a step.
    every: steps or minutes between two.
    keep: how many of the latest to keep.
    keep_best: how many of the best to keep besides; with it, every evaluated step is saved.
    best: the metric that ranks them, larger is better.
    read_only: look, and touch nothing: the run may be alive.
  """

  def __init__(self, directory, *, every: Interval = Minutes(10), keep: int = 1, keep_best: int = 0,
               best: str = 'test/accuracy', read_only: bool = False):
    check_options(every, keep, keep_best)
    policies = [checkpoint_managers.LatestN(keep)]
    if keep_best:
      policies.append(checkpoint_managers.BestN(
          get_metric_fn=lambda metrics: metrics[best], n=keep_best, keep_checkpoints_without_metrics=False))
    self._manager = open_to_read(directory, item_names=ITEMS) if read_only else ocp.CheckpointManager(
        epath.Path(directory), item_names=ITEMS,
        options=ocp.CheckpointManagerOptions(
            # Without `best_fn` Orbax does not write the metrics, and a resumed run would not know which was the best.
            best_fn=(lambda metrics: metrics[best]) if keep_best else None,
            cleanup_tmp_directories=True,  # those of a run that was killed; a reader leaves them, the run may be alive
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies)))
    self._every, self._keep_best, self._best = every, keep_best, best
    self._last_time = time.monotonic()

  def due(self, step, *, at_log, evaluated):
    """Whether to save now: the interval is over, or the step was evaluated and the best are kept.

    Times are looked at only where a line is logged (`at_log`), by process 0's clock, so that all processes agree.
    """
    if evaluated and self._keep_best:
      return True
    if not isinstance(self._every, Minutes):
      return step % self._every == 0
    return at_log and _process_0_says(time.monotonic() - self._last_time >= 60 * self._every)

  def save(self, step, state, run, metrics=None):
    """Starts saving `state` (see `parallel`, `fetch`) and `run` (JSON); an error of the last save is raised here."""
    if self._keep_best and metrics is not None and self._best not in metrics:
      raise ValueError(f'checkpoint.best={self._best!r} is not measured; there are {sorted(metrics)}')
    self._manager.save(step, args=ocp.args.Composite(state=ocp.args.PyTreeSave(state), run=ocp.args.JsonSave(run)),
                       metrics=metrics if self._keep_best else None)
    self._last_time = time.monotonic()

  def latest(self):
    """The step of the latest whole checkpoint, or None."""
    return self._manager.latest_step()

  def steps(self):
    """The steps of all checkpoints, ascending."""
    return sorted(self._manager.all_steps())

  def restore(self, step, abstract_state):
    """Returns (state, run) of a step.

    Args:
      step: of the checkpoint.
      abstract_state: tree of jax.ShapeDtypeStruct; what has a sharding becomes a jax array that lies so, however it lay
        when it was saved, and what has none a NumPy array.
    """
    how = jax.tree.map(_restore_args, abstract_state)
    try:
      restored = self._manager.restore(step, args=ocp.args.Composite(
          state=ocp.args.PyTreeRestore(abstract_state, restore_args=how), run=ocp.args.JsonRestore()))
    except Exception as error:  # Orbax and TensorStore raise many kinds
      others = [other for other in self.steps() if other != step]
      raise ValueError(f'the checkpoint of step {step} in {self._manager.directory} cannot be read: '
                       f'{str(error)[:300]}\nRemove the folder {step} to go on from '
                       + (f'step {others[-1]}' if others else 'the beginning')) from error
    return restored['state'], restored['run']

  def wait(self):
    """Waits for the save under way, raising its error."""
    self._manager.wait_until_finished()

  def close(self):
    """Waits for the save under way, raising its error, and ends."""
    self._manager.wait_until_finished()
    self._manager.close()


def open_to_read(directory, **arguments):
  """Orbax's manager of a folder of checkpoints that it leaves as it is."""
  before = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)  # Orbax warns of every option that follows from read_only
  try:
    options = ocp.CheckpointManagerOptions(read_only=True)
    return ocp.CheckpointManager(epath.Path(directory), options=options, **arguments)
  finally:
    logging.set_verbosity(before)


def check_options(every, keep, keep_best):
  """Raises ValueError for an interval or a number of checkpoints that makes no sense."""
  if not every > 0:
    raise ValueError(f'checkpoint.every must be longer than 0, got {every}')
  if keep < 1:
    raise ValueError(f'checkpoint.keep must be at least 1, got {keep}')
  if keep_best < 0:
    raise ValueError(f'checkpoint.keep_best must be at least 0, got {keep_best}')


def _restore_args(leaf):
  if leaf.sharding is None:
    return ocp.RestoreArgs(restore_type=np.ndarray)
  return ocp.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype)


def _process_0_says(answer):
  if jax.process_count() == 1:
    return answer
  from jax.experimental import multihost_utils
  return bool(multihost_utils.broadcast_one_to_all(answer))
