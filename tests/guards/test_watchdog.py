"""Processes that hang are ended; those that are slow, or stopped and continued, are not."""
import os
import signal
import subprocess
import sys
import time

import pytest

from tests import tiny
from tests.test_end_to_end import assert_identical
from vit_jax import train
from vit_jax.base import exits

# Works for a second whenever it reads a line, then hangs in a read of its standard input.
SCRIPT = '''
import os, sys, time
from vit_jax.guards import watchdog
from vit_jax.guards.signals import StopRequest
from vit_jax.guards.watchdog import Watchdog, Work

timeout, watchdog.GRACE = map(float, sys.argv[1:3])
log = os.open(sys.argv[3], os.O_WRONLY | os.O_CREAT)
with StopRequest() as stop, Watchdog(timeout, stop, lambda: log) as dog:
  stop.arm()
  for step in range(12):
    print(step, flush=True)
    dog.begin(Work.STEP, step)
    time.sleep(0.25)
  dog.begin(Work.FETCH, step)
  print('hangs', flush=True)
  os.read(0, 1)
'''


@pytest.fixture
def start(tmp_path):
  """(timeout, grace) → a process that runs SCRIPT and has begun to work."""
  found = []

  def start(timeout, grace):
    process = subprocess.Popen(
        [sys.executable, '-c', SCRIPT, str(timeout), str(grace), str(tmp_path / 'log')], cwd=tiny.ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, 'JAX_PLATFORMS': 'cpu'})
    found.append(process)
    assert process.stdout.readline()
    return process

  yield start
  for process in found:
    process.kill()
    process.communicate()


def test_a_hang_ends_the_process_with_the_stacks_and_a_pause_does_not(start, tmp_path):
  process = start(timeout=2.0, grace=60.0)
  process.send_signal(signal.SIGSTOP)
  time.sleep(5.0)
  process.send_signal(signal.SIGCONT)
  error = process.stderr.read()  # its end comes with that of the process
  assert process.wait() == exits.EXIT_RETRY, error
  assert 'nothing was done for 2 s (train.hang_timeout): this process hangs while reading a batch after step 11' in error
  assert 'Current thread' in error and 'File "<string>", line 17 in <module>' in error
  assert (tmp_path / 'log').read_text().startswith('error: nothing was done for 2 s')


def test_a_signal_is_obeyed_by_a_process_that_hangs(start):
  process = start(timeout=100.0, grace=1.0)
  while process.stdout.readline().strip() != 'hangs':
    pass
  process.send_signal(signal.SIGTERM)
  assert process.wait(timeout=60) == 128 + signal.SIGTERM
  assert 'signal 15 was not obeyed for 1 s' in process.stderr.read()


def test_a_second_ctrl_c_ends_a_process_that_hangs_at_once(start):
  process = start(timeout=100.0, grace=100.0)
  while process.stdout.readline().strip() != 'hangs':
    pass
  process.send_signal(signal.SIGINT)
  assert 'press Ctrl-C again' in process.stdout.readline()
  process.send_signal(signal.SIGINT)
  assert process.wait(timeout=10) == exits.EXIT_INTERRUPTED


HANG = '''
import os
from vit_jax.evaluators.base import EvalContext
if not os.path.exists(PATH):
  os.mkfifo(PATH)
  EvalContext.put = lambda context, batch: open(PATH).read()  # nobody ever writes
'''


@pytest.mark.slow
def test_a_run_that_hangs_ends_and_the_same_command_resumes(data_dir, tmp_path):
  """A read that never returns, in the evaluation of step 6 when step 4 is saved."""
  config = tiny.config(data_dir, **{'train.hang_timeout': '0.4 minutes'})
  recipe = tiny.write(config, tmp_path)
  recipe.write_text(HANG.replace('PATH', repr(str(tmp_path / 'fifo'))) + recipe.read_text())
  results = []
  for _ in range(2):
    process = tiny.command('main', f'--config={recipe}', f'--workdir={tmp_path / "run"}')
    results.append((*process.communicate(timeout=300), process.returncode))
  assert [status for *_, status in results] == [exits.EXIT_RETRY, 0], results
  assert 'this process hangs while evaluating after step 6' in results[0][1] and 'resuming after step 4' in results[1][0]
  log = (tmp_path / 'run' / 'log.txt').read_text()
  assert 'hangs while evaluating' in log and 'in evaluate' in log and 'resuming after step 4' in log
  train.run(config, tmp_path / 'whole')
  assert_identical(config, tmp_path / 'run', tmp_path / 'whole')
