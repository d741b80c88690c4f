"""Folders of images as sources: classes, order, slices, broken files, and what happens to those in training."""
import collections
import os
import pathlib

from absl import logging
import numpy as np
import pytest

from tests.conftest import encode, fake_source
from vit_jax import audit
from vit_jax.base.errors import FileError, MissingFileError, UserError
from vit_jax.data.images import decode
from vit_jax.data.loading import corrupt, loader
from vit_jax.data.loading.config import DataConfig
from vit_jax.data.loading.dataset import Dataset
from vit_jax.data.sources import folder
from vit_jax.data.sources import registry as sources


def fill(path, counts, suffix='png'):
  """Make PATH/NAME/0.png, 1.png, … for {NAME: count}; the pixel values are the class and the number."""
  for label, (name, count) in enumerate(counts.items()):
    (path / name).mkdir(parents=True)
    for index in range(count):
      image = np.full((6, 5, 3), (label, index, 0), np.uint8)
      (path / name / f'{index}.{suffix}').write_bytes(encode(image))
  return path


def pixels(source):
  """Return [(class, number)] of the records, as `fill` painted them."""
  images = [decode.decode(source[index]['image'], 3) for index in range(len(source))]
  return [tuple(image[0, 0, :2].tolist()) for image in images]


def classes(source):
  return collections.Counter(source[index]['label'] for index in range(len(source)))


@pytest.fixture
def flowers(tmp_path):
  """Splits train (20 roses, 10 tulips, 5 asters) and val (3 roses, 2 tulips)."""
  fill(tmp_path / 'flowers' / 'train', {'rose': 20, 'tulip': 10, 'aster': 5})
  fill(tmp_path / 'flowers' / 'val', {'rose': 3, 'tulip': 2})
  return tmp_path / 'flowers'


def test_split_folders(flowers):
  train, val = (sources.open_source(f'folder:{flowers}', split) for split in ('train', 'val'))
  assert (len(train), train.name, train.split, train.channels) == (35, f'folder:{flowers}', 'train', 3)
  # The same labels, although val has no aster.
  assert train.class_names == val.class_names == ('aster', 'rose', 'tulip') and train.num_classes == 3
  assert classes(train) == {0: 5, 1: 20, 2: 10} and classes(val) == {1: 3, 2: 2}
  assert sorted(pixels(train)) == [(0, n) for n in range(20)] + [(1, n) for n in range(10)] + [(2, n) for n in range(5)]
  assert train.read([4, 0]) == [train[4], train[0]]


def test_folder_without_splits_is_the_split_all(tmp_path):
  fill(tmp_path, {'rose': 40, 'aster': 10})
  most, rest = (folder.open_folder(str(tmp_path), split) for split in ('all[:90%]', 'all[90%:]'))
  assert classes(most) == {1: 36, 0: 9} and classes(rest) == {1: 4, 0: 1}
  assert pixels(most) + pixels(rest) == pixels(folder.open_folder(str(tmp_path), 'all'))


def test_order_is_shuffled_and_independent_of_the_path(flowers):
  order = pixels(folder.open_folder(str(flowers), 'train'))
  assert order != sorted(order)
  moved = flowers.rename(flowers.parent / 'moved')
  assert pixels(folder.open_folder(str(moved), 'train')) == order


@pytest.mark.parametrize('split, expected', [
    ('train[:10]', slice(10)), ('train[10:]', slice(10, None)), ('train[-5:]', slice(-5, None)),
    ('train[:-5]', slice(-5)), ('train[20%:60%]', slice(7, 21)), ('train[:33.4%]', slice(12)),
    ('train[-20%:]', slice(-7, None)), (' train [ 3 : 4 ] ', slice(3, 4)), ('train[:]', slice(None)),
])
def test_slices(flowers, split, expected):
  everything = pixels(folder.open_folder(str(flowers), 'train'))
  assert pixels(folder.open_folder(str(flowers), split)) == everything[expected]


def test_sums(flowers):
  parts = [pixels(folder.open_folder(str(flowers), split)) for split in ('train[:4]', 'val', 'train[:4]+val')]
  assert parts[0] + parts[1] == parts[2]


