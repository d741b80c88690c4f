"""The faults: what is done to a run while it runs, how its process is ended, and what happens to its files in between.

A fault is a function that does it and raises `Failure` if the run does not answer as documented
(docs/crash_safety.md). New faults are rows of the three tables at the end.
"""
from collections.abc import Callable
import contextlib
import dataclasses
import os
import pathlib
import random
import shutil
import signal
import time

from experiments import data_faults
from experiments.soak.life import Life, read_record

_PATIENCE = 300.0  # seconds; a loaded machine is slow


class Failure(Exception):
  """A run that did not answer to a fault as it should."""


@dataclasses.dataclass
class Scene:
  """Where a fault happens.

  Attributes:
    workdir: of the run.
    random: source of all choices.
    disk: whether the workdir has a small file system to itself, which `fill_disk` can fill.
  """
  workdir: pathlib.Path
  random: random.Random
  disk: bool

  @property
  def checkpoints(self) -> pathlib.Path:
    """Folder of the checkpoints."""
    return self.workdir / 'checkpoints'

  def steps(self) -> list[int]:
    """Return the steps of the checkpoints, ascending."""
    return sorted(int(path.name) for path in self.checkpoints.glob('*') if path.name.isdigit())


# While it runs: each returns whether it was done. The run must go on and save once more.


def stop_and_continue(life: Life, scene: Scene) -> bool:
  """Send SIGSTOP and, after a moment, SIGCONT."""
  life.send(signal.SIGSTOP)
  time.sleep(scene.random.uniform(0.05, 0.5))
  life.send(signal.SIGCONT)
  return True


def kill_worker(life: Life, scene: Scene) -> bool:
  """Kill a worker process."""
  return data_faults.signal_worker(life.process.pid, signal.SIGKILL, scene.random) is not None


def stop_worker(life: Life, scene: Scene) -> bool:
  """Stop a worker process for good."""
  return data_faults.signal_worker(life.process.pid, signal.SIGSTOP, scene.random) is not None


def fill_disk(life: Life, scene: Scene) -> bool:
  """Leave no room on the disk for a second or two."""
  del life
  filler = scene.workdir.parent / 'filler'
  try:
    with contextlib.suppress(OSError), open(filler, 'wb', buffering=0) as file:
      while True:
        file.write(bytes(1 << 20))
    with contextlib.suppress(OSError), open(filler, 'ab', buffering=0) as file:
      while True:
        file.write(bytes(512))
    time.sleep(scene.random.uniform(0.5, 2.0))
  finally:
    filler.unlink(missing_ok=True)
  return True


def hide_workdir(life: Life, scene: Scene) -> bool:
  """Move the run directory away for up to a second, as if its network file system were unreachable."""
  del life
  aside = scene.workdir.with_name('hidden')
  scene.workdir.rename(aside)
  time.sleep(scene.random.uniform(0.1, 1.0))
  while aside.exists():
    try:
      aside.rename(scene.workdir)
    except OSError:  # the run has made a new one meanwhile
      shutil.rmtree(scene.workdir, ignore_errors=True)
  return True


def damage_events(life: Life, scene: Scene) -> bool:
  """Remove the TensorBoard files, or write into them."""
  del life
  paths = list((scene.workdir / 'tensorboard').glob('events*'))
  for path in paths:
    if scene.random.random() < 0.5:
      path.unlink()
    else:
      path.write_bytes(scene.random.randbytes(100))
  return bool(paths)


def second_run(life: Life, scene: Scene) -> bool:
  """Start a second run in the same directory, which must be refused."""
  second = Life(life.arguments, life.workdir, scene.workdir.parent / 'second.txt', life.environment)
  status = second.wait(_PATIENCE)
  if not life.alive():  # the first has ended meanwhile, and the second may have found that the run is finished
    return False
  if status != 1 or 'workdir' not in second.printed():
    raise Failure(f'a second run ended with {status}: {second.printed()[-300:]}')
  return True


# How a life ends: each returns the exit status to expect.


def sigkill(life: Life, scene: Scene) -> int:
  """Kill the process."""
  time.sleep(scene.random.uniform(0.0, 0.5))
  life.send(signal.SIGKILL)
  return -signal.SIGKILL


def _ask(number: signal.Signals, status: int) -> Callable[[Life, Scene], int]:
  def end(life: Life, scene: Scene) -> int:
    time.sleep(scene.random.uniform(0.0, 0.5))
    life.send(number)
    return status
  end.__doc__ = f'Send {number.name}.'
  return end


def sigterm_twice(life: Life, scene: Scene) -> int:
  """Send SIGTERM twice, a moment apart."""
  life.send(signal.SIGTERM)
  time.sleep(scene.random.uniform(0.0, 0.2))
  with contextlib.suppress(ProcessLookupError):
    life.send(signal.SIGTERM)
  return 143


# Between two lives: what happens to the files; each returns whether it was done. Damage to the newest checkpoint needs
# an older one.


def _newest(scene: Scene) -> pathlib.Path | None:
  steps = scene.steps()
  return scene.checkpoints / str(steps[-1]) if len(steps) > 1 else None


def _needed(step: pathlib.Path) -> list[pathlib.Path]:
  """Return the files of a step that hold something."""
  return sorted(path for path in step.rglob('*') if path.is_file() and path.stat().st_size)


