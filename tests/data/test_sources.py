import importlib.util
import json
import re
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests import conftest
from vit_jax.data.images import decode
from vit_jax.data.sources import registry as sources


def tfrecord_only(data_dir, tmp_path):
  """Copies tiny_shapes and has it say that it holds TFRecord files, which need TensorFlow."""
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


def test_any_tfds_data_set(data_dir):
  source = sources.open_source('tiny_shapes', 'train', data_dir)
  assert (len(source), source.class_names) == (7, ('circle', 'square'))
  assert source.channels == 3  # The shape in the features is (None, None, 3).
  for index in range(len(source)):
    record = source[index]
    image = decode.decode(record['image'], 3)
    assert image.shape == (4 + image[0, 0, 0], 5, 3)
    assert record['label'] == image[0, 0, 0] % 2
  assert source.read([5, 2]) == [source[5], source[2]]


def test_files_suffice_without_the_code_that_made_them(data_dir, tmp_path):
  folder = tmp_path / 'nobody_knows_me' / '1.0.0'
  shutil.copytree(f'{data_dir}/tiny_shapes/1.0.0', folder)
  for file in folder.iterdir():
    content = file.read_bytes().replace(b'tiny_shapes', b'nobody_knows_me')
    if file.suffix == '.json':
      file.write_bytes(content)
    file.rename(folder / file.name.replace('tiny_shapes', 'nobody_knows_me'))
  assert len(sources.open_source('nobody_knows_me', 'train', str(tmp_path))) == 7


def test_code_that_needs_tensorflow_is_not_needed(data_dir, monkeypatch):
  def needs_tensorflow(*args, **kwargs):
    raise ImportError('No module named tensorflow')

  monkeypatch.setattr(tfds, 'builder', needs_tensorflow)
  assert len(sources.open_source('tiny_shapes', 'train', data_dir)) == 7
  with pytest.raises(FileNotFoundError, match='tfds build other'):
    sources.open_source('other', 'train', data_dir)


@pytest.mark.parametrize('split, count', [('train[:90%]', 6), ('train[2:4]', 2),
                                          ('train+test', 10), ('train[:2]+test[-1:]', 3)])
def test_parts_of_splits(data_dir, split, count):
  assert len(sources.open_source('tiny_shapes', split, data_dir)) == count


@pytest.mark.parametrize('split', ['trian', 'train[', 'train[5:5]', 'train[99:]', '', 'train[a:b]'])
def test_bad_split_lists_the_valid_ones(data_dir, split):
  with pytest.raises(ValueError) as error:
    sources.open_source('tiny_shapes', split, data_dir)
  message = str(error.value)
  assert repr(split) in message and 'tiny_shapes' in message
  assert 'train (7 records), test (3 records)' in message.replace(
      'test (3 records), train (7 records)', 'train (7 records), test (3 records)')
  assert 'train[:90%]' in message


def test_unknown_name_lists_what_is_there(data_dir):
  with pytest.raises(ValueError) as error:
    sources.open_source('cifar_10', 'train', data_dir)
  message = str(error.value)
  assert "Unknown data set 'cifar_10'" in message and "Did you mean 'cifar10'" in message
  assert 'digits, tiny_numbers, tiny_scenes, tiny_shapes' in message and data_dir in message


def test_unprepared_gives_the_command(data_dir):
  with pytest.raises(FileNotFoundError) as error:
    sources.open_source('cifar10', 'train', data_dir)
  message = str(error.value)
  assert f'{data_dir}/cifar10/3.0.2' in message and 'digits, tiny_numbers' in message
  assert f'tfds build cifar10 --file_format=array_record --data_dir={data_dir}' in message
  with pytest.raises(FileNotFoundError, match='/no/such/folder does not exist'):
    sources.open_source('cifar10', 'train', '/no/such/folder')


def test_unprepared_says_which_other_version_is_there(data_dir, tmp_path):
  shutil.copytree(f'{data_dir}/tiny_shapes/1.0.0', tmp_path / 'tiny_shapes' / '0.9.0')
  with pytest.raises(FileNotFoundError, match='tiny_shapes:0.9.0'):
    sources.open_source('tiny_shapes', 'train', str(tmp_path))


@pytest.mark.parametrize('name', ['tiny_shapes:7.0.0', 'tiny_shapes/blue', '../tiny_shapes'])
def test_bad_version_configuration_or_spelling(data_dir, name):
  with pytest.raises((ValueError, FileNotFoundError), match='(?s)tiny_shapes'):
    sources.open_source(name, 'train', data_dir)


def test_tfrecord_copy_gives_the_command_to_convert_it(data_dir, tmp_path):
  folder = tfrecord_only(data_dir, tmp_path)
  with pytest.raises(ValueError) as error:
    sources.open_source('tiny_shapes', 'train', str(tmp_path))
  assert "pip install -e '.[prepare]' && " in str(error.value)
  assert (f'tfds convert_format --dataset_version_dir={folder} --out_file_format=array_record'
          in str(error.value))


@pytest.fixture
def copy(data_dir, tmp_path):
  """A copy of tiny_shapes to damage: (folder of the version, the file of its training split)."""
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


def take_another(file):
  shutil.copy(next(file.parent.glob('*test.array_record*')), file)


