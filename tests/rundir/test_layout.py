"""Run directories: where files are, and what a damaged or missing one says."""
import json
import os

import pytest

from vit_jax.base.errors import FileError, MissingFileError, UserError
from vit_jax.rundir.layout import RunDir
from vit_jax.rundir.record import RunRecord


def test_a_tilde_is_the_home_directory_everywhere(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  RunDir('~/runs/x').write_config({'seed': 1})
  assert json.loads((tmp_path / 'runs' / 'x' / 'config.json').read_text()) == {'seed': 1, 'format': 2}
  assert RunDir('~/runs/x').read_config() == {'seed': 1}
  assert os.fspath(RunDir('~/runs/x').checkpoints_path) == str(tmp_path / 'runs' / 'x' / 'checkpoints')


def test_a_relative_path_starts_in_the_working_directory(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert str(RunDir('a/../b')) == str(tmp_path / 'b')


def test_remote_paths_stay_as_they_are():
  assert str(RunDir('gs://bucket/run')) == 'gs://bucket/run'


def test_an_empty_path_is_refused():
  with pytest.raises(UserError, match='^workdir: empty'):
    RunDir('')


@pytest.mark.parametrize('text', ['', '{"seed": ', '[1]', 'null', '\x00'])
def test_a_damaged_config_is_named(tmp_path, text):
  (tmp_path / 'config.json').write_text(text)
  with pytest.raises(UserError, match=r'config\.json: damaged: .*checkpoint holds a copy'):
    RunDir(tmp_path).read_config()


def test_a_directory_that_is_no_run_is_named(tmp_path):
  with pytest.raises(MissingFileError, match='not the directory of a run: there is no .*config.json'):
    RunDir(tmp_path).read_config()
  assert not RunDir(tmp_path).is_run() and not RunDir(tmp_path).has_checkpoint()


def test_a_config_that_cannot_be_written_leaves_the_old_one(tmp_path):
  run_dir = RunDir(tmp_path / 'run')
  run_dir.write_config({'seed': 1})
  with pytest.raises(TypeError):
    run_dir.write_config({'seed': object()})
  assert run_dir.read_config() == {'seed': 1}
  (tmp_path / 'file').write_text('')
  with pytest.raises(FileError, match='^workdir: cannot write .*config.json.*Choose another --workdir'):
    RunDir(tmp_path / 'file' / 'run').write_config({})
  assert [path.name for path in (tmp_path / 'run').iterdir()] == ['config.json']


def test_metrics_without_a_last_line_that_is_half_there(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1, "a": 0.5}\n{"step": 1, "b": 2}\n{"step": 2, "a": 1}\n{"step": 3')
  run_dir = RunDir(tmp_path)
  assert [values['step'] for _, values in run_dir.read_metrics()] == [1, 1, 2]
  assert run_dir.metrics_at(1) == {'step': 1, 'a': 0.5, 'b': 2}
  assert run_dir.metrics_at(9) == {}
  assert list(RunDir(tmp_path / 'none').read_metrics()) == []


def test_a_record_survives_json_and_keeps_the_names_of_version_0_1():
  record = RunRecord(config={'seed': 1}, class_names=('a', 'b'), channels=3, examples=7, fingerprint='0f', image_size=(8, 4),
                     versions={'jax': '1'}, position={'next_index': 3}, metrics={'test/loss': 0.5})
  values = json.loads(json.dumps(record.to_json()))
  assert RunRecord.from_json(values) == record
  assert values['numbering'] == '0f' and values['image_size'] == [8, 4] and values['position'] == {'next_index': 3}


@pytest.mark.parametrize('name', ['config.json', 'metrics.jsonl', 'tensorboard', 'checkpoints', 'run.lock',
                                  'checkpoints/5'])
def test_a_link_that_leads_elsewhere_is_refused(tmp_path, name):
  run_dir, link = RunDir(tmp_path / 'run'), tmp_path / 'run' / name
  run_dir.check_writable()
  run_dir.check_no_links()
  if name == 'checkpoints':
    link.rmdir()
  os.symlink(tmp_path / 'elsewhere', link)
  with pytest.raises(UserError, match=f'{name} is a symbolic link to .*elsewhere'):
    run_dir.check_no_links()


def test_a_run_directory_that_is_a_link_is_fine(tmp_path):
  (tmp_path / 'big disk').mkdir()
  os.symlink(tmp_path / 'big disk', tmp_path / 'run')
  run_dir = RunDir(tmp_path / 'run')
  run_dir.check_writable()
  run_dir.check_no_links()
  assert list(run_dir.checkpoints_path.iterdir()) == []


def test_where_nothing_can_be_written(tmp_path):
  (tmp_path / 'checkpoints').write_text('a file')
  with pytest.raises(FileError, match='workdir: cannot write to .*checkpoints: File exists. Choose another --workdir'):
    RunDir(tmp_path).check_writable()


@pytest.mark.parametrize('name', ['run [1]', 'a*', 'what?'])
def test_a_name_that_is_a_pattern_is_refused(name, tmp_path):
  with pytest.raises(UserError, match='workdir: .*take for a pattern; choose another name'):
    RunDir(tmp_path / name).check_writable()
  assert not (tmp_path / name).exists()
