"""Studies: what is done is kept, and the table has means and spreads."""
import json

import pytest

from experiments import study
from vit_jax.base.errors import UserError

NUMBERS = {'a/0': {'accuracy': 1.0}, 'a/1': {'accuracy': 2.0}, 'b/0': {'accuracy': 5.0, 'loss': 0.25}}


def trials(calls, broken=None):
  """Return three trials that write down their calls; `broken` raises."""
  def measure(key, folder):
    calls.append((key, folder))
    if key == broken:
      raise KeyboardInterrupt
    return NUMBERS[key]

  return [study.Trial(key[0], int(key[2]), lambda folder, key=key: measure(key, folder)) for key in NUMBERS]


def test_an_interrupted_study_goes_on(tmp_path):
  calls, results, runs = [], tmp_path / 'results', tmp_path / 'runs'
  with pytest.raises(KeyboardInterrupt):
    study.run(trials(calls, broken='b/0'), {'epochs': 1}, results, runs)
  assert json.loads((results / 'runs.json').read_text())['trials'] == {key: NUMBERS[key] for key in ('a/0', 'a/1')}
  study.run(trials(calls), {'epochs': 1}, results, runs)
  assert calls == [(key, runs / key) for key in ('a/0', 'a/1', 'b/0', 'b/0')]
  assert json.loads((results / 'runs.json').read_text()) == dict(settings={'epochs': 1}, trials=NUMBERS)


def test_the_table_has_a_line_per_row():
  # The sample standard deviation of 1 and 2 is the square root of 1/2.
  assert study.table(NUMBERS).splitlines()[2:] == ['| a | 1.50 ± 0.71 |  | 2 |', '| b | 5.00 | 0.25 | 1 |']


def test_other_settings_are_not_mixed(tmp_path):
  study.run(trials([]), {'epochs': 1}, tmp_path, tmp_path)
  with pytest.raises(UserError, match='holds trials with other settings'):
    study.run(trials([]), {'epochs': 2}, tmp_path, tmp_path)
