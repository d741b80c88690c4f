"""metrics.jsonl on disks that fail, and with damaged lines."""
import os
import shutil
import subprocess

import pytest

from vit_jax.run.writer import Writer
from vit_jax.rundir.layout import RunDir
from vit_jax.rundir.metrics import MetricsFile


@pytest.fixture
def small_disk(tmp_path):
  """A file system of 64 KiB."""
  path = tmp_path / 'disk'
  path.mkdir()
  if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', path], capture_output=True, check=False).returncode:
    pytest.skip('cannot mount a file system')
  yield path
  subprocess.run(['umount', '--lazy', path], check=True)


def steps(workdir):
  return [values['step'] for _, values in RunDir(workdir).read_metrics()]


def test_a_full_disk_is_reported_once_and_nothing_is_missing_when_there_is_room_again(small_disk, capsys):
  writer = Writer(RunDir(small_disk), 100, 0)
  writer.write(1, {'train/loss': 1.0})
  ballast = small_disk / 'ballast'
  with pytest.raises(OSError):
    with ballast.open('wb', buffering=0) as file:
      while file.write(b'-' * 512):
        pass
  for step in range(2, 60):
    writer.write(step, {f'train/{number}': 1.0 for number in range(10)})
    writer.sync()
  assert steps(small_disk)[-1] < 59
  printed = capsys.readouterr().out
  assert printed.count('metrics.jsonl: cannot be written: [Errno 28] No space left on device. Training goes on') == 1
  assert printed.count('warning: tensorboard: cannot be written') == 1
  ballast.unlink()
  writer.write(60, {'train/loss': 1.0})
  assert steps(small_disk) == list(range(1, 61))
  assert 'metrics.jsonl is written again, and complete' in capsys.readouterr().out
  writer.close()


def test_a_folder_that_vanishes_is_not_made_again(tmp_path):
  workdir, warnings = tmp_path / 'run', []
  workdir.mkdir()
  metrics = MetricsFile(RunDir(workdir).metrics_path, 0, warnings.append)
  workdir.rename(tmp_path / 'away')
  metrics.append(1, {'loss': 1.0})
  metrics.append(2, {'loss': None})
  assert not workdir.exists() and len(warnings) == 1 and 'No such file or directory' in warnings[0]
  (tmp_path / 'away').rename(workdir)
  metrics.close()
  assert steps(workdir) == [1, 2] and len(warnings) == 2


def test_damaged_lines_are_set_aside(tmp_path, capsys, caplog):
  good = ['{"step": 1, "train/loss": 1.0}\n', '{"step": 2, "train/loss": 2.0}\n']
  bad = [b'{"step": 1, "train/lo\n', b'\0\0\0\n', b'\xff\xfe\n', b'[1]\n', b'{"loss": 1}\n', b'{"step": "1"}\n', b'[' * 9999 + b'\n', b'\n']
  (tmp_path / 'metrics.jsonl').write_bytes(good[0].encode() + b''.join(bad) + good[1].encode())
  assert RunDir(tmp_path).metrics_at(2) == {'step': 2, 'train/loss': 2.0} and '8 damaged lines are ignored' in caplog.text
  for _ in range(2):
    Writer(RunDir(tmp_path), 10, 2).close()
  assert 'metrics.jsonl: 8 of 10 lines are damaged and were moved to metrics.damaged.jsonl' in capsys.readouterr().out
  assert (tmp_path / 'metrics.jsonl').read_text() == ''.join(good)
  assert (tmp_path / 'metrics.damaged.jsonl').read_bytes() == b''.join(bad)


def test_files_that_are_in_the_way_do_not_end_a_run(tmp_path, capsys):
  """A file in place of TensorBoard's folder; a link in place of the log, which must not be followed."""
  (tmp_path / 'tensorboard').write_text('')
  (tmp_path / 'other').write_text('mine\n')
  (tmp_path / 'log.txt').symlink_to(tmp_path / 'other')
  with Writer(RunDir(tmp_path), 10, 0) as writer:
    for step in (1, 2):
      writer.write(step, {'train/loss': 1.0})
  assert steps(tmp_path) == [1, 2] and (tmp_path / 'other').read_text() == 'mine\n'
  printed = capsys.readouterr().out
  assert printed.count('warning: tensorboard: cannot be written') == printed.count('warning: log: cannot be written') == 1


def test_an_error_that_ends_a_run_is_logged(tmp_path):
  for error in (ValueError('of a defect'), SystemExit(143)):
    with pytest.raises(type(error)), Writer(RunDir(tmp_path), 10, 0) as writer:
      writer.say('hello')
      raise error
  log = (tmp_path / 'log.txt').read_text()
  assert log.count('hello\n') == 2 and log.count('Traceback') == 1 and 'ValueError: of a defect' in log
  shutil.rmtree(tmp_path)
  assert not os.path.exists(tmp_path)
