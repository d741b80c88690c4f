"""The lock of a run directory: one run at a time writes there, on any host; a lock whose owner is dead is taken over.

The lock is a file that names its owner. The owner rewrites an object on an object store, or touches a file, every
`BEAT` seconds. Whether the owner is alive is certain if it ran on this machine: its process has the same start time.
Of another machine or container only the beats are seen: no beat during `STALE` seconds of waiting means that the owner
is dead. Clocks of different machines are never compared.
"""
from collections.abc import Iterator
import contextlib
import datetime
import fcntl
import json
import os
import pathlib
import socket
import subprocess
import threading
import time
from typing import Any
import uuid

from absl import logging
from etils import epath

from vit_jax.base import files
from vit_jax.base.errors import FileError, RetryError, UserError

BEAT = 30.0  # seconds between two beats
STALE = 4 * BEAT  # network file systems show a change up to a minute late
_SETTLE = 2.0  # seconds after which two writers of the same object both see who was last
_LAST_BEAT = 10.0  # seconds that a beat may take at the end

Owner = dict[str, Any]


class RunLock:
  """The lock of a run directory, held from `acquire` to `release`, or as a context manager.

  Args:
    path: of the file or object.
    beat: seconds between two beats.
    stale: seconds without a beat after which an owner on another machine is dead.
  """

  def __init__(self, path: epath.Path, *, beat: float = BEAT, stale: float = STALE):
    self._path, self._beat, self._stale = path, beat, stale
    self._owner: Owner = dict(_this_process(), token=str(uuid.uuid4()),
                              started=f'{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC')
    self._beats = 0
    self._ended = threading.Event()
    self._thread = threading.Thread(target=self._beat_until_ended, name='lock of the workdir', daemon=True)

  def acquire(self) -> None:
    """Take the lock, after waiting up to `stale` seconds if only the beats show whether its owner is alive.

    Raises:
      UserError: the owner is alive; the message names its process, host and start.
      FileError: the lock cannot be written.
    """
    try:
      self._path.parent.mkdir(parents=True, exist_ok=True)
      with _alone_on_this_machine(self._path.parent):
        while not self._create():
          self._remove_stale()
    except UserError:
      raise
    except OSError as error:
      raise FileError(f'workdir: cannot write {self._path}: {error.strerror or error}. Choose another --workdir, or '
                      'make room') from error
    self._thread.start()

  def check(self) -> None:
    """Check that the lock is still ours; call it before writing what another run must not find changed.

    Raises:
      RetryError: another run has taken it, as this process was stopped or cut off for too long.
    """
    try:
      owner = _read(self._path)
    except OSError:
      return  # the disk cannot be read now: writing fails too, and says so
    if owner is not None and owner.get('token') != self._owner['token']:
      raise RetryError(f'workdir: {_describe(owner)} has taken over {self._path.parent}, as this process did not run '
                       'for a while; it ends without saving. What is saved is whole')

  def release(self) -> None:
    """Give the lock back; does nothing if it is no longer ours."""
    self._ended.set()
    if self._thread.is_alive():
      self._thread.join(_LAST_BEAT)  # or it would write the lock again
    with contextlib.suppress(OSError):
      if (_read(self._path) or {}).get('token') == self._owner['token']:
        self._path.unlink(missing_ok=True)

  def __enter__(self) -> 'RunLock':
    self.acquire()
    return self

  def __exit__(self, *error: object) -> None:
    self.release()

  def _create(self) -> bool:
    """Make the lock ours if there is none; return whether it is."""
    if not files.is_remote(self._path):
      try:
        with open(self._path, 'x') as file:  # exclusive on NFS too, and never through a symbolic link
          file.write(self._text())
          file.flush()
          os.fsync(file.fileno())
      except FileExistsError:
        return False
      return True
    if self._path.exists():
      return False
    self._path.write_text(self._text())
    time.sleep(_SETTLE)  # object stores cannot create exclusively: the last of several writers is the owner
    return (_read(self._path) or {}).get('token') == self._owner['token']

  def _text(self) -> str:
    return json.dumps(dict(self._owner, beats=self._beats))

  def _remove_stale(self) -> None:
    """Remove the lock of an owner that is dead; raise UserError if it is alive."""
    owner = _read(self._path)
    if owner is None:  # without content: its owner is just writing it, or died then
      time.sleep(_SETTLE)
      owner = _read(self._path)
    if owner is not None and self._is_alive(owner):
      raise UserError(f'workdir: {self._path.parent} is in use by {_describe(owner)}, and two runs must not write to '
                      'one directory. Wait for that run, stop it, or choose another --workdir')
    if files.is_remote(self._path):
      self._path.unlink(missing_ok=True)
    else:
      self._take_away(owner)
    if owner is not None:
      logging.warning('workdir: %s had died; its lock is taken over', _describe(owner))

  def _take_away(self, owner: Owner | None) -> None:
    """Remove the lock that `owner` left; one that another host has put in its place since then is put back."""
    aside = self._path.with_name(f'.{self._owner["token"]}.{self._path.name}')
    with contextlib.suppress(FileNotFoundError):  # another host was faster
      self._path.rename(aside)
      if _read(aside) != owner:
        with contextlib.suppress(FileExistsError):
          os.link(aside, self._path)
      aside.unlink(missing_ok=True)

  def _is_alive(self, owner: Owner) -> bool:
    if owner.get('machine') == self._owner['machine']:
      return owner.get('start') is not None and _start_of(owner.get('pid')) == owner['start']
    logging.warning('workdir: %s is locked by %s; waiting up to %g s to see whether it is alive', self._path.parent,
                    _describe(owner), self._stale)
    before, end = self._signs(), time.monotonic() + self._stale
    while time.monotonic() < end:
      time.sleep(min(1.0, self._beat / 3))
      if self._signs() != before:
        return self._path.exists()
    return False

  def _signs(self) -> tuple[Owner | None, int]:
    """Return what a beat changes: the content, or the time of a file."""
    owner = _read(self._path)  # opening a file makes NFS ask its server for the time
    with contextlib.suppress(OSError):
      return owner, 0 if files.is_remote(self._path) else os.lstat(self._path).st_mtime_ns
    return owner, 0

  def _beat_until_ended(self) -> None:
    while not self._ended.wait(self._beat):
      self._beats += 1
      with contextlib.suppress(Exception):  # the next one may succeed; the run must not end for this
        owner = _read(self._path)
        if owner is None or owner.get('token') == self._owner['token']:
          if files.is_remote(self._path):
            self._path.write_text(self._text())
          elif owner is None:
            self._create()
          else:
            os.utime(self._path, follow_symlinks=False)  # needs no space on a full disk


