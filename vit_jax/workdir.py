"""The folder of a run: whose it is."""
import json

from etils import epath
import jax

from vit_jax import config as config_lib


def claim(workdir, config):
  """Makes the workdir and writes the config there; raises if it cannot be written or is another config's."""
  if not str(workdir):
    raise ValueError('the workdir is empty; name a folder, such as --workdir=runs/digits')
  workdir = epath.Path(workdir).expanduser().absolute() if '://' not in str(workdir) else epath.Path(workdir)
  path = workdir / 'config.json'
  # Without a checkpoint nothing can be lost: a run that failed at its start does not hold the folder.
  if path.exists() and any(child.name.isdigit() for child in _children(workdir / 'checkpoints')):
    theirs = config_lib.resolve(read_config(workdir)).to_dict()  # with defaults for keys newer than that run
    if difference := config_lib.difference(theirs, config.to_dict()):
      raise ValueError(f'{workdir} holds the run of another config:\n{difference}\n'
                       'Choose another --workdir, or give the config that is there to go on with it.')
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
      aside = path.with_suffix('.json.tmp')
      aside.write_text(config_lib.to_json(config))
      aside.replace(path)
  except OSError as error:
    raise OSError(f'cannot write to the workdir {workdir}: {error}; choose another --workdir') from error
  return workdir


def read_config(workdir):
  """The config of a run as a dict; a ValueError says what is wrong with the file."""
  path = epath.Path(workdir) / 'config.json'
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(f'{path} is damaged: {error}; checkpoints hold a copy, in their file run/metadata') from error


def _children(folder):
  return folder.iterdir() if folder.exists() else ()
