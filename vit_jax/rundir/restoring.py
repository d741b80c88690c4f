"""Reading checkpoints: of this version or an older one, whole or set aside."""
from collections.abc import Callable
from typing import Any

from absl import logging
from etils import epath
import jax
import numpy as np
import orbax.checkpoint as ocp

from vit_jax.base.errors import RetryError, UserError
from vit_jax.base.text import listing
from vit_jax.rundir import migration
from vit_jax.rundir.checks import integrity
from vit_jax.rundir.checks.integrity import DamagedCheckpointError
from vit_jax.rundir.record import RunRecord

# In the name of a step while it is written, by Orbax; of one that was found to be damaged, by us.
UNFINISHED, _DAMAGED = '.orbax-checkpoint-tmp', 'damaged-'

Exchange = Callable[[Any], list[Any]]


def alone(value: Any) -> list[Any]:
  """Return what a process that is alone passes to the processes of its run."""
  return [value]


def restore(manager: ocp.CheckpointManager, step: int, abstract_state: Any, *, check_files: bool = True
            ) -> tuple[Any, RunRecord]:
  """Read a checkpoint, of this version or an older one.

  Args:
    manager: of the run's checkpoints.
    step: of the checkpoint.
    abstract_state: tree of jax.ShapeDtypeStruct; leaves with a sharding become jax arrays with that sharding, however
      they were sharded when they were saved, leaves without one NumPy arrays.
    check_files: whether to check the hashes of files first; that of arrays and of the record are always checked.

  Raises:
    DamagedCheckpointError: files are missing or were changed.
    RetryError: the system failed to read, which may pass.
    UserError: the checkpoint cannot be read for another reason.
  """
  where = manager.directory / str(step)
  with integrity.reading(where, manager.all_steps(), check=check_files):
    tree = manager.item_metadata(step)['state'].tree
    integrity.check_claims(where, tree)
    names = migration.old_names(tree['params'])
    stored = migration.rename(abstract_state, names)
    restored = manager.restore(step, args=ocp.args.Composite(
        state=ocp.args.PyTreeRestore(stored, restore_args=jax.tree.map(_restore_args, stored), partial_restore=True),
        run=ocp.args.JsonRestore()))
  state = migration.rename(restored['state'], migration.new_names(names))
  record = integrity.read_record(restored['run'], where)
  integrity.check_digests(record, state, where)
  return state, record


def restore_latest(manager: ocp.CheckpointManager, abstract_state: Any, exchange: Exchange
                   ) -> tuple[int, Any, RunRecord] | None:
  """Read the latest checkpoint that is whole; None if there is none.

  A damaged one is renamed to 'damaged-STEP', which a warning says, and the one before it is read.

  Args:
    manager: of the run's checkpoints.
    abstract_state: as for `restore`.
    exchange: returns the JSON values that all processes pass; damage that one of them sees is damage for all.

  Raises:
    DamagedCheckpointError: all are damaged.
    RetryError: the latest cannot be read for a reason that may pass, and has not after some tries.
    UserError: the latest cannot be read for another reason.
  """
  steps = sorted(manager.all_steps())
  everyone = exchange(steps)
  if any(other != steps for other in everyone):  # a network file system may be behind
    raise RetryError(f'{manager.directory}: the processes see different checkpoints: {everyone}. Start them again')
  for step in reversed(steps):
    if found := _restore_if_whole(manager, step, abstract_state, exchange):
      return step, *found
  if steps:
    raise DamagedCheckpointError(
        f'{manager.directory}: all checkpoints were damaged ({listing(steps)}) and have been renamed to '
        f'{_DAMAGED}STEP. Bring back a copy, or run the same command again to start from the beginning')
  return None


def _restore_if_whole(manager: ocp.CheckpointManager, step: int, abstract_state: Any, exchange: Exchange
                      ) -> tuple[Any, RunRecord] | None:
  """Read a checkpoint; if any process finds it damaged, set it aside and return None, on all of them."""
  where, steps, found = manager.directory / str(step), manager.all_steps(), None
  # All check the files first: when Orbax reads, its processes wait for each other, so that none may fail alone.
  everyone = exchange(_damage(lambda: integrity.with_retries(lambda: integrity.check_step(where, steps), where)))
  if not any(everyone):
    def read() -> None:
      nonlocal found
      found = restore(manager, step, abstract_state, check_files=False)
    try_all = (lambda: integrity.with_retries(read, where)) if jax.process_count() == 1 else read
    everyone = exchange(_damage(try_all))
  if text := next(filter(None, everyone), None):
    _set_aside(manager, step, text, exchange)
    return None
  return found


def _damage(read: Callable[[], None]) -> str | None:
  """Call `read()`; return what it says if it finds damage, else None."""
  try:
    read()
  except DamagedCheckpointError as error:
    return str(error)


def _set_aside(manager: ocp.CheckpointManager, step: int, why: str, exchange: Exchange) -> None:
  """Rename a damaged step, as process 0, for all."""
  if jax.process_index() == 0:
    moved = integrity.free_name(manager.directory / f'{_DAMAGED}{step}')
    (manager.directory / str(step)).rename(moved)
    logging.warning('%s. It is now named %s', why, moved.name)
  exchange(None)  # it is renamed
  manager.reload()


def open_to_read(directory: epath.Path) -> ocp.CheckpointManager:
  """Return a read-only Orbax manager of a directory of checkpoints."""
  before = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)  # Orbax warns of every option that follows from read_only
  try:
    options = ocp.CheckpointManagerOptions(read_only=True)
    return ocp.CheckpointManager(directory, item_handlers=handlers(), options=options)
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


def handlers() -> dict[str, Any]:
  """Return what reads and writes the two items of a checkpoint."""
  return dict(state=ocp.PyTreeCheckpointHandler(), run=ocp.JsonCheckpointHandler())


def _restore_args(leaf: jax.ShapeDtypeStruct) -> ocp.RestoreArgs:
  if leaf.sharding is None:
    return ocp.RestoreArgs(restore_type=np.ndarray)
  return ocp.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype)
