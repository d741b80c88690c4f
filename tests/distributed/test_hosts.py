"""Several processes on this machine train like one, stop together, and end together if one is lost."""
import json
import signal
import socket
import time

import numpy as np
import pytest

from tests import tiny
from tests.distributed.test_control_channel import free_address
from tests.test_end_to_end import DEEP, final_state, saved, wait_for_compilation
from vit_jax import train
from vit_jax.base import exits
from vit_jax.distributed import hosts
from vit_jax.run import loop

DEVICES = 2  # of each process
STRATEGIES = {
    'pmap': (),
    'mesh': ('--config.parallel.strategy=mesh', '--config.parallel.fsdp=4'),  # neither process holds a whole state
}


def start(module, arguments, count=2):
  """Start `count` processes of one command; `arguments` may be a function of the process index."""
  address = free_address()
  return [tiny.command(module, *(arguments(index) if callable(arguments) else arguments), f'--coordinator={address}',
                       f'--processes={count}', f'--process={index}', devices=DEVICES) for index in range(count)]


def end(processes, seconds=100):
  """Wait for processes; return [(exit status, output, error)]."""
  results = []
  try:
    for process in processes:
      output, error = process.communicate(timeout=seconds)
      results.append((process.returncode, output, error))
  finally:
    for process in processes:
      process.kill()
      process.wait()
      for pipe in (process.stdout, process.stderr):
        pipe.close()
  return results


def wait_for_line(workdir, step, processes):
  """Wait until metrics.jsonl has reached a step."""
  path = workdir / 'metrics.jsonl'
  while not path.exists() or not tiny.metrics(workdir) or tiny.metrics(workdir)[-1][0] < step:
    assert all(process.poll() is None for process in processes), end(processes)
    time.sleep(0.02)


def assert_same_training(config, workdir, other, rtol=2e-5):
  """Compare as `test_many_devices_train_like_one` does; a longer run accumulates more rounding."""
  names = 'train/loss', 'train/grad_norm'
  np.testing.assert_allclose(tiny.metrics(workdir, names), tiny.metrics(other, names), rtol=rtol)
  step, state, record = final_state(config, workdir)
  other_step, other_state, other_record = final_state(config, other)
  assert state.seen == other_state.seen and step == other_step and record.position == other_record.position


@pytest.mark.parametrize('strategy', [
    pytest.param(name, marks=pytest.mark.slow if name == 'mesh' else ()) for name in STRATEGIES])
def test_two_processes_resume_like_an_uninterrupted_run(strategy, data_dir, tmp_path, monkeypatch):
  """Same examples in the same order, same losses, the same checkpoints; evaluation by two processes gives the same numbers."""
  config = tiny.config(data_dir)
  whole, resumed = tmp_path / 'whole', tmp_path / 'resumed'
  last = train.run(config, whole)
  with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
    patch.setattr(loop, 'evaluate', lambda parts, state: 1 / 0)  # at step 6, which is saved, its evaluation still due
    train.run(config, resumed)
  recipe = tiny.write(config, tmp_path)
  results = end(start('main', (f'--config={recipe}', f'--workdir={resumed}', *STRATEGIES[strategy])))
  assert [status for status, _, _ in results] == [0, 0], results
  outputs = [output for _, output, _ in results]
  for index, output in enumerate(outputs):
    assert f'process {index} of 2 on {socket.gethostname()}: {DEVICES} × cpu (cpu)' in output
  for line in (f'strategy    {strategy}', f'devices     {2 * DEVICES} × cpu', 'resuming after step 6'):
    assert line in outputs[0]
  assert 'step 12/12' not in outputs[1]  # only process 0 logs
  steps = [step for step, _ in tiny.metrics(resumed, ('step',))]
  assert steps == [1, 2, 3, 4, 5, 6, 6, 7, 8, 9, 10, 11, 12, 12]  # evaluated at 6 and 12
  assert_same_training(config, resumed, whole)
  assert saved(resumed) == ('12', '8')
  (status, output, _), (other_status, other_output, _) = end(start('evaluate', (f'--workdir={resumed}',)))
  evaluated = json.loads(output.splitlines()[-1])  # after what gloo prints
  assert (status, other_status, evaluated['step']) == (0, 0, 12)
  assert 'accuracy' not in other_output
  np.testing.assert_allclose([evaluated[name] for name in last], list(last.values()), rtol=2e-5)


