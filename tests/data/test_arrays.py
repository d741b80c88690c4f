"""Arrays in memory and in .npz files as sources."""
import numpy as np
import pytest

from tests.conftest import encode
from vit_jax.base.errors import MissingFileError, UserError
from vit_jax.data.images import decode
from vit_jax.data.loading.config import DataConfig
from vit_jax.data.loading.dataset import Dataset
from vit_jax.data.sources import arrays
from vit_jax.data.sources import registry as sources


def images(count, channels=3, size=(7, 5)):
  shape = (count, *size, *([channels] if channels else []))
  return np.random.default_rng(count).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def cats(tmp_path):
  """Splits train (10 images) and test (4), with class names."""
  path = tmp_path / 'cats.npz'
  np.savez(path, train_images=images(10), train_labels=np.arange(10) % 2, test_images=images(4),
           test_labels=np.zeros((4, 1), np.uint8), class_names=['cat', 'no cat'])
  return path


@pytest.mark.parametrize('channels', [None, 1, 3])
def test_pixels_and_labels_round_trip(channels):
  pixels = images(6, channels)
  source = arrays.from_arrays(pixels, np.array([0, 1, 2, 3, 0, 1]))
  assert (len(source), source.channels, source.class_names) == (6, channels or 1, ('0', '1', '2', '3'))
  for index in range(6):
    record = source[index]
    got = decode.decode(record['image'], source.channels)
    np.testing.assert_array_equal(got, pixels[index].reshape(7, 5, -1))
    assert record['label'] == index % 4
  assert source.read([3])[0] == source[3]


def test_npz_splits(cats):
  train, test = (sources.open_source(f'npz:{cats}', split) for split in ('train', 'test'))
  assert (len(train), len(test), train.class_names, train.channels) == (10, 4, ('cat', 'no cat'), 3)
  assert train.name == f'npz:{cats}' and sources.split_names(f'npz:{cats}') == ['test', 'train']
  part = sources.open_source('npz:cats.npz', 'train[8:]+test[:1]', str(cats.parent))
  assert [part.record_name(index) for index in range(3)] == ['train/8', 'train/9', 'test/0']
  assert part.read(range(3)) == [train[8], train[9], test[0]]
  assert part.split_fingerprints == {**train.split_fingerprints, **test.split_fingerprints}


def test_single_pair_is_the_split_all_and_columns_are_classes(tmp_path):
  np.savez_compressed(tmp_path / 'a.npz', images=images(5, None), labels=np.eye(5, 3, dtype=np.uint8))
  source = arrays.open_npz(str(tmp_path / 'a.npz'), 'all[1:]')
  assert source.multi_label and source.num_classes == 3
  assert [source[index]['label'] for index in range(4)] == [[1], [2], [], []]


def test_classes_are_counted_over_all_splits(tmp_path):
  np.savez(tmp_path / 'a.npz', train_images=images(2), train_labels=[0, 1], test_images=images(2), test_labels=[0, 5])
  assert arrays.open_npz(str(tmp_path / 'a.npz'), 'train').num_classes == 6


def test_training_batches(cats):
  data = Dataset(DataConfig(name=f'npz:{cats}', batch_size=4, image_size=(7, 5), train_transform='resize'), seed=0)
  batch = next(iter(data.train_batches()))
  whole = np.load(cats)
  np.testing.assert_array_equal(batch['image'], whole['train_images'][batch['id']])
  np.testing.assert_array_equal(batch['label'], whole['train_labels'][batch['id']])


