"""TFDS datasets as sources, names of datasets, and fingerprints."""
import importlib.util
import json
import os
import re
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests import conftest
from vit_jax.base.errors import MissingFileError, UserError
from vit_jax.data.images import decode
from vit_jax.data.sources import registry as sources
from vit_jax.data.sources import shards
from vit_jax.data.sources import tfds as tfds_source


def tfrecord_only(data_dir, tmp_path):
  """Copy tiny_shapes and change its description to TFRecord files, which need TensorFlow."""
  shutil.copytree(f'{data_dir}/tiny_shapes', tmp_path / 'tiny_shapes')
  folder = tmp_path / 'tiny_shapes' / '1.0.0'
  info = folder / 'dataset_info.json'
  content = json.loads(info.read_text()) | {'fileFormat': 'tfrecord'}
  info.write_text(json.dumps(content))
  for file in folder.glob('*array_record*'):
    file.rename(folder / file.name.replace('array_record', 'tfrecord'))
  return folder


def test_digits(data_dir):
  source = sources.open_source('digits', 'test', data_dir)
  assert (len(source), source.name, source.split) == (300, 'digits', 'test')
  assert source.class_names == tuple('0123456789')
  assert (source.num_classes, source.channels) == (10, 1)
  record = source[299]
  assert set(record) == {'image', 'label'} and type(record['label']) is int
  assert decode.decode(record['image'], 1).shape == (8, 8, 1)


def test_any_tfds_dataset(data_dir):
  source = sources.open_source('tiny_shapes', 'train', data_dir)
  assert (len(source), source.class_names) == (7, ('circle', 'square'))
  assert source.channels == 3  # The shape in the features is (None, None, 3).
  for index in range(len(source)):
    record = source[index]
    image = decode.decode(record['image'], 3)
    assert image.shape == (4 + image[0, 0, 0], 5, 3)
    assert record['label'] == image[0, 0, 0] % 2
  assert source.read([5, 2]) == [source[5], source[2]]


def test_files_suffice_without_the_code_that_prepared_them(data_dir, tmp_path):
  folder = tmp_path / 'unknown_shapes' / '1.0.0'
  shutil.copytree(f'{data_dir}/tiny_shapes/1.0.0', folder)
  for file in folder.iterdir():
    content = file.read_bytes().replace(b'tiny_shapes', b'unknown_shapes')
    if file.suffix == '.json':
      file.write_bytes(content)
    file.rename(folder / file.name.replace('tiny_shapes', 'unknown_shapes'))
  assert len(sources.open_source('unknown_shapes', 'train', str(tmp_path))) == 7


def test_code_that_imports_tensorflow_is_not_needed(data_dir, monkeypatch):
  def needs_tensorflow(*args, **kwargs):
    raise ImportError('No module named tensorflow')

  monkeypatch.setattr(tfds, 'builder', needs_tensorflow)
  assert len(sources.open_source('tiny_shapes', 'train', data_dir)) == 7
  with pytest.raises(MissingFileError, match='tfds build other'):
    sources.open_source('other', 'train', data_dir)


@pytest.mark.parametrize('split, count', [('train[:90%]', 6), ('train[2:4]', 2),
                                          ('train+test', 10), ('train[:2]+test[-1:]', 3)])
def test_parts_of_splits(data_dir, split, count):
  assert len(sources.open_source('tiny_shapes', split, data_dir)) == count


@pytest.mark.parametrize('split', ['trian', 'train[', 'train[5:5]', 'train[99:]', '', 'train[a:b]'])
def test_bad_split_lists_the_valid_ones(data_dir, split):
  with pytest.raises(UserError) as error:
    sources.open_source('tiny_shapes', split, data_dir)
  message = str(error.value)
  assert repr(split) in message and 'tiny_shapes' in message
  assert 'train (7 records), test (3 records)' in message.replace(
      'test (3 records), train (7 records)', 'train (7 records), test (3 records)')
  assert 'train[:90%]' in message


def test_unknown_name_lists_what_is_there(data_dir):
  with pytest.raises(UserError) as error:
    sources.open_source('cifar_10', 'train', data_dir)
  message = str(error.value)
  assert "dataset 'cifar_10': unknown. Did you mean 'cifar10' or " in message
  assert 'digits, tiny_numbers, tiny_scenes, tiny_shapes' in message and data_dir in message


