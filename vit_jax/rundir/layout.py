"""Run directories: which files are where, and reading the small ones."""
from collections.abc import Iterator
import contextlib
import json
import os
from typing import Any

from absl import logging
from etils import epath

from vit_jax.base import files
from vit_jax.base.errors import FileError, MissingFileError, UserError
from vit_jax.rundir import metrics
from vit_jax.rundir.record import check_format, with_format, without_format


class RunDir:
  """The directory of one training run, local or on an object store.

  Args:
    path: as the user gave it; `~` and relative paths are resolved here.
  """

  def __init__(self, path: files.PathLike):
    if not os.fspath(path):
      raise UserError('workdir: empty; name a directory, such as --workdir=runs/digits')
    self.path: epath.Path = files.expand(path)

  def __str__(self) -> str:
    return os.fspath(self.path)

  @property
  def config_path(self) -> epath.Path:
    """The config of the run, every key, as JSON."""
    return self.path / 'config.json'

  @property
  def metrics_path(self) -> epath.Path:
    """Metrics, one JSON object per line."""
    return self.path / 'metrics.jsonl'

  @property
  def log_path(self) -> epath.Path:
    """What the run printed, of all its starts."""
    return self.path / 'log.txt'

  @property
  def tensorboard_path(self) -> epath.Path:
    """TensorBoard event files."""
    return self.path / 'tensorboard'

  @property
  def checkpoints_path(self) -> epath.Path:
    """Checkpoints, one directory per step."""
    return self.path / 'checkpoints'

  @property
  def numbers_path(self) -> epath.Path:
    """Report of steps that went wrong: reasons, examples, layers, as JSON; only if there was one."""
    return self.path / 'numbers.json'

  @property
  def lock_path(self) -> epath.Path:
    """Names the process that writes here now."""
    return self.path / 'run.lock'

  def check_no_links(self) -> None:
    """Raise UserError if what a run would write or delete here is a symbolic link, which may lead anywhere."""
    if files.is_remote(self.path):
      return
    written = (self.config_path, self.log_path, self.metrics_path, self.tensorboard_path, self.checkpoints_path,
               self.lock_path, self.numbers_path)
    steps = os.scandir(self.checkpoints_path) if self.checkpoints_path.is_dir() else ()
    links = [path for path in (*written, *(entry.path for entry in steps)) if os.path.islink(path)]
    if links:
      raise UserError(f'workdir: {os.fspath(links[0])} is a symbolic link to {os.readlink(links[0])!r}, and a run '
                      'would write or delete there. Remove the link; to use another disk, link the whole directory')

  def check_writable(self) -> None:
    """Write and remove a small file where checkpoints go.

    Raises:
      UserError: a name that Orbax, which searches the path by patterns, would not find again.
      FileError: that failed.
    """
    if patterns := sorted(set('*?[]') & set(str(self))):
      raise UserError(f'workdir: {self} contains {" ".join(patterns)}, which searches for files take for a pattern; '
                      'choose another name')
    probe = self.checkpoints_path / f'probe-{os.getpid()}'
    try:
      self.checkpoints_path.mkdir(parents=True, exist_ok=True)
      probe.write_bytes(b'-' * 4096)
      files.sync(probe)
      probe.unlink()
    except OSError as error:
      with contextlib.suppress(OSError):
        probe.unlink(missing_ok=True)
      raise FileError(f'workdir: cannot write to {self.checkpoints_path}: {error.strerror or error}. Choose another '
                      '--workdir, or make room') from error

  def has_config(self) -> bool:
    """Return whether a run wrote its config here."""
    return self.config_path.exists()

  def has_checkpoint(self) -> bool:
    """Return whether there is a checkpoint, whole or not: only then is there something to lose."""
    folder = self.checkpoints_path
    return folder.exists() and any(child.name.isdigit() for child in folder.iterdir())

  def is_run(self) -> bool:
    """Return whether this is the directory of a run that has saved something."""
    return self.has_config() and self.checkpoints_path.is_dir()

  def read_config(self) -> dict[str, Any]:
    """Return the config of the run as it was written.

    Raises:
      MissingFileError: there is none.
      NewerFormatError: a newer version wrote it.
      UserError: the file is damaged.
    """
    try:
      config = files.read_json(self.config_path)
    except FileNotFoundError as error:
      raise MissingFileError(f'workdir: {self} is not the directory of a run: there is no {self.config_path.name}. '
                             'Give the --workdir of a training run') from error
    except ValueError as error:
      raise self._damaged(str(error)) from error
    if not isinstance(config, dict):
      raise self._damaged('expected a JSON object')
    check_format(config, self.config_path)
    return without_format(config)

  def write_config(self, config: dict[str, Any]) -> None:
    """Write the config of the run, whole or not at all.

    Raises:
      FileError: it cannot be written.
    """
    text = json.dumps(with_format(config), indent=2, sort_keys=True) + '\n'
    try:
      files.write(self.config_path, text, 'the config')
    except FileError as error:
      raise FileError(f'workdir: cannot write {self.config_path}: {error.__cause__ or error}. Choose another '
                      '--workdir, or make room') from error

  def read_metrics(self) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (line, what it says) of the metrics file, without damaged lines and an incomplete last line."""
    good, damaged = metrics.read(self.metrics_path)
    if damaged:
      logging.warning('%s: %d damaged lines are ignored', self.metrics_path, len(damaged))
    yield from good

  def metrics_at(self, step: int) -> dict[str, Any]:
    """Return all that the run logged at a step, {name: value}."""
    lines = [values for _, values in self.read_metrics() if values['step'] == step]
    return {name: value for values in lines for name, value in values.items()}

  def _damaged(self, why: str) -> UserError:
    return UserError(f'{self.config_path}: damaged: {why}. Every checkpoint holds a copy: write the value of "config" '
                     f'in {self.checkpoints_path.name}/STEP/run/metadata to this file')