@pytest.mark.parametrize('split, message', [
    ('trian', "split 'trian': not in .*flowers. Splits there: train .classes aster, rose, tulip., val .classes rose, "
     'tulip.'),
    ('all', "split 'all': not in .*. Splits there: train"),
    ('', "split '': expected a split such as train"), ('train[', r"split 'train\['"),
    ('train[a:b]', r"split 'train\[a:b\]'"),
    ('train[1.5:]', 'expected a split such as'), ('train[3]', 'expected a split such as'),
    ('train[5:5]', 'train has 35 images; records 5 to 5 are none of them'),
    ('train[:99]', 'records 0 to 99 are none of them, or too many'), ('train[-99:]', 'records -64 to 35'),
])
def test_bad_splits(flowers, split, message):
  with pytest.raises(UserError, match=message):
    folder.open_folder(str(flowers), split)


def test_content_decides_the_format_and_other_files_are_ignored(tmp_path, caplog):
  fill(tmp_path, {'rose': 3})
  names = {'JPEG': 'a.PNG', 'PNG': 'b.gif', 'GIF': 'c.JPG', 'WEBP': 'd.jfif', 'BMP': 'e.bmp', 'TIFF': 'f.Tif'}
  (tmp_path / 'aster').mkdir()
  for encoding, name in names.items():
    (tmp_path / 'aster' / name).write_bytes(encode(np.full((6, 5, 3), 99, np.uint8), encoding))
  for name in ('notes.txt', '.DS_Store', '.hidden.png'):
    (tmp_path / 'rose' / name).write_text('no image')
  (tmp_path / '.cache').mkdir()
  (tmp_path / 'list.csv').touch()
  with caplog.at_level(logging.WARNING, logger='absl'):
    source = folder.open_folder(str(tmp_path), 'all')
  assert classes(source) == {0: 6, 1: 3} and len(pixels(source)) == 9
  assert 'ignored 3 files that are not images' in caplog.text and f'{tmp_path}/rose/notes.txt' in caplog.text


def test_links_are_followed(flowers, tmp_path):
  linked = tmp_path / 'linked'
  linked.mkdir()
  os.symlink(flowers / 'train' / 'rose', linked / 'rose')
  (linked / 'aster').mkdir()
  os.symlink(flowers / 'train' / 'aster' / '0.png', linked / 'aster' / 'x.png')
  assert classes(folder.open_folder(str(linked), 'all')) == {0: 1, 1: 20}


def test_photographs_are_turned_upright(tmp_path):
  from PIL import Image
  exif = Image.Exif()
  exif[0x0112] = 6
  (tmp_path / 'rose').mkdir()
  (tmp_path / 'rose' / 'sideways.png').write_bytes(encode(np.zeros((4, 7, 3), np.uint8), exif=exif))
  source = folder.open_folder(str(tmp_path), 'all')
  batch, = loader.eval_batches(source, batch_size=1, image_size=(7, 4), transform='central_crop')
  assert batch['image'].shape == (1, 7, 4, 3)


def test_unlabeled_test_images_do_not_hide_the_splits(flowers):
  (flowers / 'test').mkdir()
  (flowers / 'test' / '1.png').write_bytes(encode(np.zeros((2, 2), np.uint8)))
  assert len(folder.open_folder(str(flowers), 'train')) == 35
  with pytest.raises(UserError, match="split 'test': not in .*. Splits there: train .*, val "):
    folder.open_folder(str(flowers), 'test')


def test_run_directory_beside_the_splits_does_not_change_classes(flowers):
  (flowers / 'run' / 'checkpoints' / '10').mkdir(parents=True)
  (flowers / 'run' / 'tensorboard').mkdir()
  (flowers / 'run' / 'config.json').touch()
  assert folder.open_folder(str(flowers), 'train').class_names == ('aster', 'rose', 'tulip')


