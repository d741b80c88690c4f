"""The soak: what counts as survived, and a short one with real processes."""
import json
import os
import pathlib
import subprocess
import sys

import pytest

from experiments.soak import faults, ledger

ROOT = pathlib.Path(__file__).parents[2]


def test_a_fault_is_survived_only_if_its_run_ends_like_the_one_without(tmp_path):
  book = ledger.Ledger(tmp_path / 'ledger.jsonl')
  for number, kind in ((1, 'kill'), (1, 'flip'), (2, 'kill'), (3, 'kill'), (3, 'flip')):
    book.add(round=number, fault=kind)
  book.add(round=1, identical=True)
  book.add(round=2, identical=False)
  book.add(round=3, failed='flip: no new checkpoint')  # so that it has not reached its end
  again = ledger.Ledger(tmp_path / 'ledger.jsonl')
  assert again.entries == book.entries and again.next_round() == 4
  assert ledger.table(again.entries).splitlines()[2:] == [
      '| flip | 2 | 1 |', '| kill | 3 | 1 |', '| **all, 2 kinds** | 5 | 2 |', '',
      '2 runs, 1 of them bit for bit like the one without faults.']
  assert len(ledger.failures(again.entries)) == 2


def test_there_are_faults_of_many_kinds():
  tables = faults.RUNNING, faults.ENDING, faults.BETWEEN
  assert len({kind for table in tables for kind in table}) == sum(map(len, tables)) >= 12
  assert set(faults.DAMAGES_NEWEST) <= set(faults.BETWEEN)


@pytest.mark.slow
def test_three_minutes(tmp_path):
  """As continuous integration runs it."""
  done = subprocess.run([sys.executable, '-m', 'experiments.soak', '--minutes=3', f'--output={tmp_path}'], cwd=ROOT,
                        env=dict(os.environ, JAX_PLATFORMS='cpu'), capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
  entries = list(map(json.loads, (tmp_path / 'ledger.jsonl').read_text().splitlines()))
  assert sum('fault' in entry for entry in entries) > 5
