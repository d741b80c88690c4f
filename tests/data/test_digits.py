"""The built-in digits: pixels, split, and preparation by processes at the same time."""
import collections
import subprocess
import sys

import numpy as np
import pytest
from sklearn import datasets

from vit_jax.base.errors import FileError
from vit_jax.data.images import decode
from vit_jax.data.sources import digits
from vit_jax.data.sources import registry as sources


def read(split, data_dir):
  """Return the decoded images (N, 8, 8) and labels (N,) of a split."""
  source = sources.open_source('digits', split, data_dir)
  records = [source[index] for index in range(len(source))]
  images = np.stack([decode.decode(record['image'], 1)[:, :, 0] for record in records])
  return images, np.array([record['label'] for record in records])


def test_pixels_and_labels_match_scikit_learn(data_dir):
  bunch = datasets.load_digits()
  # An independent form of the documented formula: v * 255 / 16, rounded half up.
  expected = np.floor(bunch.images * 255 / 16 + 0.5).astype(np.uint8)
  wanted = collections.Counter(zip(map(bytes, expected), bunch.target.tolist(), strict=True))
  images, labels = read('train+test', data_dir)
  assert collections.Counter(zip(map(bytes, images), labels.tolist(), strict=True)) == wanted


def test_split_is_stratified_and_disjoint(data_dir):
  train, train_labels = read('train', data_dir)
  test, test_labels = read('test', data_dir)
  assert len(train) == 1497
  np.testing.assert_array_equal(np.bincount(test_labels), [30] * 10)
  np.testing.assert_array_equal(
      np.bincount(train_labels) + 30, np.bincount(datasets.load_digits().target))
  # No image occurs twice in the data, so none can be in both splits.
  assert len(set(map(bytes, train)) | set(map(bytes, test))) == 1797


def test_split_depends_only_on_the_pixels():
  bunch = datasets.load_digits()
  images, labels = bunch.images.astype(np.uint8), bunch.target
  chosen = digits.test_indices(images, labels)
  order = np.random.default_rng(0).permutation(len(labels))
  again = digits.test_indices(images[order], labels[order])
  assert sorted(order[again].tolist()) == chosen
  assert chosen[:5] == GOLDEN_TEST_INDICES  # Other numbers would be another dataset.


def test_preparing_again_gives_the_same_records(data_dir, tmp_path):
  for split in ('train', 'test'):
    for first, second in zip(read(split, data_dir), read(split, str(tmp_path)), strict=True):
      np.testing.assert_array_equal(first, second)


def test_processes_can_prepare_at_the_same_time(tmp_path):
  program = 'import sys; from vit_jax.data.sources import digits; digits.prepare(sys.argv[1])'
  racers = [subprocess.Popen([sys.executable, '-c', program, str(tmp_path)]) for _ in range(2)]
  assert [racer.wait() for racer in racers] == [0, 0]
  assert [path.name for path in (tmp_path / 'digits').iterdir()] == ['1.0.0']
  assert len(sources.open_source('digits', 'train', str(tmp_path))) == 1497


def test_loser_of_a_race_uses_the_copy_of_the_winner(tmp_path, monkeypatch):
  real = digits.Digits._download_and_prepare

  def lose(builder, *args, **kwargs):
    monkeypatch.setattr(digits.Digits, '_download_and_prepare', real)
    digits.prepare(str(tmp_path))  # Another process is done while this one is still writing.
    real(builder, *args, **kwargs)

  monkeypatch.setattr(digits.Digits, '_download_and_prepare', lose)
  digits.prepare(str(tmp_path))
  assert [path.name for path in (tmp_path / 'digits').iterdir()] == ['1.0.0']
  assert len(sources.open_source('digits', 'train', str(tmp_path))) == 1497


def test_other_failures_to_prepare_are_reported(tmp_path):
  (tmp_path / 'file').write_text('no folder')
  with pytest.raises(FileError, match='file: cannot prepare digits here: .*; choose another folder'):
    digits.prepare(str(tmp_path / 'file'))


def test_reading_data_imports_neither_tensorflow_nor_jax():
  program = ('import sys; from vit_jax.data.sources import registry; from vit_jax.data.transforms import spec; '
             'print(sorted({"tensorflow", "torch", "jax", "flax", "sklearn"} & set(sys.modules)))')
  result = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True,
                          check=True)
  assert result.stdout.strip() == '[]'


GOLDEN_TEST_INDICES = [20, 21, 27, 37, 63]
