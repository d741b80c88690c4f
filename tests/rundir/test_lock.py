"""The lock of a run directory, held and broken by true processes; on an object store with a folder in place of it."""
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

from etils import epath
from etils.epath import backend
from fsspec.implementations.local import LocalFileSystem
import pytest

from tests import tiny
from tests.data.test_remote import Bucket
from vit_jax.base.errors import FileError, RetryError, UserError
from vit_jax.rundir import lock as lock_lib
from vit_jax.rundir.lock import RunLock

# Takes the lock of argv[1], says so, and holds it until its input ends; says 'lost' if it has been taken over.
OWNER = '''
import sys
from etils import epath
from vit_jax.base.errors import RetryError, UserError
from vit_jax.rundir.lock import RunLock
lock = RunLock(epath.Path(sys.argv[1]), beat=0.1, stale=float(sys.argv[2]))
if len(sys.argv) > 3:
  lock._owner['machine'] = sys.argv[3]
print('ready', flush=True)
sys.stdin.readline()
try:
  lock.acquire()
  print('held', flush=True)
  sys.stdin.readline()
  lock.check()
  lock.release()
except RetryError as error:
  print('lost', error, flush=True)
except UserError as error:
  print('refused', error, flush=True)
'''


class Owner:
  """A process that takes a lock; `machine` is where it seems to run."""

  def __init__(self, path, *machine, stale=1000.0):
    self.process = subprocess.Popen([sys.executable, '-c', OWNER, path, str(stale), *machine], text=True, cwd=tiny.ROOT,
                                    stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    self.pid = self.process.pid
    assert self.line() == 'ready'

  def line(self):
    return self.process.stdout.readline().strip()

  def go_on(self):
    self.process.stdin.write('\n')
    self.process.stdin.flush()

  def take(self):
    self.go_on()
    return self.line()

  def kill(self):
    self.process.kill()
    self.process.communicate()


@pytest.fixture
def path(tmp_path):
  return epath.Path(tmp_path) / 'run' / 'run.lock'


@pytest.fixture
def owners(path):
  """A function that starts owners of the lock; they are killed at the end."""
  started = []

  def start(*machine, stale=1000.0):
    started.append(Owner(path, *machine, stale=stale))
    return started[-1]

  yield start
  for owner in started:
    owner.kill()


def test_one_of_many_gets_it_and_the_others_are_told_who(path, owners):
  several = [owners() for _ in range(5)]
  for owner in several:
    owner.go_on()
  answers = {owner: owner.line() for owner in several}
  winner, = [owner for owner, answer in answers.items() if answer == 'held']
  for owner, answer in answers.items():
    assert owner is winner or (answer.startswith('refused workdir: ') and f'is in use by process {winner.pid} on '
                               in answer and 'UTC' in answer and 'choose another --workdir' in answer)
  winner.go_on()
  assert winner.process.wait() == 0 and not path.exists()
  assert owners().take() == 'held'


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_of_a_process_that_was_killed_is_taken_over_at_once(path, owners, number):
  for _ in range(3):
    owner = owners()
    assert owner.take() == 'held'
    owner.process.send_signal(number)
    owner.process.wait()
    assert path.exists()
  with RunLock(path, stale=1e6):  # no waiting
    assert json.loads(path.read_text())['pid'] == os.getpid()
  assert list(path.parent.iterdir()) == []


def test_a_stopped_process_is_alive(path, owners):
  owner = owners()
  assert owner.take() == 'held'
  owner.process.send_signal(signal.SIGSTOP)
  with pytest.raises(UserError, match=f'process {owner.pid} '):
    RunLock(path, stale=0.0).acquire()


def test_another_process_with_the_same_number_is_not_the_owner(path):
  lock = RunLock(path)
  lock._owner['start'] = '1'
  lock.acquire()
  with RunLock(path, stale=1e6):
    with pytest.raises(RetryError, match='has taken over'):
      lock.check()
    lock.release()  # not ours any more
    assert path.exists()


def test_on_another_machine_a_beat_shows_that_the_owner_lives(path, owners):
  owner = owners('another machine')
  assert owner.take() == 'held'
  start = time.monotonic()
  with pytest.raises(UserError, match=f'is in use by process {owner.pid} on '):
    RunLock(path, beat=0.1, stale=1000.0).acquire()
  assert time.monotonic() - start < 500
  owner.process.send_signal(signal.SIGSTOP)
  second = RunLock(path, beat=0.1, stale=0.5)
  second.acquire()
  owner.process.send_signal(signal.SIGCONT)
  owner.go_on()
  assert owner.line().startswith(f'lost workdir: process {os.getpid()} on ')
  second.check()
  second.release()


@pytest.mark.skipif(not os.path.exists('/proc/self/ns/pid') or os.getuid() != 0, reason='needs Linux and root')
def test_a_container_with_process_numbers_of_its_own_is_another_machine(path):
  command = ['unshare', '--pid', '--fork', '--mount-proc', sys.executable, '-c', OWNER, str(path), '1000']
  process = subprocess.Popen(command, text=True, cwd=tiny.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             stderr=subprocess.DEVNULL)
  if process.stdout.readline().strip() != 'ready':
    pytest.skip('cannot make a process namespace')
  process.stdin.write('\n')
  process.stdin.flush()
  assert process.stdout.readline().strip() == 'held'
  with pytest.raises(UserError, match='is in use by process 1 on '):
    RunLock(path, beat=0.1, stale=1000.0).acquire()
  process.kill()
  process.communicate()


def test_on_an_object_store(tmp_path, monkeypatch):
  fake = Bucket(path=str(tmp_path), fs=LocalFileSystem(auto_mkdir=True))
  monkeypatch.setattr(type(backend.fsspec_backend), '_get_filesystem', lambda self, name: fake)
  monkeypatch.setattr(lock_lib, '_SETTLE', 0.1)
  path = epath.Path('gs://bucket/run/run.lock')
  owner = RunLock(path, beat=0.1)
  with owner:
    assert json.loads((tmp_path / 'run' / 'run.lock').read_text())['pid'] == os.getpid()
    with pytest.raises(UserError, match='is in use'):
      RunLock(path).acquire()
    (tmp_path / 'run' / 'run.lock').write_text(json.dumps(dict(owner._owner, machine='another')))
    with pytest.raises(UserError, match='is in use'):  # it beats
      RunLock(path, beat=0.1, stale=1000.0).acquire()
  assert not (tmp_path / 'run' / 'run.lock').exists()
  (tmp_path / 'run' / 'run.lock').write_text(json.dumps(dict(owner._owner, machine='another')))
  with RunLock(path, beat=0.1, stale=0.5) as second:
    with pytest.raises(RetryError, match='has taken over'):
      owner.check()
    second.check()


@pytest.mark.parametrize('content', ['', '{', '[]', '{"machine": 3, "pid": "x"}', '{"pid": 1e400}'])
def test_what_is_no_lock_holds_nobody(path, content, monkeypatch):
  monkeypatch.setattr(lock_lib, '_SETTLE', 0.1)
  path.parent.mkdir()
  path.write_text(content)
  with RunLock(path, beat=0.1, stale=0.3):
    assert json.loads(path.read_text())['pid'] == os.getpid()


def test_a_link_in_place_of_the_lock_is_not_followed(path, tmp_path):
  (tmp_path / 'other').write_text('mine')
  path.parent.mkdir()
  os.symlink(tmp_path / 'other', path)
  with RunLock(path, beat=0.1, stale=0.3):
    assert not os.path.islink(path)
  assert (tmp_path / 'other').read_text() == 'mine'


def test_a_lock_that_was_removed_by_hand_comes_back(path):
  with RunLock(path, beat=0.05) as lock:
    path.unlink()
    while not path.exists():
      time.sleep(0.01)
    lock.check()


def test_what_cannot_be_locked(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(FileError, match='workdir: cannot write .*run.lock: .*Choose another --workdir'):
    RunLock(epath.Path(tmp_path / 'file' / 'run.lock')).acquire()


@pytest.mark.slow
def test_a_second_run_in_one_directory_is_refused_and_changes_nothing(data_dir, tmp_path):
  config = tiny.config(data_dir, **{'train.duration': '100000 steps'})
  workdir, first = tmp_path / 'run', tiny.write(config, tmp_path)
  other = tiny.write(tiny.config(data_dir, seed=7), pathlib.Path(tmp_path / 'other').mkdir() or tmp_path / 'other')
  running = tiny.command('main', f'--config={first}', f'--workdir={workdir}')
  while not (workdir / 'config.json').exists():
    time.sleep(0.1)
    assert running.poll() is None, running.communicate()
  before = (workdir / 'config.json').read_bytes()
  for recipe in (first, other):
    process = tiny.command('main', f'--config={recipe}', f'--workdir={workdir}')
    _, error = process.communicate()
    assert process.returncode == 1, error
    assert error.count('\n') == 1 and f'{workdir} is in use by process {running.pid} on' in error, error
  assert (workdir / 'config.json').read_bytes() == before and running.poll() is None
  running.kill()
  running.communicate()
  process = tiny.command('main', f'--config={first}', f'--workdir={workdir}', '--config.train.duration=100000 steps')
  while 'First step' not in (line := process.stdout.readline()):
    assert line, process.communicate()
  process.kill()
  process.communicate()