def kill(index, arguments, workdir, after):
  """Kill one of two processes after step `after`; return (exit status, error) of the other, which ends by itself."""
  processes = start('main', arguments)
  wait_for_line(workdir, after, processes)
  processes[index].kill()
  begin = time.monotonic()
  status, _, error = end(processes)[1 - index]
  assert time.monotonic() - begin < 60 and status != 0
  assert saved(workdir) and all(int(step) % 20 == 0 for step in saved(workdir))
  return status, error


@pytest.mark.slow
def test_a_killed_process_ends_the_other_and_the_restarted_job_resumes(data_dir, tmp_path):
  """First kill process 1, then process 0 of the restarted two; a single process finishes the run."""
  config = tiny.config(data_dir, **{
      'train.duration': '150 steps', 'train.log_every': '10 steps', 'train.eval_every': '150 steps',
      'checkpoint.every': '20 steps'})
  workdir = tmp_path / 'run'
  arguments = f'--config={tiny.write(config, tmp_path)}', f'--workdir={workdir}'
  status, error = kill(1, arguments, workdir, after=30)
  assert status == exits.EXIT_RETRY and 'Traceback' not in error
  assert f'process 1 on {socket.gethostname()} is gone' in error and 'resume from the last checkpoint' in error
  step = tiny.metrics(workdir)[-1][0]
  _, error = kill(0, arguments, workdir, after=step + 20)
  # jax's coordinator died with it: jax may abort before our message is printed.
  assert f'process 0 on {socket.gethostname()} is gone' in error or 'coordination service' in error
  train.run(config, workdir)
  train.run(config, tmp_path / 'whole')
  assert_same_training(config, workdir, tmp_path / 'whole', rtol=5e-4)


def test_a_signal_to_one_process_stops_all_after_the_same_step(data_dir, tmp_path):
  """Test SIGINT, the signal with the longer path: it is passed on as SIGTERM."""
  config = tiny.config(data_dir, **{'train.duration': '50_000 steps', 'checkpoint.every': '99_999 steps',
                                    'train.log_every': '20 steps', 'train.eval_every': '50_000 steps'})
  processes = start('main', (f'--config={tiny.write(config, tmp_path)}', f'--workdir={tmp_path / "run"}'))
  wait_for_line(tmp_path / 'run', 20, processes)
  processes[1].send_signal(signal.SIGINT)
  begin = time.monotonic()
  results = end(processes)
  assert time.monotonic() - begin < 60
  assert [status for status, _, _ in results] == [128 + signal.SIGTERM, 128 + signal.SIGINT], results
  step, = saved(tmp_path / 'run')
  assert f'Stopped after step {step}, which is saved' in results[0][1]
  assert not any('Traceback' in error for _, _, error in results)


@pytest.mark.slow
@pytest.mark.parametrize('index', [0, 1])
def test_a_process_that_is_stopped_is_named_and_ends_the_other(index, data_dir, tmp_path):
  config = tiny.config(data_dir, **{'train.duration': '50_000 steps', 'checkpoint.every': '10 steps',
                                    'train.eval_every': '50_000 steps'})
  processes = start('main', (f'--config={tiny.write(config, tmp_path)}', f'--workdir={tmp_path / "run"}'))
  wait_for_line(tmp_path / 'run', 20, processes)
  processes[index].send_signal(signal.SIGSTOP)
  _, error = processes[1 - index].communicate(timeout=200)
  assert processes[1 - index].returncode == exits.EXIT_RETRY, error
  assert f'process {index} on {socket.gethostname()} has not answered for 60 s: stopped' in error
  processes[index].send_signal(signal.SIGCONT)
  processes[index].communicate(timeout=100)
  assert processes[index].returncode not in (None, 0) and saved(tmp_path / 'run')


def test_sigterm_to_a_compiling_process_ends_all_at_once(data_dir, tmp_path):
  recipe = tiny.write(tiny.config(data_dir, **DEEP), tmp_path)
  processes = start('main', (f'--config={recipe}', f'--workdir={tmp_path / "run"}'))
  wait_for_compilation(processes[0])
  processes[1].send_signal(signal.SIGTERM)
  begin = time.monotonic()
  (status, output, error), (stopped, other_output, _) = end(processes)
  assert time.monotonic() - begin < 10 and (status, stopped) == (exits.EXIT_RETRY, 128 + signal.SIGTERM)
  assert f'process 1 on {socket.gethostname()} is gone' in error
  assert 'resume from the last checkpoint, if there is' in error
  assert 'Stopped before the first step was done' in other_output and 'First step took' not in output
  assert not saved(tmp_path / 'run')