@pytest.mark.parametrize('damage, message', [
    (remove, 'is missing. In {folder} there are 1 ArrayRecord files: tiny_shapes-test.array_record-00000-of-00001'),
    (cut, 'cannot be read (131071 bytes; '), (empty, 'cannot be read (0 bytes; '), (make_folder, 'is a folder, not a file'),
    (take_another, 'holds 3 records instead of 7')])
def test_half_written_copies_are_described(copy, damage, message):
  folder, file = copy
  damage(file)
  for split in ('train', 'train[:2]', 'test+train'):
    with pytest.raises(ValueError) as error:
      sources.open_source('tiny_shapes', split, str(folder.parent.parent))
    told = str(error.value)
    assert f'{file} {message.format(folder=folder)}' in told and 'Copy the file again' in told
    assert (f'rm -r {folder} && tfds build tiny_shapes --file_format=array_record --data_dir={folder.parent.parent}'
            in told)
  assert len(sources.open_source('tiny_shapes', 'test', str(folder.parent.parent))) == 3


def test_unfinished_preparation_is_named(copy):
  folder, _ = copy
  half = folder.rename(folder.parent / 'incomplete.ABC123_1.0.0')
  with pytest.raises(FileNotFoundError, match=f'(?s)There is {half}, which was not finished: remove it.*tfds build'):
    sources.open_source('tiny_shapes', 'train', str(folder.parent.parent))


def test_a_copy_converted_where_it_lies(copy):
  """As `tfds convert_format` of 4.9.10 leaves it: files of both formats, and the old one's name in the description."""
  folder, file = copy
  info = folder / 'dataset_info.json'
  info.write_text(json.dumps(json.loads(info.read_text()) | {
      'fileFormat': 'tfrecord', 'alternativeFileFormats': ['array_record']}))
  for one in list(folder.glob('*array_record*')):
    (folder / one.name.replace('array_record', 'tfrecord')).write_bytes(b'not looked at')
  source = sources.open_source('tiny_shapes', 'train[1:]', str(folder.parent.parent))
  assert len(source) == 6 and source.record_name(0) == 'train/1' and source[0]['label'] in (0, 1)


def test_split_names(data_dir):
  assert sources.split_names('tiny_shapes', data_dir) == ['test', 'train']


def test_commands_in_errors_are_those_of_the_installed_tfds():
  from tensorflow_datasets.scripts.cli import build, cli_utils
  parsed = cli_utils.make_flags_parser(build.Args, '')(
      ['tfds', 'cifar10', '--file_format=array_record', '--data_dir=/data'])
  assert parsed.positional_datasets == ['cifar10']
  assert str(parsed.paths.data_dir) == '/data'
  assert parsed.generation.file_format == 'array_record'
  # Importing this command imports TensorFlow, so only its text is looked at.
  text = open(importlib.util.find_spec('tensorflow_datasets.scripts.cli.convert_format').origin)
  with text:
    flags = re.findall(r'^  (\w+): ', text.read(), re.MULTILINE)
  assert {'dataset_version_dir', 'out_file_format'} <= set(flags)


def test_labels_must_be_classes(data_dir):
  with pytest.raises(ValueError, match='label: ClassLabel .*, got image: Image, label: Scalar'):
    sources.open_source('tiny_numbers', 'train', data_dir)


def test_default_folder_is_that_of_tfds(data_dir, monkeypatch):
  monkeypatch.setattr(sources.constants, 'DATA_DIR', data_dir)
  assert len(sources.open_source('tiny_shapes', 'train')) == 7


def test_remote_paths_pass_through_untouched(monkeypatch):
  seen = {}

  def builder(name, data_dir):
    seen.update(name=name, data_dir=data_dir)
    raise KeyError('seen enough')

  monkeypatch.setattr(tfds, 'builder', builder)
  with pytest.raises(KeyError):
    sources.open_source('tiny_shapes', 'train', 'gs://bucket/data')
  assert seen == {'name': 'tiny_shapes', 'data_dir': 'gs://bucket/data'}


def test_fake_source_behaves_as_one_from_disk():
  source = conftest.fake_source(count=5)
  assert len(source) == 5 and source[4]['label'] == 0
  assert source.read(range(2)) == [source[0], source[1]]


def test_numbering_tells_what_numbers_mean(data_dir):
  opened = lambda split: sources.open_source('tiny_shapes', split, data_dir)
  train = opened('train')
  assert train.numbering == opened('train').numbering == train.decoded_to(1).numbering == train.keep(range(7)).numbering
  others = [train.keep([0, 1, 2]), train.keep([0, 1, 3]), train.keep([1, 0, 2]), opened('train[:3]'), opened('test')]
  assert len({source.numbering for source in (train, *others)}) == 6
  assert train.keep([0, 2, 4]).keep([0, 2]).numbering == train.keep([0, 4]).numbering


def test_numbering_changes_with_the_files_not_their_place(tmp_path):
  def numbering(place, *names):
    for name in ('a/0', *names):
      path = tmp_path / place / f'{name}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(conftest.encode(np.zeros((2, 2), np.uint8)))
    return sources.open_source(f'folder:{tmp_path / place}', 'all', None).numbering

  assert numbering('here', 'b/1') == numbering('there', 'b/1')
  assert len({numbering('here', 'b/1'), numbering('two', 'b/2'), numbering('three', 'b/1', 'b/2')}) == 3
