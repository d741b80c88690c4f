"""Retries: which errors may pass, how often, and what is said."""
import errno
import os
import subprocess
import sys

import pytest

from vit_jax.base import exits
from vit_jax.base.errors import FileError, MissingFileError, RetryError
from vit_jax.base.machine import retry


class HttpError(Exception):
  """As gcsfs raises it."""

  def __init__(self, code):
    super().__init__(f'{code}')
    self.code = code


def caused(error, cause):
  error.__cause__ = cause
  return error


@pytest.mark.parametrize('error', [
    OSError(errno.EIO, 'Input/output error'), OSError(errno.ESTALE, 'x'), OSError(errno.ETIMEDOUT, 'x'),
    ConnectionResetError(), TimeoutError(), MemoryError(), HttpError(503), HttpError(429),
    caused(FileError('1.jpg: cannot read'), OSError(errno.EIO, 'x')),
    RuntimeError(f'pread() failed: {os.strerror(errno.EIO)}; reading x'), ValueError('UNAVAILABLE: try again')])
def test_errors_that_may_pass(error):
  assert retry.may_pass(error)


@pytest.mark.parametrize('error', [
    FileNotFoundError(errno.ENOENT, 'x'), PermissionError(errno.EACCES, 'x'), OSError(errno.ENOSPC, 'x'),
    MissingFileError('x'), HttpError(404), ValueError('damaged'), RuntimeError('Corrupted Riegeli/records file'),
    OSError('Input/output error of unknown kind'), KeyError('code'), caused(RetryError('x'), TimeoutError())])
def test_errors_that_do_not_pass(error):
  assert not retry.may_pass(error)


@pytest.mark.parametrize('failures', [0, 1, 3])
def test_a_passing_error_is_tried_again_with_a_warning_each(failures, caplog):
  errors = [OSError(errno.EIO, 'Input/output error')] * failures

  def read():
    if errors:
      raise errors.pop()
    return 'bytes'

  assert retry.call(read, 'reading 1.jpg', delays=(0.01, 0.01, 0.01)) == 'bytes'
  assert [record.getMessage().partition(' in ')[0] for record in caplog.records] == [
      'reading 1.jpg: [Errno 5] Input/output error; trying again'] * failures


def test_a_try_before_the_call_counts(caplog):
  assert retry.call(lambda: 'bytes', 'reading', delays=(0.01,), failed=TimeoutError('slow')) == 'bytes'
  assert len(caplog.records) == 1
  with pytest.raises(RetryError, match='reading: slow; tried 1 time in'):
    retry.call(lambda: 'bytes', 'reading', delays=(), failed=TimeoutError('slow'))


def test_the_last_failure_says_what_was_tried_and_is_worth_a_restart():
  tries = []

  def read():
    tries.append(1)
    raise ConnectionResetError(errno.ECONNRESET, 'reset')

  with pytest.raises(RetryError, match=r'^reading 1.jpg: \[Errno \d+\] reset; tried 3 times in 0 s\. Start the same '
                     'command again') as caught:
    retry.call(read, 'reading 1.jpg', delays=(0.01, 0.01))
  assert len(tries) == 3 and isinstance(caught.value.__cause__, ConnectionResetError)
  assert exits.status_of(caught.value) == exits.EXIT_RETRY


def test_other_errors_are_raised_at_once():
  tries = []

  def read():
    tries.append(1)
    raise MissingFileError('1.jpg: not found')

  with pytest.raises(MissingFileError, match='^1.jpg: not found$'):
    retry.call(read, 'reading 1.jpg')
  assert len(tries) == 1


READ = '''
import pathlib, sys
from vit_jax.base.machine import retry
print(retry.call(lambda: pathlib.Path(sys.argv[1]).read_text(), 'reading it', delays=(0.01, 0.01, 0.01)))
'''


def test_a_disk_that_fails_three_reads(tmp_path):
  """Reads that the kernel fails, by strace."""
  path = tmp_path / 'file'
  path.write_text('whole')
  command = ['strace', '-f', '-o', os.devnull, '-P', str(path), '-e', 'trace=read', '-e']
  try:
    subprocess.run(['strace', '-o', os.devnull, 'true'], check=True, capture_output=True)
  except (OSError, subprocess.CalledProcessError):
    pytest.skip('needs strace, and the right to trace')
  python = [sys.executable, '-c', READ, str(path)]
  for times, output in (('1..3', 'whole\n'), ('1+', '')):
    done = subprocess.run([*command, f'inject=read:error=EIO:when={times}', *python], capture_output=True, text=True)
    assert done.stdout == output
    assert done.stderr.count('trying again in 0.0 s') == 3
    assert ('RetryError: reading it: [Errno 5]' in done.stderr) == (not output)