@pytest.mark.parametrize('content, split, error, message', [
    (None, 'train', MissingFileError, 'a.npz: no such file. .npz files in .*: other.npz'),
    ({}, 'train', UserError, 'a.npz: expected arrays SPLIT_images .* found nothing. Write it with np.savez'),
    ({'x_train': [1]}, 'train', UserError, 'found x_train'),
    ({'train_images': images(2)}, 'train', UserError, 'there is train_images, but no train_labels'),
    ({'train_images': images(2), 'train_labels': [0, 1]}, 'test', UserError,
     "split 'test': no 'test' in .*a.npz. Splits there: train"),
    ({'train_images': images(2), 'train_labels': [0, 1]}, 'train[5:]', UserError, 'train has 2 images'),
    ({'train_images': images(2), 'train_labels': [0]}, 'train', UserError,
     "split 'train': .* got 2 images .* 1 label$"),
    ({'train_images': images(2) / 255, 'train_labels': [0, 1]}, 'train', UserError,
     r'uint8, .* got float64 of shape \(2'),
    ({'train_images': images(2, 4), 'train_labels': [0, 1]}, 'train', UserError, r'got uint8 of shape \(2, 7, 5, 4\)'),
    ({'train_images': images(2), 'train_labels': [0.5, 1]}, 'train', UserError, 'to be integers .* got float64'),
    ({'train_images': images(0), 'train_labels': np.zeros(0, int)}, 'train', UserError,
     'at least one image, got 0 images'),
    ({'train_images': images(2), 'train_labels': [0, -1]}, 'train', UserError, r"a.npz, split 'train': .* got -1\.\.0"),
    ({'train_images': images(2), 'train_labels': [0, 10**6]}, 'train', UserError, r'in 0\.\.999999, got 0\.\.1000000'),
    ({'train_images': images(2), 'train_labels': [0, 2], 'class_names': ['a', 'b']}, 'train', UserError,
     r'in 0\.\.1 for 2 class names, got 0\.\.2'),
    ({'train_images': images(2), 'train_labels': [[0, 2], [1, 0]]}, 'train', UserError, r'to be 0 or 1 .* got 0\.\.2'),
    ({'train_images': images(2), 'train_labels': [[0, 1], [1, 0]], 'class_names': ['a']}, 'train', UserError,
     r'each of the 1 class names, got shape \(2, 2\)'),
    ({'train_images': images(2), 'train_labels': [0, 1], 'test_images': images(2), 'test_labels': [[0, 1], [1, 0]]},
     'train', UserError, r'test_labels of shape \(2, 2\) and train_labels of shape \(2,\)'),
    ({'train_images': images(2), 'train_labels': [0, 1], 'class_names': np.array(['a', 'b'], object)}, 'train',
     UserError, 'a.npz: the array class_names is damaged, or holds objects'),
    ({'train_images': images(2), 'train_labels': [0, 1], 'class_names': 'ab'}, 'train', UserError,
     'a.npz: expected class_names to be a list of text, .* got <U2 of shape'),
])
def test_errors_of_bad_files(tmp_path, content, split, error, message):
  np.savez(tmp_path / 'other.npz', a=1)
  path = tmp_path / 'a.npz'
  if content is not None:
    np.savez(path, **content)
  with pytest.raises(error, match=message):
    sources.open_source(f'npz:{path}', split)


def test_errors_of_damaged_files_and_pickles(cats, tmp_path):
  whole = cats.read_bytes()
  (tmp_path / 'cut.npz').write_bytes(whole[:200])
  with pytest.raises(UserError, match='cut.npz: cannot be read as an .npz file'):
    sources.open_source(f'npz:{tmp_path}/cut.npz', 'train')
  (tmp_path / 'text.npz').write_bytes(encode(images(1)[0]))
  with pytest.raises(UserError, match='text.npz: cannot be read'):
    sources.open_source(f'npz:{tmp_path}/text.npz', 'train')
  damaged = bytearray(whole)
  damaged[whole.index(b'NUMPY') + 200] ^= 255
  (tmp_path / 'bits.npz').write_bytes(damaged)
  with pytest.raises(UserError, match='bits.npz: the array .* is damaged'):
    sources.open_source(f'npz:{tmp_path}/bits.npz', 'train')
  np.savez(tmp_path / 'pickle.npz', train_images=np.array([{}], object), train_labels=[0])
  with pytest.raises(UserError, match='pickle.npz: .*pickle'):
    sources.open_source(f'npz:{tmp_path}/pickle.npz', 'train')
