"""Saves on disks that fail: system calls that return errors (strace), full disks (tmpfs), numbers that change on the way."""
import contextlib
import os
import re
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from tests import tiny
from tests.rundir.test_checkpoint import make_state, open_checkpoints, record
from vit_jax.base.errors import RetryError
from vit_jax.rundir import save_failures
from vit_jax.rundir.checks import readback

# Takes 'CALL ERROR WHEN' from its input, saves a step while every thread's WHEN-th such call fails, then one more.
VICTIM = '''
import faulthandler, os, pathlib, signal, subprocess, sys, time
from etils import epath
from tests.rundir.test_checkpoint import abstract, assert_bit_equal, make_state, open_checkpoints, record

directory = pathlib.Path(sys.argv[1])
checkpoints = open_checkpoints(epath.Path(directory), keep=2)

def save(step):
  checkpoints.save(step, make_state(step), record(step))
  warning = None
  while checkpoints._saving:
    warning = checkpoints.check() or warning
    time.sleep(0.01)
  return checkpoints.check() or warning

step = 3
for number in (1, 2, 3):
  assert save(number) is None
print('ready', flush=True)
for line in sys.stdin:
  call, error, when = line.split()
  faulthandler.dump_traceback_later(200, exit=True)
  tracer = subprocess.Popen(['strace', '-f', '-p', str(os.getpid()), '-o', sys.argv[2], '-e', f'trace={call}', '-e',
                             f'inject={call}:error={error}:when={when}'], stderr=subprocess.PIPE, text=True)
  assert 'attached' in tracer.stderr.readline()
  warning = save(step + 1)
  tracer.send_signal(signal.SIGINT)
  tracer.wait()
  newest = step if warning else step + 1
  step += 2
  assert save(step) is None
  whole = checkpoints.steps()
  assert newest in whole and step in whole, (newest, whole)
  for number in (newest, step):
    assert_bit_equal(checkpoints.restore(number, abstract(make_state()))[0], make_state(number))
  print(pathlib.Path(sys.argv[2]).read_text().count('INJECTED'), warning, flush=True)
'''

SOME = [('mkdir', 'EACCES', 1), ('mkdir', 'ENOSPC', 2), ('openat', 'EMFILE', 3), ('openat', 'EIO', 1), ('fsync', 'EIO', 2),
        ('write', 'ENOSPC', 1), ('writev', 'EIO', 2), ('rename', 'EIO', 1), ('rename', 'EIO', 2), ('unlinkat', 'EACCES', 2),
        ('pread64', 'EIO', 1)]
CALLS = [('mkdir', 'EIO'), ('mkdir', 'ENOSPC'), ('openat', 'EIO'), ('openat', 'EMFILE'), ('fsync', 'EIO'),
         ('write', 'ENOSPC'), ('writev', 'EIO'), ('rename', 'EIO'), ('unlink', 'EACCES'), ('unlinkat', 'EACCES'),
         ('rmdir', 'EIO'), ('pread64', 'EIO'), ('newfstatat', 'EIO'), ('getdents64', 'EIO')]


@pytest.fixture
def may_trace():
  try:
    probe = subprocess.run(['strace', '-o', '/dev/null', 'true'], capture_output=True, check=False)
  except FileNotFoundError:
    pytest.skip('needs strace')
  if probe.returncode:
    pytest.skip(f'strace is not allowed here: {probe.stderr}')


@pytest.mark.parametrize('faults', [SOME, pytest.param([(*call, when) for call in CALLS for when in range(1, 8)],
                                                       marks=pytest.mark.slow)], ids=['some', 'all'])
def test_failing_system_calls_are_one_line_and_never_lose_a_good_step(faults, may_trace, tmp_path):
  victim = subprocess.Popen([sys.executable, '-c', VICTIM, tmp_path / 'checkpoints', tmp_path / 'trace'], text=True,
                            cwd=tiny.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env=dict(os.environ, JAX_PLATFORMS='cpu'))
  assert victim.stdout.readline() == 'ready\n'
  injected = 0
  for call, error, when in faults:
    victim.stdin.write(f'{call} {error} {when}\n')
    victim.stdin.flush()
    answer = victim.stdout.readline()
    assert answer, (call, error, when, victim.communicate()[1])
    number, warning = answer.split(' ', 1)
    injected += int(number)
    assert warning == 'None\n' or re.match(r'warning: step \d+ is not saved: .*; step \d+ is saved\. Training goes on',
                                           warning)
  _, error = victim.communicate()
  assert victim.returncode == 0 and injected >= 10, error
  assert 'Traceback' not in error and all('old checkpoint cannot be removed' in line or 'Skipping merge' in line
                                          for line in error.splitlines()), error


@contextlib.contextmanager
def small_disk(path, size='1m'):
  """Mount a file system of a size in memory."""
  path.mkdir()
  mount = subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', path], capture_output=True, check=False)
  if mount.returncode:
    pytest.skip(f'cannot mount a small disk: {mount.stderr.decode()}')
  try:
    yield path
  finally:
    subprocess.run(['umount', '--lazy', path], check=True)


