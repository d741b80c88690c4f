"""Whether a checkpoint is what was saved: files, arrays and record are checked before they are used."""
from collections.abc import Iterator, Sequence
import contextlib
import math
from typing import Any

from etils import epath
import jax
import numpy as np

from vit_jax.base import files
from vit_jax.base.errors import UserError
from vit_jax.base.text import listing
from vit_jax.rundir import digests, manifest
from vit_jax.rundir.record import RunRecord, check_format_of_step


class DamagedCheckpointError(UserError):
  """A checkpoint that was changed after it was saved, or is not whole."""


def check_digests(record: RunRecord, state: Any, where: object) -> None:
  """Check that arrays are those that were saved, and that their numbers are finite.

  Args:
    record: of the checkpoint; one of version 0.1 has no digests, and may have saved numbers that are not finite.
    state: arrays of it, all or some.
    where: for the message.

  Raises:
    DamagedCheckpointError: some were changed, or hold numbers that are not finite.
  """
  found, not_finite = digests.compute(state)
  if not_finite:
    raise DamagedCheckpointError(f'{where}: this checkpoint is damaged: numbers are not finite: '
                                 f'{listing(not_finite, 5)}')
  if changed := digests.changed(record.digests, found):
    raise DamagedCheckpointError(f'{where}: this checkpoint is damaged: arrays were changed after they were saved: '
                                 f'{changed}')


def read_record(values: dict[str, Any], where: object) -> RunRecord:
  """Return the run record of a checkpoint; raise DamagedCheckpointError if it was changed."""
  try:
    return RunRecord.from_json(values)
  except UserError as error:
    raise DamagedCheckpointError(f'{where}: this checkpoint is damaged: {error}') from error


@contextlib.contextmanager
def reading(where: epath.Path, steps: Sequence[int]) -> Iterator[None]:
  """Check the files of a step before the block, which reads it by Orbax, and name the step in errors of the block.

  Args:
    where: directory of the step.
    steps: all there are.

  Raises:
    DamagedCheckpointError: files are missing or were changed.
    NewerFormatError: a newer version wrote it.
    UserError: the block failed for another reason, which may pass; errors of this kind are left as they are.
  """
  others = [str(step) for step in steps if str(step) != where.name]
  there = f'. There is also step {listing(reversed(others), 3)}' if others else ''
  try:
    check_format_of_step(where)
    if problems := manifest.problems(where):
      raise DamagedCheckpointError(f'{where}: this checkpoint is damaged: {listing(problems, 3)}{there}')
    yield
  except UserError:
    raise
  except Exception as error:  # Orbax and TensorStore raise many kinds
    text = str(error).strip('"')[:300]
    raise UserError(f'{where}: cannot read this checkpoint: {type(error).__name__}: {text}\nIt stays as it is. Run the '
                    f'same command again when the reason has passed{there}') from error


def free_name(path: epath.Path) -> epath.Path:
  """Return a path where nothing is: `path`, or else with -2, -3, … at its end."""
  number, free = 1, path
  while free.exists():
    number += 1
    free = path.with_name(f'{path.name}-{number}')
  return free


def check_claims(where: epath.Path, tree: Any) -> None:
  """Refuse a checkpoint whose files are small and whose arrays claim to be huge, before memory is allocated for them.

  Args:
    where: local or remote directory of the step; a remote one is not checked.
    tree: what its arrays are said to be, with shapes and dtypes.

  Raises:
    UserError: they claim far more bytes than there are.
  """
  if files.is_remote(where):
    return
  claimed = sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree)
                if getattr(leaf, 'shape', None) is not None and leaf.dtype is not None)
  stored = sum(path.stat().st_size for path in files.local(where / 'state').rglob('*'))
  if claimed > _MAX_RATIO * stored + _SLACK:
    raise UserError(f'{where}: its arrays claim {claimed:,} bytes, in files of {stored:,}: this is not a checkpoint of '
                    'a run')


# Parameters hardly compress; moments of an optimizer that has done nothing are zeros, which compress to nothing.
_MAX_RATIO, _SLACK = 64, 1 << 28
