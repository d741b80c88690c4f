"""Paths that users give, and files that are written whole or not at all."""
import os
import stat

import pytest

from vit_jax.base import files
from vit_jax.base.errors import ExistingFileError, FileError, MissingFileError, UserError


@pytest.mark.parametrize('path, expected', [('~/x', '{home}/x'), ('x', '{cwd}/x'), ('a/../x', '{cwd}/x'), ('/x', '/x'),
                                            ('gs://bucket/~/x', 'gs://bucket/~/x')])
def test_expand(tmp_path, monkeypatch, path, expected):
  home, cwd = tmp_path / 'home', tmp_path / 'cwd'
  cwd.mkdir()
  monkeypatch.setenv('HOME', str(home))
  monkeypatch.chdir(cwd)
  assert os.fspath(files.expand(path)) == expected.format(home=home, cwd=cwd)


@pytest.mark.parametrize('content', ['text', b'bytes'])
def test_write_makes_folders_and_leaves_nothing_else(tmp_path, content):
  files.write(tmp_path / 'a' / 'b.txt', content)
  read = (tmp_path / 'a' / 'b.txt').read_bytes()
  assert read == (content.encode() if isinstance(content, str) else content)
  assert [path.name for path in (tmp_path / 'a').iterdir()] == ['b.txt']


@pytest.mark.parametrize('error', [RuntimeError, OSError, KeyboardInterrupt, UserError])
def test_an_error_leaves_the_old_file_whole_and_nothing_beside_it(tmp_path, error):
  path = tmp_path / 'a.txt'
  path.write_text('old')
  with pytest.raises(FileError if error is OSError else error):
    with files.replacing(path, 'the list') as aside:
      aside.write_text('half')
      raise error('stop')
  assert path.read_text() == 'old'
  assert list(tmp_path.iterdir()) == [path]


def test_the_error_says_what_could_not_be_written_and_where(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(FileError, match=r'file/a\.txt: cannot write the list: '):
    files.write(tmp_path / 'file' / 'a.txt', 'x', 'the list')


def test_a_new_folder_comes_whole(tmp_path):
  with files.new_folder(tmp_path / 'models' / 'a') as aside:
    (aside / 'b.txt').write_text('x')
    assert not (tmp_path / 'models' / 'a').exists()
  assert (tmp_path / 'models' / 'a' / 'b.txt').read_text() == 'x' and len(list((tmp_path / 'models').iterdir())) == 1


@pytest.mark.parametrize('error', [RuntimeError, OSError, KeyboardInterrupt, UserError])
def test_an_error_leaves_no_new_folder(tmp_path, error):
  with pytest.raises(FileError if error is OSError else error):
    with files.new_folder(tmp_path / 'a', 'the model') as aside:
      (aside / 'b.txt').write_text('x')
      raise error('stop')
  assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write anywhere')
def test_a_read_only_folder_is_an_error(tmp_path):
  tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
  with pytest.raises(FileError):
    files.write(tmp_path / 'a.txt', 'x')


def test_file_errors_are_user_errors_and_os_errors():
  assert issubclass(FileError, UserError) and issubclass(FileError, OSError) and issubclass(UserError, ValueError)
  assert issubclass(MissingFileError, FileNotFoundError) and issubclass(ExistingFileError, FileExistsError)
  assert str(MissingFileError('no such file: x')) == 'no such file: x'