def _read(path: epath.Path) -> Owner | None:
  """Return the owner that a lock names; None if there is no lock or it is not one of ours."""
  try:
    owner = json.loads(path.read_text())
  except (FileNotFoundError, ValueError):
    return None
  return owner if isinstance(owner, dict) else None


def _describe(owner: Owner) -> str:
  text = f'process {owner.get("pid")} on {owner.get("host")}, started {owner.get("started")}'
  return ''.join(character for character in text[:200] if character.isprintable())  # the file may be a stranger's


@contextlib.contextmanager
def _alone_on_this_machine(folder: epath.Path) -> Iterator[None]:
  """Let one process of this machine at a time enter the block, where the file system can lock a folder."""
  if files.is_remote(folder):
    yield
    return
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    with contextlib.suppress(OSError):
      fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield
  finally:
    os.close(descriptor)


def _this_process() -> Owner:
  """Return what identifies this process on its machine: process ids mean the same where 'machine' is the same."""
  machine = socket.gethostname()
  with contextlib.suppress(OSError):  # containers may share a name, but not the ids of processes
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    machine = f'{boot} {os.readlink("/proc/self/ns/pid")}'
  return dict(host=socket.gethostname(), machine=machine, pid=os.getpid(), start=_start_of(os.getpid()))


def _start_of(pid: Any) -> str | None:
  """Return when a process of this machine started, in any form that another process with its id would not have."""
  if not isinstance(pid, int):
    return None
  try:
    # The name, in brackets, may hold anything; the start is the 22nd word, the state of the process the third.
    words = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return None if words[0] in 'ZX' else words[19]
  except OSError:
    if pathlib.Path('/proc/self/stat').exists():
      return None
  found = subprocess.run(['ps', '-o', 'lstart=', '-p', str(pid)], capture_output=True, text=True, check=False)
  return found.stdout.strip() or None
