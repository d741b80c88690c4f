"""A life of a run: one process of the real command, from its start to its end, whatever ends it."""
from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[2]
_POLL = 0.02  # seconds


def read_record(step: pathlib.Path) -> dict[str, object]:
  """Return the run record of a checkpoint, as it is in its file."""
  return json.loads((step / 'run' / 'metadata').read_text())


@dataclasses.dataclass
class Life:
  """One process of a run.

  Attributes:
    arguments: of `python -m vit_jax.main`.
    workdir: of the run.
    environment: added to that of this process.
    output: file for standard output and error; None: a pipe whose reader is gone.
  """
  arguments: Sequence[str]
  workdir: pathlib.Path
  output: pathlib.Path | None
  environment: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    self.started = time.monotonic()
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', **self.environment}
    command = [sys.executable, '-m', 'vit_jax.main', *self.arguments, f'--workdir={self.workdir}']
    if self.output is None:
      read, write = os.pipe()
      os.close(read)
    else:
      write = os.open(self.output, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    try:
      self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=write,
                                      stderr=write, start_new_session=True)
    finally:
      os.close(write)

  def steps(self) -> list[int]:
    """Return the steps of the checkpoints that have their name, ascending."""
    folder = self.workdir / 'checkpoints'
    return sorted(int(path.name) for path in folder.glob('*') if path.name.isdigit()) if folder.exists() else []

  def alive(self) -> bool:
    """Return whether the process still runs."""
    return self.process.poll() is None

  def checkpoints(self) -> set[tuple[str, int]]:
    """Return (name, inode) of every checkpoint: a step that is saved again is another one."""
    found = set()
    for path in (self.workdir / 'checkpoints').glob('*'):
      if path.name.isdigit():
        with contextlib.suppress(FileNotFoundError):  # deleted in between
          found.add((path.name, path.stat().st_ino))
    return found

  def wait_for_save(self, before: set[tuple[str, int]], seconds: float) -> bool:
    """Wait for a checkpoint that is not among those of `before`; return False if the process ends, or is late."""
    end = time.monotonic() + seconds
    while self.alive() and time.monotonic() < end:
      if self.checkpoints() - before:
        return True
      time.sleep(_POLL)
    return False

  def wait(self, seconds: float) -> int | None:
    """Return the exit status, or None if the process does not end in time; it is killed then."""
    try:
      return self.process.wait(seconds)
    except subprocess.TimeoutExpired:
      self.kill()
      return None

  def kill(self) -> None:
    """Kill the process, stopped or not."""
    self.process.kill()
    self.process.wait()

  def send(self, number: signal.Signals) -> None:
    """Send a signal."""
    self.process.send_signal(number)

  def printed(self) -> str:
    """Return the output so far; '' if it went to the closed pipe."""
    return self.output.read_text(errors='replace') if self.output is not None and self.output.exists() else ''

  def resumed_after(self) -> int:
    """Return the step that the process resumed after, 0 if it began anew."""
    found = re.search(r'resuming after step ([\d,]+)', self.printed())
    return int(found[1].replace(',', '')) if found else 0

  def usage(self) -> dict[str, int]:
    """Return resident bytes, open descriptors and threads of the process; nothing if it has ended."""
    folder = pathlib.Path('/proc') / str(self.process.pid)
    try:
      resident = int((folder / 'statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')
      return dict(resident=resident, descriptors=len(list((folder / 'fd').iterdir())),
                  threads=len(list((folder / 'task').iterdir())))
    except OSError:
      return {}
