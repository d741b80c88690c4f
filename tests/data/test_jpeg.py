"""Crops decoded from JPEGs against Pillow's decoding of the whole image."""
import io
import threading

import numpy as np
from PIL import ExifTags, Image
import pytest
import simplejpeg

from tests.conftest import encode
from tests.data.test_decode import TURNS
from vit_jax.data.images import decode, jpeg
from vit_jax.data.transforms.spec import parse


def scene(rows=70, columns=53):
  """Return colors that change quickly enough to show which rows chroma upsampling reads."""
  row, column = np.indices((rows, columns))
  waves = [np.sin(row / 2) + np.cos(column / 3), np.sin(row * column / 90), np.cos(row / 5 - column / 2)]
  return (127 + 60 * np.stack(waves, axis=-1)).astype(np.uint8)


def jpeg_bytes(image, **options):
  return encode(image, 'JPEG', **options)


def pillow(encoded):
  return np.asarray(Image.open(io.BytesIO(encoded)).convert('RGB'))


FILES = {
    **{name: simplejpeg.encode_jpeg(scene(), colorsubsampling=name) for name in ('444', '422', '420', '440', '411')},
    'gray': jpeg_bytes(scene()[:, :, 0]), 'progressive': jpeg_bytes(scene(), progressive=True),
    'restarts': jpeg_bytes(scene(), restart_marker_rows=1), 'rgb': jpeg_bytes(scene(), keep_rgb=True),
    'short rows': jpeg_bytes(scene(70, 1)), 'one row': jpeg_bytes(scene(1, 70)), 'a pixel': jpeg_bytes(scene(1, 1)),
}


@pytest.mark.parametrize('name', FILES)
def test_whole_image_matches_pillow(name):
  np.testing.assert_array_equal(decode.decode(FILES[name], 3), pillow(FILES[name]))


@pytest.mark.parametrize('name', FILES)
def test_every_crop_matches_the_whole_image(name):
  whole = pillow(FILES[name])
  picture = decode.open_image(FILES[name], 3)
  assert isinstance(picture, decode.Picture) and picture.shape == whole.shape
  height, width, _ = whole.shape
  for bottom in range(1, height + 1):  # Each row is the last one once, at every position within a block.
    top, left = bottom // 2, bottom % width
    np.testing.assert_array_equal(picture.crop(top, left, bottom - top, width - left), whole[top:bottom, left:])


def test_gray_is_the_stored_luma():
  encoded, weights = FILES['444'], [0.299, 0.587, 0.114]
  gray = decode.decode(encoded, 1)
  np.testing.assert_allclose(gray[:, :, 0], pillow(encoded) @ weights, atol=2)
  np.testing.assert_array_equal(decode.open_image(encoded, 1).crop(3, 5, 20, 30), gray[3:23, 5:35])


@pytest.mark.parametrize('orientation', TURNS)
def test_crops_of_turned_photographs(orientation):
  exif = Image.Exif()
  exif[ExifTags.Base.Orientation] = orientation
  encoded = jpeg_bytes(scene(), exif=exif)
  whole = TURNS[orientation](pillow(encoded))
  picture = decode.open_image(encoded, 3, upright=True)
  assert picture.shape == whole.shape
  np.testing.assert_array_equal(picture, whole)
  for top, left, rows, columns in ((0, 0, 5, 7), (11, 3, 24, 31), (whole.shape[0] - 9, whole.shape[1] - 8, 9, 8)):
    np.testing.assert_array_equal(picture.crop(top, left, rows, columns), whole[top:top + rows, left:left + columns])
  assert decode.open_image(encoded, 3).shape == (70, 53, 3)  # as TensorFlow


@pytest.mark.parametrize('spec', ['inception_crop|flip', 'inception_crop(area=(0.9, 1.0), aspect=(0.1, 0.1))', 'resize',
                                  'resize_small(9)|central_crop', 'random_crop', 'flip|resize'])