def test_unprepared_dataset_gives_the_command(data_dir):
  with pytest.raises(MissingFileError) as error:
    sources.open_source('cifar10', 'train', data_dir)
  message = str(error.value)
  assert f'{data_dir}/cifar10/3.0.2' in message and 'digits, tiny_numbers' in message
  assert f'tfds build cifar10 --file_format=array_record --data_dir={data_dir}' in message
  with pytest.raises(FileNotFoundError, match='/no/such/folder does not exist'):
    sources.open_source('cifar10', 'train', '/no/such/folder')


def test_unprepared_dataset_lists_other_versions(data_dir, tmp_path):
  shutil.copytree(f'{data_dir}/tiny_shapes/1.0.0', tmp_path / 'tiny_shapes' / '0.9.0')
  with pytest.raises(FileNotFoundError, match='tiny_shapes:0.9.0'):
    sources.open_source('tiny_shapes', 'train', str(tmp_path))


@pytest.mark.parametrize('name', ['tiny_shapes:7.0.0', 'tiny_shapes/blue', '../tiny_shapes'])
def test_bad_version_configuration_or_spelling(data_dir, name):
  with pytest.raises(UserError, match='(?s)tiny_shapes'):
    sources.open_source(name, 'train', data_dir)


def test_tfrecord_copy_gives_the_command_to_convert_it(data_dir, tmp_path):
  folder = tfrecord_only(data_dir, tmp_path)
  with pytest.raises(UserError) as error:
    sources.open_source('tiny_shapes', 'train', str(tmp_path))
  assert "pip install -e '.[prepare]' && " in str(error.value)
  assert (f'tfds convert_format --dataset_version_dir={folder} --out_file_format=array_record'
          in str(error.value))


@pytest.fixture
def copy(data_dir, tmp_path):
  """A copy of tiny_shapes to damage: (folder of the version, file of its training split)."""
  shutil.copytree(f'{data_dir}/tiny_shapes', tmp_path / 'tiny_shapes')
  folder = tmp_path / 'tiny_shapes' / '1.0.0'
  return folder, next(folder.glob('*train.array_record*'))


def remove(file):
  file.unlink()


def cut(file):
  file.write_bytes(file.read_bytes()[:-1])


def empty(file):
  file.write_bytes(b'')


def make_folder(file):
  file.unlink()
  file.mkdir()


def replace_by_another(file):
  shutil.copy(next(file.parent.glob('*test.array_record*')), file)


@pytest.mark.parametrize('damage, message', [
    (remove, 'is missing. {folder} has 1 ArrayRecord file: tiny_shapes-test.array_record-00000-of-00001'),
    (cut, 'cannot be read (131071 bytes; '), (empty, 'cannot be read (0 bytes; '),
    (make_folder, 'is a folder, not a file'),
    (replace_by_another, 'has 3 records instead of 7')])
def test_incomplete_copies_are_reported(copy, damage, message):
  folder, file = copy
  damage(file)
  for split in ('train', 'train[:2]', 'test+train'):
    with pytest.raises(UserError) as error:
      sources.open_source('tiny_shapes', split, str(folder.parent.parent))
    text = str(error.value)
    assert f'{file} {message.format(folder=folder)}' in text and 'Copy the file again' in text
    assert (f'rm -r {folder} && tfds build tiny_shapes --file_format=array_record --data_dir={folder.parent.parent}'
            in text)
  assert len(sources.open_source('tiny_shapes', 'test', str(folder.parent.parent))) == 3


def test_unfinished_preparation_is_reported(copy):
  folder, _ = copy
  half = folder.rename(folder.parent / 'incomplete.ABC123_1.0.0')
  with pytest.raises(MissingFileError, match=f'(?s){half} was not finished: remove it.*tfds build'):
    sources.open_source('tiny_shapes', 'train', str(folder.parent.parent))


def test_copy_converted_in_place(copy):
  """As `tfds convert_format` of 4.9.10 leaves it: files of both formats, and the old format in the description."""
  folder, file = copy
  info = folder / 'dataset_info.json'
  info.write_text(json.dumps(json.loads(info.read_text()) | {
      'fileFormat': 'tfrecord', 'alternativeFileFormats': ['array_record']}))
  for one in list(folder.glob('*array_record*')):
    (folder / one.name.replace('array_record', 'tfrecord')).write_bytes(b'never read')
  source = sources.open_source('tiny_shapes', 'train[1:]', str(folder.parent.parent))
  assert len(source) == 6 and source.record_name(0) == 'train/1' and source[0]['label'] in (0, 1)


def test_split_names(data_dir):
  assert sources.split_names('tiny_shapes', data_dir) == ['test', 'train']


