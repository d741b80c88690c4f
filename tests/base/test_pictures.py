"""Contact sheets and how they are saved."""
import numpy as np
from PIL import Image
import pytest

from vit_jax.base import pictures
from vit_jax.base.errors import FileError, UserError


def sheet():
  return pictures.draw([[(np.arange(48, dtype=np.uint8).reshape(4, 4, 3), 'one')]])


@pytest.mark.parametrize('name, encoding', [('a.png', 'PNG'), ('a.JPG', 'JPEG'), ('new/folder/a.jpeg', 'JPEG')])
def test_suffix_decides_the_format(tmp_path, name, encoding):
  pictures.save(sheet(), tmp_path / name)
  with Image.open(tmp_path / name) as image:
    assert image.format == encoding and image.size == sheet().size
  assert [path.name for path in (tmp_path / name).parent.iterdir()] == [name.rpartition('/')[2]]


def test_home_folder_is_expanded(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  pictures.save(sheet(), '~/a.png')
  assert (tmp_path / 'a.png').exists()


def test_failed_write_keeps_the_old_picture(tmp_path, monkeypatch):
  path = tmp_path / 'a.png'
  pictures.save(sheet(), path)
  before = path.read_bytes()

  def fail(self, file, format):
    file.write(b'half')
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(Image.Image, 'save', fail)
  with pytest.raises(FileError, match='a.png: cannot write the picture: .*No space left'):
    pictures.save(sheet(), path)
  assert path.read_bytes() == before and [one.name for one in tmp_path.iterdir()] == ['a.png']


def test_other_suffixes_are_errors(tmp_path):
  with pytest.raises(UserError, match='sheet.txt: .* must end in .png, .jpg or .jpeg'):
    pictures.save(sheet(), tmp_path / 'sheet.txt')


def test_a_sheet_holds_its_pictures_enlarged(tmp_path):
  picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
  rows = [[(picture, 'one\ntwo'), None], [(picture[:, :, :1], 'a caption that is longer than its picture is wide'), (picture, '')]]
  sheet = pictures.draw(rows, ['left', 'right'])
  pixels = np.asarray(sheet)
  enlarged = np.repeat(np.repeat(picture, 24, 0), 24, 1)
  windows = np.lib.stride_tricks.sliding_window_view(pixels, enlarged.shape)[:, :, 0]
  found = np.argwhere((windows == enlarged).all(axis=(2, 3, 4)))
  assert len(found) == 2 and (found[1] > found[0]).all()
  pictures.save(sheet, tmp_path / 'new' / 'sheet.png')
  np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / 'new' / 'sheet.png')), pixels)
  assert [path.name for path in (tmp_path / 'new').iterdir()] == ['sheet.png']
  with pytest.raises(ValueError, match='sheet.txt: .*must end in .png'):
    pictures.save(sheet, tmp_path / 'sheet.txt')
