"""Whether a checkpoint is what was saved: files, arrays and record are checked before they are used."""
from collections.abc import Callable, Iterator, Sequence
import contextlib
import errno
import json
import math
from typing import Any, TypeVar

from etils import epath
import jax
import numpy as np

from vit_jax.base import files
from vit_jax.base.errors import RetryError, UserError
from vit_jax.base.machine import retry, system_errors
from vit_jax.base.text import listing
from vit_jax.rundir.checks import digests, manifest
from vit_jax.rundir.record import RunRecord, check_format_of_step

T = TypeVar('T')

RETRY_DELAYS = (1.0, 3.0, 9.0)  # seconds between tries to read a checkpoint

# Without these there is no checkpoint, of any version.
_NEEDED = ('state/_METADATA', 'run/metadata')
# What TensorStore says of files that are missing, cut off or changed.
_DAMAGE = ('NOT_FOUND: ', 'FAILED_PRECONDITION: ', 'DATA_LOSS: ', 'OUT_OF_RANGE: ')


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


def read_record(values: dict[str, Any], where: epath.Path) -> RunRecord:
  """Return the run record of a checkpoint.

  Args:
    values: its JSON.
    where: directory of the step.

  Raises:
    DamagedCheckpointError: it was changed.
    UserError: it is that of another step.
  """
  try:
    record = RunRecord.from_json(values)
  except UserError as error:
    raise DamagedCheckpointError(f'{where}: this checkpoint is damaged: {error}') from error
  if record.step is not None and str(record.step) != where.name:
    raise UserError(f'{where}: this is the checkpoint of step {record.step}, and its folder has another name. Rename '
                    f'it: mv {where} {where.with_name(str(record.step))}')
  return record


def check_files(where: epath.Path) -> None:
  """Check that a step has the files that it was saved with.

  Args:
    where: directory of the step.

  Raises:
    DamagedCheckpointError: files are missing or were changed, or it is no checkpoint.
    OSError: a file cannot be read, which may pass.
  """
  problems = manifest.problems(where)
  if not problems and not files.is_remote(where):
    problems = [f'{name} is missing' for name in _NEEDED if not (where / name).exists()]
  if problems:
    raise DamagedCheckpointError(f'{where}: this checkpoint is damaged: {listing(problems, 3)}')


@contextlib.contextmanager
def reading(where: epath.Path, steps: Sequence[int], *, check: bool = True) -> Iterator[None]:
  """Check the files of a step before the block, which reads it by Orbax, and name the step in errors of the block.

  Args:
    where: directory of the step.
    steps: all there are, ascending.
    check: whether to check the files.

  Raises:
    DamagedCheckpointError: files are missing or were changed.
    NewerFormatError: a newer version wrote it.
    RetryError: the system failed to read, which may pass.
    UserError: the block failed for another reason; errors of this kind are left as they are.
  """
  others = [str(step) for step in steps if str(step) != where.name]
  there = f'. There is also step {listing(reversed(others), 3)}' if others else ''
  try:
    check_format_of_step(where)
    if check:
      check_files(where)
    yield
  except DamagedCheckpointError as error:
    raise DamagedCheckpointError(f'{error}{there}') from error
  except UserError:
    raise
  except Exception as error:  # Orbax and TensorStore raise many kinds
    text = f'{where}: cannot read this checkpoint: {type(error).__name__}: {str(error).strip(chr(34))[:300]}'
    if _may_pass(error):
      raise RetryError(f'{text}\nIt stays as it is. Run the same command again when the reason has passed'
                       f'{there}') from error
    # Without files.json nothing has been compared before; these words of TensorStore say that its files do not fit.
    broken = isinstance(error, json.JSONDecodeError) or any(word in str(error) for word in _DAMAGE)
    if broken and not (where / manifest.NAME).exists():
      raise DamagedCheckpointError(f'{text}\nThis checkpoint is damaged: {manifest.NAME} and more are missing or '
                                   f'changed{there}') from error
    if system_errors.number(error) == errno.ENOENT:
      raise DamagedCheckpointError(f'{where}: this checkpoint is damaged: files are missing{there}') from error
    raise UserError(f'{text}\nIt stays as it is{there}') from error


def check_step(where: epath.Path, steps: Sequence[int]) -> None:
  """Check the files of a step; arguments and errors as of `reading`."""
  with reading(where, steps):
    pass


def with_retries(read: Callable[[], T], where: epath.Path) -> T:
  """Return `read()`, which reads the step at `where`, called again after `RETRY_DELAYS` while `reading` lets it."""
  return retry.call(read, f'reading {where}', delays=RETRY_DELAYS, passing=lambda error: isinstance(error, RetryError))


def _may_pass(error: BaseException) -> bool:
  if system_errors.number(error) in (errno.ENOENT, errno.EISDIR, errno.ENOTDIR):
    return False
  return isinstance(error, (OSError, MemoryError)) or system_errors.number(error) is not None or any(
      word in str(error) for word in ('RESOURCE_EXHAUSTED', 'UNAVAILABLE', 'DEADLINE_EXCEEDED', 'PERMISSION_DENIED'))


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
