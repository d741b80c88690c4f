"""Data on gs://, with a folder in place of the bucket; all but ArrayRecord's own reader, which is C++."""
import shutil

from etils import epath
from etils.epath import backend
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
import numpy as np
import pytest

from tests.conftest import encode
from vit_jax import audit
from vit_jax.base.errors import FileError, MissingFileError, UserError
from vit_jax.data.sources import exclude
from vit_jax.data.sources import registry as sources


class Bucket(DirFileSystem):
  """A file system in which gs://bucket/b is b in a local folder."""

  def _join(self, path):
    local = lambda one: one.removeprefix('gs://').removeprefix('bucket').lstrip('/')
    return super()._join([local(one) for one in path] if isinstance(path, list) else local(path))


@pytest.fixture
def bucket(tmp_path, monkeypatch):
  """The folder behind gs://bucket: two splits of ants and bees, and arrays."""
  fake = Bucket(path=str(tmp_path), fs=LocalFileSystem(auto_mkdir=True))
  monkeypatch.setattr(type(backend.fsspec_backend), '_get_filesystem', lambda self, name: fake)
  for split, name, count in (('train', 'ants', 4), ('train', 'bees', 3), ('val', 'ants', 2)):
    folder = tmp_path / 'insects' / split / name
    folder.mkdir(parents=True)
    for index in range(count):
      (folder / f'{index}.png').write_bytes(encode(np.full((6, 5, 3), 9 * index, np.uint8)))
  np.savez(tmp_path / 'a.npz', images=np.zeros((3, 4, 4), np.uint8), labels=[0, 1, 2])
  return tmp_path


def test_open_folders_and_arrays(bucket):
  assert sources.split_names('folder:gs://bucket/insects') == ['train', 'val']
  for name, data_dir in (('folder:gs://bucket/insects', None), ('folder:insects', 'gs://bucket')):
    source = sources.open_source(name, 'train', data_dir)
    assert (len(source), source.class_names) == (7, ('ants', 'bees'))
    index = [source.record_name(index) for index in range(7)].index('train/ants/3.png')
    assert source[index] == {'image': (bucket / 'insects/train/ants/3.png').read_bytes(), 'label': 0}
  assert len(sources.open_source('npz:gs://bucket/a.npz', 'all')) == 3
  local = sources.open_source(f'folder:{bucket}/insects', 'train')
  assert local.split_fingerprints == source.split_fingerprints  # One list is valid for every copy.


def test_errors_name_the_remote_path(bucket):
  with pytest.raises(MissingFileError, match='gs://bucket/nothing: no such folder. gs://bucket has insects, a.npz'):
    sources.open_source('folder:gs://bucket/nothing', 'train')
  with pytest.raises(MissingFileError, match='gs://bucket/b.npz: no such file. .npz files in gs://bucket: a.npz'):
    sources.open_source('npz:gs://bucket/b.npz', 'train')
  (bucket / 'insects/train/ants/0.png').unlink()
  source = sources.open_source('folder:gs://bucket/insects', 'train')
  for file in (bucket / 'insects/train').rglob('*.png'):
    file.unlink()
  with pytest.raises(FileError, match='gs://bucket/insects/train/.*: cannot read the image'):
    source[0]


def test_exclusion_lists(bucket):
  found = audit.audit('folder:gs://bucket/insects', similarity=0.9)
  audit.write_list(found, 'gs://bucket/exclude.txt', 'the command')
  source = sources.open_source('folder:gs://bucket/insects', 'train')
  kept = exclude.without_excluded(source, 'gs://bucket/exclude.txt')
  # 0 and 9 are also in val; 18 is once in ants and once in bees.
  assert [kept.record_name(index) for index in range(len(kept))] == ['train/ants/3.png']
  assert (bucket / 'exclude.txt').read_text().splitlines()[0].endswith('the command')


def test_tfds_up_to_the_records(bucket, data_dir):
  shutil.copytree(f'{data_dir}/tiny_shapes', bucket / 'data' / 'tiny_shapes')
  source = sources.open_source('tiny_shapes', 'train[2:]', 'gs://bucket/data')
  assert len(source) == 5 and source.record_name(0) == 'train/2'
  shard = next(epath.Path('gs://bucket/data/tiny_shapes/1.0.0').glob('*train.array_record*'))
  shard.unlink()
  with pytest.raises(UserError, match='gs://bucket/data/.*/1.0.0/tiny_shapes-train.array_record-.* is missing'):
    sources.open_source('tiny_shapes', 'train', 'gs://bucket/data')