def test_commands_in_errors_exist_in_the_installed_tfds():
  from tensorflow_datasets.scripts.cli import build, cli_utils
  parsed = cli_utils.make_flags_parser(build.Args, '')(
      ['tfds', 'cifar10', '--file_format=array_record', '--data_dir=/data'])
  assert parsed.positional_datasets == ['cifar10']
  assert str(parsed.paths.data_dir) == '/data'
  assert parsed.generation.file_format == 'array_record'
  # Importing this command would import TensorFlow, so only its text is read.
  text = open(importlib.util.find_spec('tensorflow_datasets.scripts.cli.convert_format').origin)
  with text:
    flags = re.findall(r'^  (\w+): ', text.read(), re.MULTILINE)
  assert {'dataset_version_dir', 'out_file_format'} <= set(flags)


def test_labels_must_be_classes(data_dir):
  with pytest.raises(UserError, match='label: ClassLabel .*, got image: Image, label: Scalar'):
    sources.open_source('tiny_numbers', 'train', data_dir)


def test_default_folder_is_the_one_of_tfds(data_dir, monkeypatch):
  monkeypatch.setattr(tfds_source.constants, 'DATA_DIR', data_dir)
  assert len(sources.open_source('tiny_shapes', 'train')) == 7


def test_remote_paths_pass_through_untouched(monkeypatch):
  seen = {}

  def builder(name, data_dir):
    seen.update(name=name, data_dir=data_dir)
    raise KeyError('seen enough')

  monkeypatch.setattr(tfds, 'builder', builder)
  monkeypatch.setattr(shards, 'check_descriptions', lambda folder: seen.update(folder=os.fspath(folder)))
  with pytest.raises(KeyError):
    sources.open_source('tiny_shapes', 'train', 'gs://bucket/data')
  assert seen == {'name': 'tiny_shapes', 'data_dir': 'gs://bucket/data', 'folder': 'gs://bucket/data/tiny_shapes'}


def test_fake_source_behaves_like_one_from_disk():
  source = conftest.fake_source(count=5)
  assert len(source) == 5 and source[4]['label'] == 0
  assert source.read(range(2)) == [source[0], source[1]]


def test_fingerprint_changes_if_an_index_means_another_record(data_dir):
  opened = lambda split: sources.open_source('tiny_shapes', split, data_dir)
  train = opened('train')
  same = [opened('train'), train.decoded_to(1), train.keep(range(7))]
  assert {source.fingerprint for source in same} == {train.fingerprint}
  others = [train.keep([0, 1, 2]), train.keep([0, 1, 3]), train.keep([1, 0, 2]), opened('train[:3]'), opened('test')]
  assert len({source.fingerprint for source in (train, *others)}) == 6
  assert train.keep([0, 2, 4]).keep([0, 2]).fingerprint == train.keep([0, 4]).fingerprint


def test_fingerprint_changes_with_the_files_but_not_their_path(tmp_path):
  def fingerprint(place, *names):
    for name in ('a/0', *names):
      path = tmp_path / place / f'{name}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(conftest.encode(np.zeros((2, 2), np.uint8)))
    return sources.open_source(f'folder:{tmp_path / place}', 'all', None).fingerprint

  assert fingerprint('here', 'b/1') == fingerprint('there', 'b/1')
  assert len({fingerprint('here', 'b/1'), fingerprint('two', 'b/2'), fingerprint('three', 'b/1', 'b/2')}) == 3


def test_kinds_of_source_are_rows_of_one_table(monkeypatch):
  opened = []
  kind = sources.SourceKind(lambda path, split: opened.append((path, split)) or conftest.fake_source(),
                            lambda path: ['train', path], 'zip:/data/a.zip')
  monkeypatch.setitem(sources.KINDS, 'zip:', kind)
  assert sources.open_source('zip:a.zip', 'train[:3]', '/data').name == 'fake'
  assert opened == [('/data/a.zip', 'train[:3]')]
  assert sources.split_names('zip:gs://b/a.zip', '/data') == ['train', 'gs://b/a.zip']
  with pytest.raises(UserError, match="dataset 'zip:': expected zip:PATH, such as zip:/data/a.zip"):
    sources.open_source('zip:', 'train')


@pytest.mark.parametrize('name, data_dir, expected', [
    ('folder:flowers', None, 'cwd'), ('npz:a.npz', None, 'cwd'), ('folder:flowers', '/data', '/data'),
    ('folder:/data/flowers', None, None), ('folder:~/flowers', None, None), ('npz:gs://b/a.npz', None, None),
    ('digits', None, None), ('digits', '/data', '/data')])
def test_recorded_data_dir_keeps_the_meaning_of_relative_paths(name, data_dir, expected, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert sources.data_dir_of(name, data_dir) == (str(tmp_path) if expected == 'cwd' else expected)
