"""Nothing that a run prints ends it, and the log in its directory has it all."""
import io
import logging
import os
import pty
import subprocess
import sys

import pytest

from tests import tiny
from tests.test_end_to_end import saved
from vit_jax.guards.output import Output


def run(recipe, workdir, first='', **options):
  """Start a run in a shell, after the command `first`."""
  return subprocess.Popen(['sh', '-c', f'{first} exec "$0" "$@"', sys.executable, '-m', 'vit_jax.main', f'--config={recipe}',
                           f'--workdir={workdir}'], cwd=tiny.ROOT, stdin=subprocess.DEVNULL, **options)


@pytest.fixture(scope='module')
def recipe(data_dir, tmp_path_factory):
  return tiny.write(tiny.config(data_dir, **{'train.duration': '40 steps', 'train.eval_every': '40 steps'}),
                    tmp_path_factory.mktemp('recipe'))


def test_a_reader_that_leaves_and_a_full_disk(recipe, tmp_path):
  """As `… | head -1 2> /dev/full` does, with little else: no home, cache or folder for temporary files, 64 descriptors.

  The locale has no ×, and the workdir has spaces, parentheses, no ASCII and a long name.
  """
  workdir = tmp_path / 'Lauf ü (1)' / ('x' * 200)
  environ = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'LC_ALL': 'C', 'PYTHONIOENCODING': 'ascii', 'TZ': 'Asia/Kolkata',
             'TMPDIR': '/nonexistent', 'VIT_JAX_CACHE': '/proc/nonexistent', 'JAX_ENABLE_COMPILATION_CACHE': 'true'}
  environ.pop('HOME', None)
  with open('/dev/full', 'wb') as full, run(
      recipe, workdir, 'ulimit -n 64;', env=environ, stdout=subprocess.PIPE, stderr=full) as process:
    assert process.stdout.readline().startswith(b'devices     1 \\xd7 cpu')
    process.stdout.close()
  log = (workdir / 'log.txt').read_text(encoding='utf-8')
  assert process.returncode == 0, log
  assert '40' in saved(workdir) and 'step 40/40  evaluation' in log and 'devices     1 × cpu' in log
  assert 'warning: standard output is gone ([Errno 32] Broken pipe); the run goes on' in log
  assert '+0530, process' in log.splitlines()[0]


def test_a_terminal_that_is_closed(recipe, tmp_path):
  master, terminal = pty.openpty()
  process = run(recipe, tmp_path, env={**os.environ, 'JAX_PLATFORMS': 'cpu'}, stdout=terminal, stderr=terminal,
                start_new_session=True)
  os.close(terminal)
  os.read(master, 1)
  os.close(master)
  assert process.wait() == 0
  log = (tmp_path / 'log.txt').read_text()
  assert '40' in saved(tmp_path) and 'is gone ([Errno 5] Input/output error)' in log
  assert [f'step {step}/40  loss' in log for step in range(1, 41)] == [True] * 40  # also those that the bar replaced


def test_closed_files_are_not_taken_for_the_next_one_that_is_opened():
  script = 'import os\nfrom vit_jax.guards import output\noutput.open_standard_files()\nprint("×")\nos._exit(os.open("/", os.O_RDONLY))'
  assert subprocess.run(['sh', '-c', f"exec {sys.executable} -c '{script}' <&- >&- 2>&-"], cwd=tiny.ROOT, check=False).returncode >= 3


def test_the_log_gets_what_is_printed_but_no_progress_bar(monkeypatch):
  found, stream, before = [], io.StringIO(), sys.stderr
  monkeypatch.setattr(sys, 'stdout', stream)
  with Output(found.append):
    print('a × b')
    print('\r 50 %', end='')
    logging.getLogger('absl').warning('the disk is %s', 'slow')
    stream.close()
    print('later')
  assert ''.join(found).splitlines() == [
      'a × b', 'warning: the disk is slow', 'later', 'warning: standard output is gone (I/O operation on closed file); the run goes on, and prints to this log only', '']
  assert sys.stdout is stream and sys.stderr is before
