"""Signals: whatever a run is doing, it saves what there is to save and exits with the signal's status."""
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from tests import tiny
from tests.test_end_to_end import assert_identical, saved
from vit_jax import train
from vit_jax.base import exits
from vit_jax.evaluators.base import EvalContext

TRIES = int(os.environ.get('VIT_JAX_TEST_INTERRUPTS', 3))
EVALUATORS = {f'test{number}': dict(kind='classification', split=f'test[:{64 + number}]') for number in range(2)}


@pytest.mark.parametrize('step', [6, pytest.param(12, marks=pytest.mark.slow)])
def test_a_signal_during_an_evaluation_is_obeyed_and_the_resumed_run_evaluates(step, data_dir, tmp_path, monkeypatch):
  """The evaluation stops after a batch, the step is saved, and the resumed run ends like the uninterrupted one."""
  config = tiny.config(data_dir, evaluators=EVALUATORS)
  train.run(config, tmp_path / 'whole')
  put, batches = EvalContext.put, []

  def put_and_signal(context, batch):
    batches.append(len(tiny.metrics(tmp_path / 'stopped')))
    if batches.count(step) == 3:
      os.kill(os.getpid(), signal.SIGTERM)
    return put(context, batch)

  with monkeypatch.context() as patch, pytest.raises(SystemExit) as exit:
    patch.setattr(EvalContext, 'put', put_and_signal)
    train.run(config, tmp_path / 'stopped')
  assert exit.value.code == 128 + signal.SIGTERM and batches.count(step) == 3
  assert saved(tmp_path / 'stopped')[0 if step == 12 else -1] == str(step)
  last = train.run(config, tmp_path / 'stopped')
  assert last and last == train.run(config, tmp_path / 'whole')
  names = [f'{name}/loss' for name in EVALUATORS]
  assert tiny.metrics(tmp_path / 'stopped', names) == tiny.metrics(tmp_path / 'whole', names)
  if step == 6:
    assert_identical(config, tmp_path / 'stopped', tmp_path / 'whole')


@pytest.mark.slow
def test_hangup_saves_unless_it_is_ignored_and_a_second_sigterm_does_not_break_the_save(data_dir, tmp_path):
  """First under nohup, which ignores SIGHUP: stopped and continued on the way, ended by SIGTERM, sent many times."""
  config = tiny.config(data_dir, **{'train.duration': '50_000 steps', 'checkpoint.every': '99_999 steps'})
  command = [sys.executable, '-m', 'vit_jax.main', f'--config={tiny.write(config, tmp_path)}',
             f'--workdir={tmp_path / "run"}']
  steps = []
  for nohup in (True, False):
    process = subprocess.Popen(['nohup', *command] if nohup else command, cwd=tiny.ROOT, text=True, stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, 'JAX_PLATFORMS': 'cpu'})
    wait_for_steps(process, tmp_path / 'run', 3)
    process.send_signal(signal.SIGHUP)
    if nohup:
      process.send_signal(signal.SIGSTOP)
      time.sleep(1.0)
      process.send_signal(signal.SIGCONT)
      wait_for_steps(process, tmp_path / 'run', 20)
      while process.poll() is None:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
    output, error = process.communicate()
    # A SIGTERM after the end of the run, while Python ends, is 143 to a shell as well.
    statuses = (128 + signal.SIGTERM, -signal.SIGTERM) if nohup else (128 + signal.SIGHUP,)
    assert process.returncode in statuses and 'Traceback' not in error, error
    steps.append(int(max(saved(tmp_path / 'run'), key=int)))
    assert f'Stopped after step {steps[-1]}, which is saved' in output
    assert steps[-1] == tiny.metrics(tmp_path / 'run')[-1][0]
  assert steps[0] >= 20 and steps[1] > steps[0]


def wait_for_steps(process, workdir, count):
  """Wait until a process has logged so many steps since now."""
  number = lambda: tiny.metrics(workdir)[-1][0] if (workdir / 'metrics.jsonl').exists() and tiny.metrics(workdir) else 0
  first = number()
  while number() < first + count:
    assert process.poll() is None, process.communicate()
    time.sleep(0.05)


def test_ctrl_c_before_the_first_step_is_never_swallowed(data_dir, tmp_path):
  """During imports, start-up and compilation; what was recorded for the end of the first step is saved."""
  recipe, rng = tiny.write(tiny.config(data_dir, **{'train.duration': '50_000 steps'}), tmp_path), random.Random(0)
  for number in range(TRIES):
    process = tiny.command('main', f'--config={recipe}', f'--workdir={tmp_path / str(number)}')
    delay = 0.2 + 5.0 * (number + rng.random()) / TRIES
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    output, error = process.communicate(timeout=100)
    # Python itself ends by the signal, as shells report by 130 too, until the command's first line has run.
    assert process.returncode == exits.EXIT_INTERRUPTED or delay < 2.0 and process.returncode == -signal.SIGINT, error
    assert 'Stopped after step' in output or not saved(tmp_path / str(number))
