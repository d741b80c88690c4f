"""Augmentation sheets show what training and evaluation get, and every operation."""
import re

import numpy as np
from PIL import Image
import pytest

from tests import tiny
from vit_jax.analysis import augmentation_sheet
from vit_jax.base.errors import FileError, UserError
from vit_jax.data.transforms import randaugment
from vit_jax.data.transforms.registry import TRANSFORMS


def plain(data_dir, **changes):
  return tiny.config(data_dir, **{'data.train_transform': 'resize', **changes})


def test_without_augmentation_training_sees_what_evaluation_sees(data_dir):
  rows, titles = augmentation_sheet.examples(plain(data_dir), count=5, views=3)
  assert titles == ['evaluation', 'training 1', 'training 2', 'training 3']
  assert [len(row) for row in rows] == [4] * 5 and len({row[0][0].tobytes() for row in rows}) == 5
  for (image, caption), *others in rows:
    assert caption in '0123456789'
    for other, same_caption in others:
      np.testing.assert_array_equal(other, image)
      assert same_caption == caption


def test_augmentation_differs_between_epochs_and_depends_on_the_seed(data_dir):
  config = plain(data_dir, **{'data.train_transform': 'pad_crop(2)'})
  rows, _ = augmentation_sheet.examples(config, count=4, views=6)
  again, _ = augmentation_sheet.examples(config, count=4, views=6)
  for row, same in zip(rows, again, strict=True):
    assert len({image.tobytes() for image, _ in row}) > 3
    assert [(image.tobytes(), caption) for image, caption in row] == [(image.tobytes(), c) for image, c in same]


def test_mixtures_are_of_the_classes_in_the_caption(data_dir):
  rows, _ = augmentation_sheet.examples(plain(data_dir, **{'mix.mixup': 1.0}), count=6, views=4)
  originals, mixtures = [row[0] for row in rows], 0
  for row in rows:
    image, name = row[0]
    for mixed, caption in row[1:]:
      weights = dict(re.findall(r'(\d) (\d+) %', caption))
      if len(weights) == 2:
        mixtures += 1
        assert sum(map(int, weights.values())) in (99, 100, 101)
        (partner_name,) = set(weights) - {name}
        errors = [np.abs(mixed - int(weights[name]) / 100 * image - int(weights[partner_name]) / 100 * partner).max()
                  for partner, its_name in originals if its_name == partner_name]
        assert min(errors) < 255 * 0.011 + 0.5  # weights are printed as whole percents
  assert mixtures > 10


def test_any_count_works_whatever_divides_the_batch_size(data_dir):
  rows, _ = augmentation_sheet.examples(plain(data_dir, **{'mix.mixup': 1.0, 'data.repeats': 3, 'data.batch_size': 96}), count=5, views=2)
  assert [len(row) for row in rows] == [3] * 5 and len({row[0][0].tobytes() for row in rows}) == 5


@pytest.mark.parametrize('count, views, message', [
    (301, 1, '--count: must be at most 300, .*got 301'), (0, 1, '--count, --draws: must be at least 1; got 0, 1'),
    (1, 0, '--count, --draws: must be at least 1; got 1, 0')])
def test_bad_numbers_are_errors(data_dir, count, views, message):
  with pytest.raises(UserError, match=message):
    augmentation_sheet.examples(plain(data_dir), count=count, views=views)


def test_photos_are_read_or_named(tmp_path):
  pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
  paths = [str(tmp_path / name) for name in ('one.png', 'two.png')]
  for path in paths:
    Image.fromarray(pixels).save(path)
  for photo in augmentation_sheet.read_photos(paths):
    np.testing.assert_array_equal(photo, pixels)
  (tmp_path / 'two.png').write_text('<html>404</html>')
  with pytest.raises(UserError, match='two.png: .*cannot be decoded'):
    augmentation_sheet.read_photos(paths)
  (tmp_path / 'two.png').unlink()
  with pytest.raises(FileError, match='two.png: cannot read the photo: .*No such file'):
    augmentation_sheet.read_photos(paths)
  with pytest.raises(UserError, match='--operations: expected two photos, .*got 1'):
    augmentation_sheet.read_photos(paths[:1])


def test_every_operation_is_on_the_sheet():
  photos = [np.random.default_rng(seed).integers(0, 256, (300, 280, 3), np.uint8) for seed in (0, 1)]
  rows = augmentation_sheet.operations(photos)
  captions = ' '.join(cell[1] for row in rows for cell in row if cell)
  for name in {**randaugment.RANDAUGMENT, **randaugment.TRIVIAL_WIDE, **TRANSFORMS, 'mixup': None, 'cutmix': None}:
    assert name in captions or name in ('resize', 'resize_ratio')  # no more than resize_small
  assert len({len(row) for row in rows}) == 1
  for policy, table in (('RandAugment', randaugment.RANDAUGMENT), ('TrivialAugment', randaugment.TRIVIAL_WIDE)):
    captioned = [cell[1].split()[1] for row in rows for cell in row if cell and cell[1].startswith(policy)]
    assert set(captioned) == set(table)
  assert {cell[0].shape for row in rows for cell in row if cell} == {(112, 112, 3)}