@pytest.mark.parametrize('make, split, error, message', [
    (lambda path: None, 'all', MissingFileError, '{path}: no such folder. {parent} has neighbor.'),
    (lambda path: path.mkdir(), 'all', UserError, '{path}: expected class folders, found nothing.'),
    (lambda path: (path.mkdir(), (path / '1.png').touch()), 'all', UserError,
     '{path}: expected class folders, found 1.png. Expected PATH/'),
    (lambda path: fill(path, {'rose': 0, 'aster': 0}), 'all', UserError,
     '{path}: no images in its folders, aster, rose.'),
    (lambda path: fill(path, {'rose': 1, 'aster': 0}), 'all', UserError,
     '{path}/aster: no images in this class folder; found nothing. Images end in .bmp, .gif'),
    (lambda path: fill(path / 'train', {'rose': 1, 'aster': 0}), 'train', UserError,
     '{path}/train/aster: no images in this class folder'),
    (lambda path: fill(path, {'rose': 1, 'aster/blue': 1}), 'all', UserError,
     '{path}: expected class folders without folders in them, but {path}/aster has blue.'),
    (lambda path: fill(path / 'train', {'rose': 1, 'aster/blue': 1}), 'train', UserError,
     '{path}/train/aster: expected a class folder of images, found the folders blue.'),
])
def test_errors_of_bad_folders(tmp_path, make, split, error, message):
  (tmp_path / 'neighbor').mkdir()
  path = tmp_path / 'flowers'
  make(path)
  with pytest.raises(error) as raised:
    folder.open_folder(str(path), split)
  assert message.format(path=path, parent=tmp_path) in str(raised.value)


def test_remote_folders_are_listed_in_one_request_each(flowers, monkeypatch):
  listed = []

  class Remote:
    """A gs:// path as epath presents it, with no method that would look at single files."""

    def __init__(self, path):
      self.local = pathlib.Path(path)

    def __fspath__(self):
      return f'gs:/{self.local}'

    def __truediv__(self, name):
      return Remote(self.local / name)

    @property
    def parents(self):
      return []

    def is_dir(self):
      return True

    def read_bytes(self):
      return self.local.read_bytes()

    def walk(self):
      listed.append(self.local.name)
      yield next(os.walk(self.local))

  monkeypatch.setattr(folder.epath, 'Path', lambda path: Remote(path.removeprefix('gs:/')))
  source = folder.open_folder(f'gs:/{flowers}', 'val')
  assert classes(source) == {1: 3, 2: 2}
  assert listed == ['flowers', 'train', 'val', 'aster', 'rose', 'tulip']


def test_paths_relative_to_data_dir(flowers):
  assert len(sources.open_source('folder:flowers', 'val', str(flowers.parent))) == 5
  assert len(sources.open_source(f'folder:{flowers}', 'val', '/elsewhere')) == 5
  with pytest.raises(UserError, match="dataset 'folder:': expected folder:PATH, such as folder:/data/flowers"):
    sources.open_source('folder:', 'val')


def dataset(path, **options):
  options = dict(name=f'folder:{path}', batch_size=8, image_size=(6, 5), train_transform='resize') | options
  return Dataset(DataConfig(**options), seed=0)


def damage(path):
  """Truncate one image, and replace another by text."""
  (path / 'train' / 'rose' / '7.png').write_bytes((path / 'train' / 'rose' / '7.png').read_bytes()[:50])
  (path / 'train' / 'aster' / '2.png').write_text('<html>404</html>')


def test_corrupt_files_are_reported(flowers):
  damage(flowers)
  for cache in (False, True):
    with pytest.raises(ValueError, match=f"file {flowers}/train/(rose/7|aster/2).png: .* cannot be decoded"):
      list(dataset(flowers, cache=cache).eval_batches('train', 8))


def test_corrupt_files_are_skipped_and_counted(flowers, caplog):
  whole = pixels(dataset(flowers).source)
  damage(flowers)
  with caplog.at_level(logging.WARNING, logger='absl'):
    data = dataset(flowers, corrupt='skip')
    batches = list(data.eval_batches('train', 8))
  expected = [pixel for pixel in whole if pixel not in ((0, 7), (2, 2))]
  assert pixels(data.source) == expected and len(data.source) == 33
  assert [tuple(pixel) for batch in batches for pixel in batch['image'][batch['mask']][:, 0, 0, :2]] == expected
  assert sum(batch['mask'].sum() for batch in batches) == 33
  messages = [record.getMessage() for record in caplog.records]
  assert len(messages) == 1  # The split is checked once, however often it is opened.
  assert 'skipped 2 of 35 images' in messages[0] and f'{flowers}/train/rose/7.png' in messages[0]