@pytest.mark.skipif(os.getuid() != 0, reason='needs root, to mount a small disk')
def test_a_full_disk_is_noticed_at_the_next_step_and_the_save_is_tried_again(tmp_path, monkeypatch):
  monkeypatch.setattr(save_failures, '_FIRST_DELAY', 0.05)
  with small_disk(tmp_path / 'disk') as disk:
    checkpoints = open_checkpoints(disk / 'checkpoints', keep=2)
    checkpoints.save(1, make_state(1), record(1))
    checkpoints.wait()
    (disk / 'filler').write_bytes(bytes(2**20 - sum(path.stat().st_size for path in disk.rglob('*')) - 2**16))
    state = make_state(2)
    state.params['kernel'] = np.random.default_rng(0).normal(size=(300, 300)).astype(np.float32)
    checkpoints.save(2, state, record(2))
    while not (warning := checkpoints.check()):
      time.sleep(0.01)
    assert re.search(r'step 2 is not saved: .*/checkpoints: No space left on device \(the state has 0\.3 MiB, there are '
                     r'0\.\d MiB free\); step 1 is saved', warning)
    assert checkpoints.check() is None and checkpoints.failing  # said once
    assert [path.name for path in (disk / 'checkpoints').iterdir()] == ['1']
    while not checkpoints.due(3, at_log=True, evaluated=False):
      time.sleep(0.01)
    (disk / 'filler').unlink()
    checkpoints.save(3, state, record(3))
    checkpoints.wait()
    assert checkpoints.steps() == [1, 3] and not checkpoints.failing
    checkpoints.close()


@pytest.mark.skipif(os.getuid() != 0, reason='needs root, to mount a small disk')
def test_saving_is_given_up_in_the_end(tmp_path, monkeypatch):
  monkeypatch.setattr(save_failures, '_FIRST_DELAY', 0.05)
  monkeypatch.setattr(save_failures, 'GIVE_UP', 0.3)
  with small_disk(tmp_path / 'disk', '64k') as disk:
    checkpoints = open_checkpoints(disk / 'checkpoints')
    with contextlib.suppress(OSError):
      (disk / 'filler').write_bytes(bytes(2**20))
    with pytest.raises(RetryError, match='step 1 is not saved: .*No space left.*nothing is saved yet.*same command again'):
      checkpoints.save_surely(1, make_state(), record(1), None, lambda: True)
    with pytest.raises(RetryError, match='^saving has failed for 0.005 minutes: step 2 is not saved'):
      checkpoints.save_surely(2, make_state(), record(2), None, lambda: False)
    checkpoints.close()
  assert not [thread for thread in threading.enumerate() if 'save' in thread.name]


def test_numbers_that_change_on_the_way_to_the_disk_are_noticed(tmp_path, monkeypatch):
  """As in a cable or in memory: the step gets no name, the older ones stay."""
  checkpoints = open_checkpoints(tmp_path, keep=2)
  for step in (1, 2):
    checkpoints.save(step, make_state(step), record(step))
    checkpoints.wait()
  state = make_state(3)

  def flip(tree):
    if tree is state:
      tree.params['kernel'].view(np.uint32)[1, 2] ^= 1 << 5

  with monkeypatch.context() as patch:
    before = readback.digests.compute
    patch.setattr(readback.digests, 'compute', lambda tree: (before(tree), flip(tree))[0])
    checkpoints.save(3, state, record(3))
    with pytest.raises(RetryError, match='the disk gave back other numbers than were written: params/kernel; step 2 is'):
      checkpoints.wait()
  assert checkpoints.steps() == [1, 2] and sorted(path.name for path in tmp_path.iterdir()) == ['1', '2']
  checkpoints.close()


def test_a_sample_of_a_large_state_is_read_back_other_arrays_every_time(monkeypatch):
  sizes = {f'array {number}': 1 << 20 for number in range(100)}
  monkeypatch.setattr(readback, 'SAMPLE_BYTES', 10 << 20)
  monkeypatch.setattr(readback, '_AT_ONCE', 4 << 20)
  samples = [readback._sample(sizes, step) for step in range(50)]
  assert all(len(set(sample)) == 10 for sample in samples) and set(sum(samples, [])) >= set(list(sizes)[:95])
  groups = list(readback._groups(samples[0], sizes))
  assert [len(group) for group in groups] == [4, 4, 2] and set.union(*groups) == set(samples[0])
  assert readback._sample({'a': 1, 'b': 2}, 0) == ['a', 'b']
  assert readback._sample({'a': 1 << 40}, 0) == ['a']


def test_a_step_that_cannot_be_removed_is_a_warning(tmp_path, caplog):
  checkpoints = open_checkpoints(tmp_path / 'checkpoints', keep=1)
  checkpoints.save(1, make_state(1), record(1))
  checkpoints.wait()
  if subprocess.run(['chattr', '+i', tmp_path / 'checkpoints' / '1' / 'run' / 'metadata'], capture_output=True,
                    check=False).returncode:
    pytest.skip('cannot make a file immutable')
  try:
    checkpoints.save(2, make_state(2), record(2))
    checkpoints.wait()
    assert 'an old checkpoint cannot be removed: Operation not permitted' in caplog.text
    assert checkpoints.steps() == [1, 2] and not checkpoints.failing
  finally:
    subprocess.run(['chattr', '-i', tmp_path / 'checkpoints' / '1' / 'run' / 'metadata'], check=True)
  checkpoints.save(3, make_state(3), record(3))
  checkpoints.close()
  assert checkpoints.steps() == [3]