def flip_bit(scene: Scene) -> bool:
  """Flip one bit of the arrays of the newest checkpoint."""
  if (step := _newest(scene)) is None:
    return False
  data = [path for path in _needed(step / 'state') if path.parent.name == 'd']
  path = scene.random.choice(data)
  content = bytearray(path.read_bytes())
  content[scene.random.randrange(len(content))] ^= 1 << scene.random.randrange(8)
  path.write_bytes(content)
  return True


def truncate(scene: Scene) -> bool:
  """Cut off a file of the newest checkpoint."""
  if (step := _newest(scene)) is None:
    return False
  path = scene.random.choice(_needed(step))
  os.truncate(path, scene.random.randrange(path.stat().st_size))
  return True


def remove_file(scene: Scene) -> bool:
  """Remove a file of the newest checkpoint."""
  if (step := _newest(scene)) is None:
    return False
  scene.random.choice(_needed(step)).unlink()
  return True


def half_delete(scene: Scene) -> bool:
  """Remove half of the files of the newest checkpoint."""
  if (step := _newest(scene)) is None:
    return False
  paths = _needed(step)
  for path in scene.random.sample(paths, (len(paths) + 1) // 2):
    path.unlink()
  return True


def change_record(scene: Scene) -> bool:
  """Change the data position in the run record of the newest checkpoint."""
  if (step := _newest(scene)) is None:
    return False
  path, record = step / 'run' / 'metadata', read_record(step)
  before = f'"next_index": {record["position"]["next_index"]}'  # type: ignore[index]
  text = path.read_text()
  if before not in text:
    raise Failure(f'{path} does not say {before}')
  path.write_text(text.replace(before, f'"next_index": {scene.random.randrange(1, 9)}'))
  return True


def empty_step(scene: Scene) -> bool:
  """Make an empty folder with the name of a later step."""
  steps = scene.steps()
  (scene.checkpoints / str(steps[-1] + 1)).mkdir()
  return True


def foreign_folder(scene: Scene) -> bool:
  """Put a folder of other files among the checkpoints."""
  folder = scene.checkpoints / f'backup-{scene.random.randrange(1000)}'
  folder.mkdir(exist_ok=True)
  (folder / 'notes.txt').write_text('mine')
  return True


def damage_metrics(scene: Scene) -> bool:
  """Put lines that are not JSON into metrics.jsonl, or cut its last line off."""
  path = scene.workdir / 'metrics.jsonl'
  lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
  lines.insert(scene.random.randrange(len(lines) + 1), scene.random.choice(
      [b'\xff\x00{"step": \n', b'[1, 2]\n', b'{"step": "seven"}\n', b'\n', b'{"loss": 1.0}\n']))
  path.write_bytes(b''.join(lines)[:-scene.random.randrange(1, 5)])
  return True


def damage_compilation_cache(scene: Scene) -> bool:
  """Cut off or overwrite the compiled programs that are kept on disk."""
  paths = [path for path in (scene.workdir.parent / 'cache').rglob('*') if path.is_file() and path.stat().st_size]
  for path in paths:
    if scene.random.random() < 0.5:
      os.truncate(path, path.stat().st_size // 2)
    else:
      path.write_bytes(scene.random.randbytes(64))
  return bool(paths)


def leave_temporary_files(scene: Scene) -> bool:
  """Leave files and folders as a process leaves them that was killed while it wrote."""
  (scene.workdir / '.12345.config.json').write_text('{')
  folder = scene.checkpoints / f'{scene.steps()[-1] + 1}.orbax-checkpoint-tmp'
  (folder / 'state').mkdir(parents=True, exist_ok=True)
  (folder / 'state' / 'half').write_bytes(bytes(10))
  return True


RUNNING: dict[str, Callable[[Life, Scene], bool]] = {
    'stop and continue': stop_and_continue,
    'worker killed': kill_worker,
    'worker stopped': stop_worker,
    'disk full': fill_disk,
    'run directory unreachable': hide_workdir,
    'TensorBoard files damaged': damage_events,
    'second run in the directory': second_run,
}
ENDING: dict[str, Callable[[Life, Scene], int]] = {
    'SIGKILL': sigkill,
    'SIGTERM': _ask(signal.SIGTERM, 143),
    'SIGHUP': _ask(signal.SIGHUP, 129),
    'SIGINT': _ask(signal.SIGINT, 130),
    'SIGTERM twice': sigterm_twice,
}
BETWEEN: dict[str, Callable[[Scene], bool]] = {
    'bit flipped in arrays': flip_bit,
    'checkpoint file cut off': truncate,
    'checkpoint file removed': remove_file,
    'checkpoint half deleted': half_delete,
    'run record changed': change_record,
    'empty folder among checkpoints': empty_step,
    'foreign folder among checkpoints': foreign_folder,
    'metrics.jsonl damaged': damage_metrics,
    'compilation cache damaged': damage_compilation_cache,
    'temporary files left behind': leave_temporary_files,
}
# These make the newest checkpoint useless, so that the one before is used.
DAMAGES_NEWEST = ('bit flipped in arrays', 'checkpoint file cut off', 'checkpoint file removed',
                  'checkpoint half deleted', 'run record changed')
