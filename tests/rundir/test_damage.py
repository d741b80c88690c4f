"""Checkpoints whose files were cut off, removed or changed: found, named, set aside; the one before is used."""
import dataclasses
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests import tiny
from tests.rundir.test_checkpoint import abstract, assert_bit_equal, make_state, open_checkpoints, record, save_all
from vit_jax.base import files as files_lib
from vit_jax.base.errors import RetryError, UserError
from vit_jax.rundir.checks import integrity
from vit_jax.rundir.checks.integrity import DamagedCheckpointError
from vit_jax.rundir.record import RunRecord


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """Return a directory with the steps 1 and 2."""
  directory = tmp_path_factory.mktemp('saved') / 'checkpoints'
  save_all(directory, (1, 2), keep=2)
  return directory


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
  monkeypatch.setattr(integrity, 'RETRY_DELAYS', (0.0, 0.0))


def cut(path):
  path.write_bytes(path.read_bytes()[:len(path.read_bytes()) // 2])


def empty(path):
  path.write_bytes(b'')


def flip(path):
  content = bytearray(path.read_bytes())
  if content:
    content[len(content) // 2] ^= 1
  path.write_bytes(content)


def restore(directory, step):
  """Return the state and the record of a step."""
  checkpoints = open_checkpoints(directory, keep=2)
  try:
    return checkpoints.restore(step, abstract(make_state()))
  finally:
    checkpoints.close()


@pytest.mark.parametrize('harm', [cut, empty, flip, lambda path: path.unlink()], ids=['cut', 'empty', 'flip', 'remove'])
def test_every_file_is_either_checked_or_not_needed(saved, harm, tmp_path):
  needed = set()
  for path in sorted(path for path in (saved / '2').rglob('*') if path.is_file()):
    shutil.rmtree(tmp_path / 'copy', ignore_errors=True)
    shutil.copytree(saved, tmp_path / 'copy')
    harm(tmp_path / 'copy' / path.relative_to(saved))
    try:
      state, run = restore(tmp_path / 'copy', 2)
    except DamagedCheckpointError as error:
      needed.add(path.name)
      assert str(tmp_path / 'copy' / '2') in str(error) and (path.name in str(error) or path.name == 'files.json')
    else:
      assert_bit_equal(state, make_state(2))
      assert dataclasses.replace(run, digests={}) == record(2)
  assert needed >= {'metadata', '_METADATA', 'manifest.ocdbt'} and len(needed) > 4


def test_a_damaged_step_is_set_aside_and_the_one_before_is_used(saved, tmp_path, caplog):
  directory = tmp_path / 'checkpoints'
  shutil.copytree(saved, directory)
  cut(directory / '2' / 'run' / 'metadata')
  checkpoints = open_checkpoints(directory, keep=2)
  step, state, _ = checkpoints.restore_latest(abstract(make_state()))
  assert step == 1
  assert_bit_equal(state, make_state(1))
  assert (directory / 'damaged-2' / 'state').is_dir() and checkpoints.steps() == [1]
  assert 'this checkpoint is damaged' in caplog.text and 'damaged-2' in caplog.text
  checkpoints.save(2, make_state(2), record(2))
  checkpoints.close()
  again = open_checkpoints(directory, keep=2)
  assert again.restore_latest(abstract(make_state()))[0] == 2 and again.steps() == [1, 2]
  again.close()


def test_a_step_that_is_damaged_twice_is_set_aside_twice(saved, tmp_path):
  directory = tmp_path / 'checkpoints'
  shutil.copytree(saved, directory)
  for name in ('damaged-2', 'damaged-2-2'):
    shutil.rmtree(directory / '2', ignore_errors=True)
    shutil.copytree(saved / '2', directory / '2')
    cut(directory / '2' / 'run' / 'metadata')
    checkpoints = open_checkpoints(directory, keep=2)
    assert checkpoints.restore_latest(abstract(make_state()))[0] == 1
    checkpoints.close()
    assert (directory / name / 'state').is_dir()


def test_files_that_cannot_be_read_now_set_nothing_aside(saved, tmp_path, monkeypatch):
  directory = tmp_path / 'checkpoints'
  shutil.copytree(saved, directory)

  def fail(where):
    raise PermissionError(f'{where}: Permission denied')

  monkeypatch.setattr(integrity.manifest, 'problems', fail)
  with pytest.raises(UserError, match='PermissionError.*Permission denied\nIt stays as it is') as caught:
    restore(directory, 2)
  assert not isinstance(caught.value, DamagedCheckpointError) and (directory / '2').is_dir()


def test_if_all_are_damaged_nothing_starts_anew_by_itself(saved, tmp_path):
  directory = tmp_path / 'checkpoints'
  shutil.copytree(saved, directory)
  for step in (1, 2):
    empty(directory / str(step) / 'run' / 'metadata')
  checkpoints = open_checkpoints(directory, keep=2)
  with pytest.raises(DamagedCheckpointError, match=r'all checkpoints were damaged \(1, 2\)'):
    checkpoints.restore_latest(abstract(make_state()))
  checkpoints.close()


def test_arrays_that_changed_without_a_trace_are_named(saved, tmp_path):
  """As a memory that is defective, or a decoder, may change them."""
  state, run = restore(saved, 2)
  state.params['kernel'][1, 2] += 1.0
  with pytest.raises(DamagedCheckpointError, match='where: .* changed after they were saved: params/kernel$'):
    integrity.check_digests(run, state, 'where')
  integrity.check_digests(dataclasses.replace(run, digests={}), state, 'where')  # of version 0.1


def test_numbers_of_an_old_checkpoint_that_are_not_finite_are_named(saved):
  """Version 0.1 saved them; such a checkpoint has no digests."""
  state, run = restore(saved, 2)
  state.params['kernel'][1, 2] = np.inf
  with pytest.raises(DamagedCheckpointError, match='where: .* numbers are not finite: params/kernel$'):
    integrity.check_digests(dataclasses.replace(run, digests={}), state, 'where')


def test_a_changed_record_is_found():
  values = record(3).to_json()
  assert RunRecord.from_json(values) == record(3)
  with pytest.raises(UserError, match='the run record is damaged'):
    RunRecord.from_json(dict(values, position={'next_index': 8}))
  without = {name: value for name, value in values.items() if name != 'checksum'}
  assert RunRecord.from_json(without) == record(3)  # of version 0.1


@pytest.mark.parametrize('error', [PermissionError('EACCES'), MemoryError(), OSError(5, 'Input/output error')])
def test_what_may_pass_sets_nothing_aside(saved, tmp_path, monkeypatch, error):
  directory = tmp_path / 'checkpoints'
  shutil.copytree(saved, directory)
  checkpoints = open_checkpoints(directory, keep=2)

  def fail(*args, **kwargs):
    raise error

  with monkeypatch.context() as patch, pytest.raises(UserError, match=r'^reading .*/checkpoints/2: .*; tried 3 times in .* Start the same command again'):
    patch.setattr(checkpoints._manager, 'restore', fail)
    checkpoints.restore_latest(abstract(make_state()))
  assert checkpoints.steps() == [1, 2] and checkpoints.restore_latest(abstract(make_state()))[0] == 2
  checkpoints.close()


@pytest.mark.parametrize('bad', [np.nan, -np.inf])
def test_a_state_that_is_not_finite_replaces_nothing(tmp_path, bad):
  save_all(tmp_path, (1,))
  state = make_state(2)
  state.opt_state[0]['mu'][1, 1] = bad
  checkpoints = open_checkpoints(tmp_path)
  with pytest.raises(UserError, match='step 2: not saved, .* not finite: opt_state/0/mu; step 1 is saved'):
    checkpoints.save(2, state, record(2))
  assert checkpoints.steps() == [1]
  checkpoints.close()


def test_a_step_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
  """A power loss after the older step is deleted must not find files without content."""
  synced = []
  monkeypatch.setattr(files_lib.os, 'fsync', lambda descriptor: synced.append(
      (files_lib.os.readlink(f'/proc/self/fd/{descriptor}'), (tmp_path / '1').exists())))
  save_all(tmp_path, (1,))
  written = {path.relative_to(tmp_path / '1') for path in (tmp_path / '1').rglob('*')}
  early = {path.partition('.orbax-checkpoint-tmp')[2].partition('/')[2] for path, renamed in synced if not renamed}
  assert {str(path) for path in written} - {'commit_success.txt'} <= early and len(early) > 5


def half_deleted(folder):
  """As by a deletion that was interrupted: only some arrays are left."""
  for name in ('files.json', '_CHECKPOINT_METADATA', 'run', 'state/_METADATA', 'state/manifest.ocdbt'):
    path = folder / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def emptied(folder):
  shutil.rmtree(folder)
  folder.mkdir()


def foreign(folder):
  emptied(folder)
  (folder / 'cat.png').write_bytes(b'meow')


@pytest.mark.parametrize('harm', [half_deleted, emptied, foreign])
def test_a_folder_that_is_no_checkpoint_any_more_is_set_aside(saved, tmp_path, harm, caplog):
  directory = tmp_path / 'checkpoints'
  shutil.copytree(saved, directory)
  harm(directory / '2')
  checkpoints = open_checkpoints(directory, keep=2)
  step, state, _ = checkpoints.restore_latest(abstract(make_state()))
  assert step == 1 and 'this checkpoint is damaged: ' in caplog.text and 'damaged-2' in caplog.text
  assert_bit_equal(state, make_state(1))
  checkpoints.save(2, make_state(2), record(2))
  checkpoints.close()
  assert checkpoints.steps() == [1, 2]


def test_a_step_under_another_name_is_refused_and_the_way_back_is_told(saved, tmp_path):
  directory = tmp_path / 'checkpoints'
  shutil.copytree(saved, directory)
  (directory / '2').rename(directory / '20')
  checkpoints = open_checkpoints(directory, keep=2)
  with pytest.raises(UserError, match=rf'the checkpoint of step 2, .*: mv {directory}/20 {directory}/2$') as caught:
    checkpoints.restore_latest(abstract(make_state()))
  assert not isinstance(caught.value, DamagedCheckpointError | RetryError) and checkpoints.steps() == [1, 20]
  checkpoints.close()


UNPRIVILEGED = ['setpriv', '--bounding-set', '-dac_override,-dac_read_search'] if os.getuid() == 0 else []


@pytest.mark.parametrize('passes', [True, False])
def test_a_checkpoint_that_may_not_be_read_is_tried_again_and_stays(saved, tmp_path, passes):
  """As a user for whom permissions hold; they come back, or not, while the second try waits."""
  if UNPRIVILEGED and subprocess.run([*UNPRIVILEGED, 'true'], capture_output=True, check=False).returncode:
    pytest.skip('cannot give up the rights of root')
  directory = tmp_path / 'checkpoints'
  shutil.copytree(saved, directory)
  file = directory / '2' / 'state' / '_METADATA'
  os.chmod(file, 0)
  lines = f'''
import os
from etils import epath
from vit_jax.rundir.checks import integrity
integrity.retry.time.sleep = lambda seconds: os.chmod({str(file)!r}, 0o644) if {passes} else None
try:
  integrity.with_retries(lambda: integrity.check_step(epath.Path({str(directory / "2")!r}), [1, 2]), epath.Path({str(directory / "2")!r}))
  print('read')
except Exception as error:
  print(type(error).__name__, error)
'''
  output = subprocess.run([*UNPRIVILEGED, sys.executable, '-c', lines], cwd=tiny.ROOT, capture_output=True, text=True,
                          check=True).stdout
  assert output.startswith('read' if passes else 'RetryError') and (passes or 'Permission denied' in output), output
  assert (directory / '2').is_dir()


def test_damage_that_one_process_sees_is_damage_for_all(saved, tmp_path, caplog):
  """This one sees nothing wrong with step 2, but the other one does: both go back to step 1."""
  directory = tmp_path / 'checkpoints'
  shutil.copytree(saved, directory)
  checkpoints = open_checkpoints(directory, keep=2)
  others = iter([[1, 2], 'its disk has other bytes', None, None, None])
  step, state, _ = checkpoints.restore_latest(abstract(make_state()), lambda value: [value, next(others)])
  assert step == 1 and 'its disk has other bytes. It is now named damaged-2' in caplog.text
  assert_bit_equal(state, make_state(1))
  with pytest.raises(RetryError, match='the processes see different checkpoints'):
    checkpoints.restore_latest(abstract(make_state()), lambda value: [value, [1, 2]])
  checkpoints.close()


@pytest.mark.parametrize('pattern', ['d/*', '_METADATA', 'manifest.ocdbt'])
@pytest.mark.parametrize('harm', [cut, lambda path: path.unlink()], ids=['cut', 'remove'])
def test_damage_is_found_without_the_list_of_files_too(saved, harm, pattern, tmp_path):
  directory = tmp_path / 'checkpoints'
  shutil.copytree(saved, directory)
  (directory / '2' / 'files.json').unlink()
  for path in (directory / '2' / 'state').rglob(pattern):
    harm(path)
  checkpoints = open_checkpoints(directory, keep=2)
  assert checkpoints.restore_latest(abstract(make_state()))[0] == 1
  checkpoints.close()
  assert (directory / 'damaged-2').is_dir()
