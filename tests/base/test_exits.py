"""Exit statuses and callbacks of commands that fail."""
import os
import subprocess
import sys

import pytest

from tests import golden_files, tiny
from vit_jax.base import exits
from vit_jax.base.errors import RetryError, UserError
from vit_jax.run import cli


@pytest.fixture
def calls(monkeypatch):
  """The calls that two registered callbacks receive, in order."""
  seen = []
  monkeypatch.setattr(exits, '_before_traceback', [])
  monkeypatch.setattr(exits, '_on_failure', [])
  traceback, failure = lambda: seen.append('before traceback'), seen.append
  for _ in range(2):  # a callback that is registered again still runs once
    exits.before_traceback(traceback)
    exits.on_failure(failure)
  return seen


def test_callbacks_run_once_in_order(calls):
  exits.on_failure(lambda error: calls.append(f'then {error}'))
  exits.run_on_failure(KeyError('x'))
  exits.run_before_traceback()
  assert calls[1:] == ["then 'x'", 'before traceback'] and isinstance(calls[0], KeyError)


@pytest.mark.parametrize('error, status', [
    (None, None), (KeyboardInterrupt(), 130), (UserError('data.name: missing'), 1), (RetryError('the disk is full'), 75)])
def test_commands_run_them(error, status, calls, monkeypatch):
  monkeypatch.setattr(cli, 'flags', type('Flags', (), {'FLAGS': {'verbosity': type('Flag', (), {'present': True})}}))

  def fail():
    raise error or ZeroDivisionError

  with pytest.raises(SystemExit if error else ZeroDivisionError) as raised:
    cli.call(fail)
  assert calls == ([error] if error else ['before traceback'])
  assert getattr(raised.value, 'code', None) == status


@pytest.mark.parametrize('command', [[], ['describe', str(golden_files.MODELS['vit_token'])]], ids=['list', 'describe'])
def test_output_that_nobody_reads_is_no_error(command):
  """`vit-jax describe … | head -1`: the reader closes the pipe, and nothing is printed about it."""
  with subprocess.Popen([sys.executable, '-m', 'vit_jax', *command], cwd=tiny.ROOT, text=True, stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE, env={**os.environ, 'JAX_PLATFORMS': 'cpu'}) as process:
    process.stdout.close()
    error = process.stderr.read()
  assert process.returncode == exits.EXIT_PIPE and 'Traceback' not in error and 'roken' not in error, error


@pytest.mark.parametrize('flag, message', [
    ('--batch_size=abc', "error: batch_size: expected a whole number, got 'abc'"),
    ('--mean=x', "error: mean: expected a number, got 'x'")])
def test_numbers_that_cannot_be_read(flag, message):
  found = subprocess.run([sys.executable, '-m', 'vit_jax.predict', flag], cwd=tiny.ROOT, text=True, capture_output=True,
                         check=False)
  assert found.returncode == 1 and found.stderr.strip() == message
