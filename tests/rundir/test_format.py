"""The format of run directories: those of newer versions are refused and left as they are."""
import json
import pathlib
import shutil

import pytest

import vit_jax
from vit_jax import train
from vit_jax.rundir.layout import RunDir
from vit_jax.rundir.record import FORMAT, NewerFormatError, RunRecord, check_format

GOLDEN = pathlib.Path(__file__).parent.parent / 'golden' / 'runs' / 'plain'


@pytest.fixture
def run(tmp_path):
  """A copy of a run of version 0.1, which does not say its format."""
  shutil.copytree(GOLDEN, tmp_path / 'run')
  return tmp_path / 'run'


def set_format(path, number):
  values = json.loads(path.read_text())
  assert 'format' not in values
  path.write_text(json.dumps(values | {'format': number}))


def contents(folder):
  return {path.relative_to(folder): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def test_a_record_says_its_format():
  record = RunRecord({'a': 1}, ('cat',), 3, (8, 8), {})
  values = record.to_json()
  assert values['format'] == FORMAT and RunRecord.from_json(values) == record
  assert RunRecord.from_json({name: value for name, value in values.items() if name not in ('format', 'checksum')}) == record


def test_a_config_says_its_format(tmp_path):
  RunDir(tmp_path).write_config({'seed': 1})
  assert json.loads((tmp_path / 'config.json').read_text()) == {'seed': 1, 'format': FORMAT}
  assert RunDir(tmp_path).read_config() == {'seed': 1}


@pytest.mark.parametrize('found', [FORMAT + 1, 10**30, '3', None, 2.5, []])
def test_formats_from_the_future(found):
  with pytest.raises(NewerFormatError, match=f'here: made by a newer vit_jax: its format is .*, and this version reads up '
                     f'to {FORMAT}. Update'):
    check_format({'format': found}, 'here')


@pytest.mark.parametrize('file', ['config.json', 'checkpoints/4/run/metadata'])
def test_a_newer_run_neither_resumes_nor_loads_and_stays_as_it_is(run, file, data_dir, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', data_dir)
  monkeypatch.setattr('tensorflow_datasets.core.constants.DATA_DIR', data_dir)
  config = RunDir(run).read_config()
  set_format(run / file, FORMAT + 1)
  before = {path: content for path, content in contents(run).items() if 'lock' not in path.name}
  with pytest.raises(NewerFormatError, match=f'{run / file.removesuffix("/run/metadata")}: made by a newer vit_jax'):
    train.run(config, run)
  after = contents(run)
  assert all(after[path] == content for path, content in before.items() if path.name != 'config.json')
  if file == 'config.json':
    assert after[pathlib.Path(file)] == before[pathlib.Path(file)]
  else:
    with pytest.raises(NewerFormatError):
      vit_jax.load(run)