def test_processes_with_different_configs_are_rejected_before_compilation(data_dir, tmp_path):
  config = tiny.config(data_dir)
  recipe = tiny.write(config, tmp_path)
  results = end(start('main', lambda index: (
      f'--config={recipe}', f'--workdir={tmp_path / "run"}', f'--config.train.log_every={index + 1} steps',
      f'--config.data.threads={index}')))
  for status, output, error in results:
    assert status == 1 and 'Traceback' not in error and 'data.threads' not in error and 'First step' not in output
    assert f'process 1 on {socket.gethostname()}' in error
    assert 'config.train.log_every: "1 steps" there, "2 steps" here' in error
  assert not (tmp_path / 'run').exists()


class FakeChannel:
  """A control channel of two processes: process 1 sends what process 0 does, except for `other`."""

  def __init__(self, other):
    self.other = other

  def name(self, index):
    return f'process {index} on host{index}'

  def exchange(self, value):
    return [value, {**value, **self.other} if isinstance(value, dict) else self.other]


@pytest.mark.parametrize('other, message', [
    ({'code': '123'}, 'process 1 on host1:\n  code: "[0-9a-f]{12}" there, "123" here'),
    ({'versions': {'jax': '9'}}, 'versions.jax: "[0-9.]+" there, "9" here'),
    ({'devices': ['cpu', 'cpu']}, r'devices: \["cpu"\] there, \["cpu", "cpu"\] here'),
    ({'examples': 299}, 'examples: 300 there, 299 here')], ids=['code', 'versions', 'devices', 'data'])
def test_processes_that_differ_in_code_versions_devices_or_data_are_rejected(
    other, message, data_dir, tmp_path, monkeypatch):
  monkeypatch.setattr(hosts, '_channel', FakeChannel(other))
  with pytest.raises(hosts.ProcessMismatchError, match=message):
    train.run(tiny.config(data_dir), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_processes_that_see_different_checkpoints_are_listed(monkeypatch):
  monkeypatch.setattr(hosts, '_channel', FakeChannel(4))
  hosts.check_equal(4, 'checkpoints')
  message = 'different checkpoints: 8 on process 0 on host0, 4 on process 1 on host1'
  with pytest.raises(hosts.ProcessMismatchError, match=message):
    hosts.check_equal(8, 'checkpoints')


def test_a_workdir_that_is_not_shared_is_rejected_with_the_host_that_misses_it(data_dir, tmp_path):
  recipe = tiny.write(tiny.config(data_dir), tmp_path)
  results = end(start('main', lambda index: (f'--config={recipe}', f'--workdir={tmp_path / str(index)}')))
  for status, output, error in results:
    assert status == 1 and 'First step' not in output
    assert f'process 1 on {socket.gethostname()}: workdir: does not see the file that process 0 wrote' in error
    assert str(tmp_path / '0') in error
  assert sorted(path.name for path in (tmp_path / '0').iterdir()) == ['checkpoints', 'config.json'] and not (tmp_path / '1').exists()


def test_an_error_in_one_process_ends_all_and_all_print_it(data_dir, tmp_path):
  recipe = tiny.write(tiny.config(data_dir), tmp_path)
  results = end(start('main', lambda index: (f'--config={recipe}', f'--workdir={tmp_path / "run"}',
                                            *['--config.optim.name=adamz'] * index)))
  assert [status for status, _, _ in results] == [1, 1]
  assert f'process 1 on {socket.gethostname()} ended: UserError: ' in results[0][2] and 'adamz' in results[0][2]
  assert 'error: ' in results[1][2] and "unknown 'adamz'" in results[1][2]


def test_missing_processes_are_listed(data_dir, tmp_path):
  recipe = tiny.write(tiny.config(data_dir), tmp_path)
  process = tiny.command('main', f'--config={recipe}', f'--workdir={tmp_path / "run"}', '--start_timeout=1',
                         f'--coordinator={free_address()}', '--processes=3', '--process=0')
  _, error = process.communicate()
  assert process.returncode == 1 and 'Traceback' not in error
  assert 'error: --start_timeout: processes 1, 2 of 3 did not connect' in error
