"""Claim a run directory: check that it belongs to this config, and that all processes see the same one."""
from collections.abc import Callable, Iterator
import contextlib
import time
import uuid

from etils import epath
import jax

from vit_jax.base.errors import UserError
from vit_jax.distributed import hosts
from vit_jax.run import config as config_lib
from vit_jax.run.config import RunConfig
from vit_jax.rundir.layout import RunDir
from vit_jax.rundir.lock import RunLock


@contextlib.contextmanager
def claim(run_dir: RunDir, config: RunConfig) -> Iterator[Callable[[], None]]:
  """Lock the run directory and write the config there, as process 0, for all; the block then owns it.

  Yields:
    A function that raises RetryError if another run has taken the directory over.

  Raises:
    UserError: another run is using it, it belongs to another config, or another process sees another directory.
    FileError: it cannot be written.
  """
  with contextlib.ExitStack() as stack:
    check: Callable[[], None] = lambda: None
    if jax.process_index() == 0:
      check = stack.enter_context(RunLock(run_dir.lock_path)).check
      _claim(run_dir, config)
    _check_shared(run_dir)
    yield check


def _claim(run_dir: RunDir, config: RunConfig) -> None:
  run_dir.check_no_links()
  run_dir.check_writable()
  # Without a checkpoint nothing can be lost: a run that failed at its start does not hold the directory.
  if run_dir.has_config() and run_dir.has_checkpoint():
    theirs = config_lib.read(run_dir.read_config()).to_dict()  # with defaults for keys newer than that run
    if difference := config_lib.difference(theirs, config.to_dict(), config_lib.MAY_CHANGE_ON_RESUME):
      raise UserError(f'workdir: {run_dir} holds the run of another config:\n{difference}\n'
                      'Choose another --workdir, or resume with the config that is there.')
  run_dir.write_config(config.to_dict())


def _check_shared(run_dir: RunDir) -> None:
  """Raise on all processes, naming those that do not see the file that process 0 puts into the run directory."""
  if jax.process_count() == 1:
    return
  first = jax.process_index() == 0
  theirs, name = hosts.exchange([str(run_dir), f'probe-{uuid.uuid4()}'])[0]
  probe = run_dir.path / name
  if first:
    probe.touch()
  hosts.exchange(None)  # it is there
  problem = None
  if not _appears(probe):
    problem = (f'workdir: does not see the file that process 0 wrote to {theirs}; --workdir must be the same directory '
               'on all hosts, on gs:// or NFS')
  try:
    hosts.raise_together(problem)
  finally:
    if first:
      probe.unlink()


def _appears(path: epath.Path, seconds: float = 10.0) -> bool:
  end = time.monotonic() + seconds
  while not path.exists():
    if time.monotonic() > end:
      return False
    time.sleep(0.2)  # a network file system may be some seconds behind
  return True