@pytest.mark.parametrize('name', ['420', 'progressive'])
def test_transforms_treat_a_picture_like_its_pixels(name, spec):
  transform, results = parse(spec, (8, 8)), []
  for seed in range(5):
    for image in (decode.open_image(FILES[name], 3), pillow(FILES[name])):
      results.append(transform(image, np.random.default_rng(seed)))
  for one, other in zip(results[::2], results[1::2], strict=True):  # after all are made: none may be in reused memory
    np.testing.assert_array_equal(one, other)


def test_pillow_decodes_cmyk_and_arithmetic_coding():
  assert jpeg.read_header(jpeg_bytes(Image.fromarray(scene()).convert('CMYK'))) is None
  assert jpeg.read_header(FILES['444'].replace(b'\xff\xc0', b'\xff\xc9')) is None
  twelve_bit = FILES['444'].replace(b'\xff\xc0\x00\x11\x08', b'\xff\xc0\x00\x11\x0c')
  assert jpeg.read_header(twelve_bit) is None
  for encoded in (FILES['444'][:100], b'\xff\xd8\xff', b'\xff\xd8\xff\xff\xff', encode(scene())):
    assert jpeg.read_header(encoded) is None


def test_padding_before_markers_is_allowed():
  encoded = FILES['420'].replace(b'\xff\xdb', b'\xff\xff\xff\xdb')
  np.testing.assert_array_equal(decode.open_image(encoded, 3).crop(0, 0, 20, 20), pillow(FILES['420'])[:20, :20])


@pytest.mark.parametrize('kept', [0.3, 0.6, 0.95])
@pytest.mark.parametrize('name', ['444', '420', 'progressive', 'restarts'])
def test_truncated_file_is_detected_whatever_is_cropped(name, kept):
  encoded = FILES[name][:int(len(FILES[name]) * kept)]
  with pytest.raises(decode.DecodeError, match='cannot be decoded: OSError.*[Tt]runcated'):
    picture = decode.open_image(encoded, 3)
    picture.crop(0, 0, 1, 1)


def test_damage_that_pillow_repairs_gives_the_same_pixels():
  whole = FILES['420']
  damaged = whole[:len(whole) // 2] + b'\xff\xd9' + whole[len(whole) // 2 + 2:]
  np.testing.assert_array_equal(decode.decode(damaged, 3), pillow(damaged))
  np.testing.assert_array_equal(decode.open_image(damaged, 3).crop(5, 6, 60, 40), pillow(damaged)[5:65, 6:46])


def header_only(rows, columns):
  """Return a JPEG whose header promises many pixels."""
  encoded = bytearray(FILES['444'])
  at = jpeg.read_header(FILES['444']).height_offset
  encoded[at:at + 4] = rows.to_bytes(2, 'big') + columns.to_bytes(2, 'big')
  return bytes(encoded)


def test_decompression_bomb_is_refused_before_memory_is_allocated():
  with pytest.raises(decode.DecodeError, match=r'3600000000 pixels.*limit of 178956970 pixels.*Shrink the image, or'):
    decode.open_image(header_only(60000, 60000), 3)


def test_one_hundred_megapixels():
  encoded = simplejpeg.encode_jpeg(np.zeros((10000, 10000, 1), np.uint8), colorspace='GRAY', quality=10)
  picture = decode.open_image(encoded, 1)
  assert picture.shape == (10000, 10000, 1)
  crop = picture.crop(100, 4000, 50, 300)
  assert crop.shape == (50, 300, 1) and crop.base.size < 1 << 24 and not crop.any()  # not all rows were decoded


def test_threads_do_not_share_buffers():
  picture, whole, wrong = decode.open_image(FILES['420'], 3), pillow(FILES['420']), []

  def crop_often(top):
    for _ in range(200):
      if (picture.crop(top, 0, 10, 53) != whole[top:top + 10]).any():
        wrong.append(top)

  threads = [threading.Thread(target=crop_often, args=(top,)) for top in (0, 20, 40)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not wrong