def test_skipping_keeps_resume_exact(flowers):
  damage(flowers)
  first = iter(dataset(flowers, corrupt='skip').train_batches())
  position = [next(first)['id'] for _ in range(3)] and first.get_state()
  again = iter(dataset(flowers, corrupt='skip').train_batches())
  again.set_state(position)
  for _ in range(6):
    np.testing.assert_array_equal(next(first)['image'], next(again)['image'])


def test_skipping_works_for_any_source():
  records = [{'image': encode(np.full((6, 5, 3), index, np.uint8)) if index % 3 else b'', 'label': 0}
             for index in range(200)]
  source = corrupt.without_corrupt(fake_source(records=records), 2)
  assert [decode.decode(source[index]['image'], 3)[0, 0, 0] for index in range(len(source))] == [
      index for index in range(200) if index % 3]
  assert source.describe(2) == "record 4 of dataset 'fake', split 'train'"
  assert source.read([1, 0]) == [records[2], records[1]]
  whole = fake_source(5)
  assert corrupt.without_corrupt(whole, 1) is whole
  with pytest.raises(ValueError, match='(?s)skipped 7 of 7 .*record 4 .*and 2 more'):
    corrupt.without_corrupt(fake_source(records=records[:1] * 7), 1)


def test_unreadable_files_are_reported(flowers):
  file = flowers / 'train' / 'rose' / '7.png'
  file.unlink()
  file.symlink_to('nowhere')  # Not even root, whom permissions do not stop, can read this.
  with pytest.raises(FileError, match=f'{file}: cannot read the image: No such file .*corrupt=skip'):
    list(dataset(flowers).eval_batches('train', 8))
  assert len(dataset(flowers, corrupt='skip').source) == 34
  found = audit.audit(f'folder:{flowers}')
  assert [found.scan.name(record) for record in found.scan.errors] == ['train/rose/7.png']


def test_missing_permission_gives_the_command(flowers, monkeypatch):
  def refuse(*args, onerror=None, **kwargs):
    onerror(PermissionError(13, 'Permission denied', '/flowers/train'))
    return iter([('', [], [])])

  source = folder.open_folder(str(flowers), 'train')
  monkeypatch.setattr(folder.os, 'walk', refuse)
  with pytest.raises(FileError, match='/flowers/train: cannot list the folder: Permission denied. .*chmod -R u.rX '
                     "'/flowers/train'"):
    folder.open_folder(str(flowers), 'train')
  file = flowers / 'train' / 'rose' / '7.png'

  def deny(self):
    raise PermissionError(13, 'Permission denied', str(self))

  monkeypatch.setattr(type(folder.epath.Path(file)), 'read_bytes', deny)
  with pytest.raises(FileError, match="png: cannot read the image: Permission denied. .*chmod -R u.rX '.*png'"):
    source[0]


def test_record_names_of_folders_without_splits(tmp_path, monkeypatch):
  fill(tmp_path / 'flowers', {'rose': 2, 'aster': 1})
  names = {'aster/0.png', 'rose/0.png', 'rose/1.png'}
  monkeypatch.chdir(tmp_path / 'flowers')
  for path in (tmp_path / 'flowers', '.', './'):
    source = folder.open_folder(str(path), 'all')
    assert {source.record_name(index) for index in range(3)} == names
  found = audit.audit('folder:.')
  audit.write_list(found, 'list.txt', '')
  assert len(dataset('.', train_split='all', exclude='list.txt').source) == 3 - len(found.excluded)


@pytest.mark.parametrize('options, message', [
    ({'corrupt': 'ignore'}, r"data.corrupt: unknown 'ignore'; choose from \['error', 'skip'\]"),
    ({'channels': 4}, r'data.channels: unknown 4; choose from \[None, 1, 3\]')])
def test_bad_choices(flowers, options, message):
  with pytest.raises(ValueError, match=message):
    dataset(flowers, **options)


def test_channels_override(flowers, data_dir):
  batch = next(iter(dataset(flowers, channels=1).eval_batches('val', 2)))
  assert batch['image'].shape == (2, 6, 5, 1)
  digits = Dataset(DataConfig(name='digits', data_dir=data_dir, batch_size=2, image_size=(8, 8), channels=3), seed=0)
  assert next(iter(digits.train_batches()))['image'].shape == (2, 8, 8, 3)
