"""The contact sheet shows what training and evaluation get."""
import re

import numpy as np
from PIL import Image
import pytest

from tests import tiny
from vit_jax.base import pictures as contact_sheet
from vit_jax import show
from vit_jax.data.transforms import randaugment
from vit_jax.data.transforms.registry import TRANSFORMS


def plain(data_dir, **changes):
  return tiny.config(data_dir, **{'data.train_transform': 'resize', **changes})


def test_without_augmentation_training_sees_what_evaluation_sees(data_dir):
  rows, titles = show.examples(plain(data_dir), count=5, draws=3)
  assert titles == ['evaluation', 'training 1', 'training 2', 'training 3']
  assert [len(row) for row in rows] == [4] * 5 and len({row[0][0].tobytes() for row in rows}) == 5
  for (image, caption), *others in rows:
    assert caption in '0123456789'
    for other, same_caption in others:
      np.testing.assert_array_equal(other, image)
      assert same_caption == caption


def test_augmentation_differs_from_draw_to_draw_and_is_the_seeds(data_dir):
  config = plain(data_dir, **{'data.train_transform': 'pad_crop(2)'})
  rows, _ = show.examples(config, count=4, draws=6)
  again, _ = show.examples(config, count=4, draws=6)
  for row, same in zip(rows, again):
    assert len({image.tobytes() for image, _ in row}) > 3
    assert [(image.tobytes(), caption) for image, caption in row] == [(image.tobytes(), c) for image, c in same]


def test_mixtures_are_of_the_images_that_the_caption_names(data_dir):
  rows, _ = show.examples(plain(data_dir, **{'mix.mixup': 1.0}), count=6, draws=4)
  originals, mixtures = [row[0] for row in rows], 0
  for row in rows:
    image, name = row[0]
    for mixed, caption in row[1:]:
      shares = dict(re.findall(r'(\d) (\d+) %', caption))
      if len(shares) == 2:
        mixtures += 1
        assert sum(map(int, shares.values())) in (99, 100, 101)
        (partner_name,) = set(shares) - {name}
        errors = [np.abs(mixed - int(shares[name]) / 100 * image - int(shares[partner_name]) / 100 * partner).max()
                  for partner, its_name in originals if its_name == partner_name]
        assert min(errors) < 255 * 0.011 + 0.5  # shares are written as whole percents
  assert mixtures > 10


def test_any_count_is_drawn_whatever_the_batch_has_to_divide_by(data_dir):
  rows, _ = show.examples(plain(data_dir, **{'mix.mixup': 1.0, 'data.repeats': 3, 'data.batch_size': 96}), count=5, draws=2)
  assert [len(row) for row in rows] == [3] * 5 and len({row[0][0].tobytes() for row in rows}) == 5


def test_numbers_that_do_not_fit_are_errors(data_dir):
  with pytest.raises(ValueError, match='expected --count to be 1..300 and --draws at least 1, got 301 and 1'):
    show.examples(plain(data_dir), count=301, draws=1)


def test_every_operation_is_on_the_sheet():
  photos = [np.random.default_rng(seed).integers(0, 256, (300, 280, 3), np.uint8) for seed in (0, 1)]
  rows = show.operations(photos)
  captions = ' '.join(cell[1] for row in rows for cell in row if cell)
  for name in {**randaugment.RANDAUGMENT, **randaugment.TRIVIAL_WIDE, **TRANSFORMS, 'mixup': None, 'cutmix': None}:
    assert name in captions or name == 'resize'  # no more than resize_small
  assert len({len(row) for row in rows}) == 1
  for policy, table in (('RandAugment', randaugment.RANDAUGMENT), ('TrivialAugment', randaugment.TRIVIAL_WIDE)):
    named = [cell[1].split()[1] for row in rows for cell in row if cell and cell[1].startswith(policy)]
    assert set(named) == set(table)
  assert {cell[0].shape for row in rows for cell in row if cell} == {(112, 112, 3)}


def test_a_sheet_holds_its_pictures_enlarged_to_be_seen(tmp_path):
  picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
  rows = [[(picture, 'one\ntwo'), None], [(picture[:, :, :1], 'a caption that is longer than its picture is wide'), (picture, '')]]
  sheet = contact_sheet.draw(rows, ['left', 'right'])
  pixels = np.asarray(sheet)
  enlarged = np.repeat(np.repeat(picture, 24, 0), 24, 1)
  windows = np.lib.stride_tricks.sliding_window_view(pixels, enlarged.shape)[:, :, 0]
  found = np.argwhere((windows == enlarged).all(axis=(2, 3, 4)))
  assert len(found) == 2 and (found[1] > found[0]).all()
  contact_sheet.save(sheet, tmp_path / 'new' / 'sheet.png')
  np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / 'new' / 'sheet.png')), pixels)
  assert [path.name for path in (tmp_path / 'new').iterdir()] == ['sheet.png']
  with pytest.raises(ValueError, match='sheet.txt: .*end in .png'):
    contact_sheet.save(sheet, tmp_path / 'sheet.txt')


def test_command(data_dir, tmp_path):
  arguments = ('--config=configs/digits.py', f'--config.data.data_dir={data_dir}', '--config.mix.cutmix=1.0', '--count=4')
  process = tiny.command('show', *arguments, '--draws=2', f'--output={tmp_path / "sheet.png"}')
  output, error = process.communicate()
  assert process.returncode == 0 and f'Wrote {tmp_path / "sheet.png"}' in output, error
  assert Image.open(tmp_path / 'sheet.png').width > 3 * 96
