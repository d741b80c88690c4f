"""The folder of a run: whose it is."""
import json
import time
import uuid

from etils import epath
import jax

from vit_jax.run import config as config_lib
from vit_jax.distributed import hosts


def claim(workdir, config):
  """Makes the workdir and writes the config there, as process 0, for all; returns its path.

  Args:
    workdir: local or gs:// folder; must be the same folder on all hosts.
    config: resolved.

  Raises:
    ValueError: it is another config's, or another host sees another folder.
    OSError: it cannot be written.
  """
  if not str(workdir):
    raise ValueError('the workdir is empty; name a folder, such as --workdir=runs/digits')
  workdir = epath.Path(workdir).expanduser().absolute() if '://' not in str(workdir) else epath.Path(workdir)
  if jax.process_index() == 0:
    _claim(workdir, config)
  _check_shared(workdir)
  return workdir


def _claim(workdir, config):
  path = workdir / 'config.json'
  # Without a checkpoint nothing can be lost: a run that failed at its start does not hold the folder.
  if path.exists() and any(child.name.isdigit() for child in _children(workdir / 'checkpoints')):
    theirs = config_lib.resolve(read_config(workdir)).to_dict()  # with defaults for keys newer than that run
    if difference := config_lib.difference(theirs, config.to_dict()):
      raise ValueError(f'{workdir} holds the run of another config:\n{difference}\n'
                       'Choose another --workdir, or give the config that is there to go on with it.')
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix('.json.tmp')
    aside.write_text(config_lib.to_json(config))
    aside.replace(path)
  except OSError as error:
    raise OSError(f'cannot write to the workdir {workdir}: {error}; choose another --workdir') from error


def _check_shared(workdir):
  """Raises NotAlike, naming the hosts, unless all see the file that process 0 puts into the workdir."""
  if jax.process_count() == 1:
    return
  first = jax.process_index() == 0
  theirs, name = hosts.gather([str(workdir), f'probe-{uuid.uuid4()}'])[0]
  probe = workdir / name
  if first:
    probe.touch()
  hosts.gather(None)  # it is there
  problem = None
  if not _appears(probe):
    problem = (f'does not see the file that process 0 wrote to {theirs}; --workdir must be one folder for all, on '
               'gs:// or NFS')
  try:
    hosts.each_says(problem)
  finally:
    if first:
      probe.unlink()


def _appears(path, seconds=10.0):
  end = time.monotonic() + seconds
  while not path.exists():
    if time.monotonic() > end:
      return False
    time.sleep(0.2)  # a network file system may be some seconds behind
  return True


def read_config(workdir):
  """The config of a run as a dict; a ValueError says what is wrong with the file."""
  path = epath.Path(workdir) / 'config.json'
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(f'{path} is damaged: {error}; checkpoints hold a copy, in their file run/metadata') from error


def _children(folder):
  return folder.iterdir() if folder.exists() else ()
