"""Callbacks of commands that fail."""
import pytest

from vit_jax.base import exits
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


@pytest.mark.parametrize('error, status', [(None, None), (KeyboardInterrupt(), 130)])
def test_commands_run_them(error, status, calls, monkeypatch):
  monkeypatch.setattr(cli, 'flags', type('Flags', (), {'FLAGS': {'verbosity': type('Flag', (), {'present': True})}}))

  def fail():
    raise error or ZeroDivisionError

  with pytest.raises(SystemExit if error else ZeroDivisionError) as raised:
    cli.call(fail)
  assert calls == ([error] if error else ['before traceback'])
  assert getattr(raised.value, 'code', None) == status
