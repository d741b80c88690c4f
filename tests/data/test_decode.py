"""Decoding of every format and mode, EXIF orientation, and broken files."""
import struct
import warnings
import zlib

import numpy as np
from PIL import ExifTags, Image
import pytest

from tests.conftest import encode
from vit_jax.data.images import decode


def noise(rows=6, columns=9):
  return np.random.default_rng(0).integers(0, 256, (rows, columns, 3), dtype=np.uint8)


def luma(image):
  """Return the luma by ITU-R 601 weights, which Pillow applies in 16-bit integers."""
  return image.astype(np.float64) @ [0.299, 0.587, 0.114]


def test_png_is_exact_and_does_not_swap_rows_and_columns():
  decoded = decode.decode(encode(noise()), 3)
  assert decoded.shape == (6, 9, 3) and decoded.dtype == np.uint8
  np.testing.assert_array_equal(decoded, noise())


def test_color_to_gray_and_gray_to_color():
  gray = decode.decode(encode(noise()), 1)
  assert gray.shape == (6, 9, 1)
  np.testing.assert_allclose(gray[:, :, 0], luma(noise()), atol=1)
  stored = noise()[:, :, 0]
  repeated = decode.decode(encode(stored), 3)
  np.testing.assert_array_equal(repeated, np.repeat(stored[:, :, None], 3, axis=2))


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('encoding', ['JPEG', 'GIF', 'WEBP', 'BMP', 'TIFF'])
def test_formats(encoding, channels):
  flat = np.full((6, 9, 3), (200, 60, 90), np.uint8)
  decoded = decode.decode(encode(flat, encoding), channels)
  expected = flat if channels == 3 else luma(flat)[:, :, None]
  np.testing.assert_allclose(decoded, expected, atol=6)


def test_16_bit_is_scaled_not_clipped():
  values = np.array([[0, 256, 32768, 65535]], np.uint16)
  decoded = decode.decode(encode(Image.fromarray(values)), 1)
  np.testing.assert_array_equal(decoded[:, :, 0], [[0, 1, 128, 255]])
  assert decode.decode(encode(Image.fromarray(values)), 3).shape == (1, 4, 3)


def test_alpha_of_a_palette_is_dropped_without_a_warning():
  image = Image.fromarray(noise()).quantize(8)
  expected = np.asarray(image.convert('RGB'))
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    decoded = decode.decode(encode(image, transparency=bytes([0] * 8)), 3)
  np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize('mode, channels', [('RGBA', 3), ('LA', 1), ('LA', 3), ('1', 1)])
def test_other_modes_match_pillow(mode, channels):
  image = Image.fromarray(noise()).convert(mode)
  expected = np.asarray(image.convert('RGB' if channels == 3 else 'L'))
  np.testing.assert_array_equal(
      decode.decode(encode(image), channels), expected.reshape(6, 9, channels))


def test_cmyk_jpeg():
  flat = Image.new('RGB', (16, 16), (200, 60, 90)).convert('CMYK')
  decoded = decode.decode(encode(flat, 'JPEG', quality=95), 3)
  np.testing.assert_allclose(decoded, np.broadcast_to((200, 60, 90), (16, 16, 3)), atol=6)


# Modes that Pillow can write in each format.
MODES = {'BMP': '1 L P RGB RGBA', 'GIF': '1 L P RGB RGBA', 'JPEG': 'CMYK L RGB', 'PNG': '1 L LA P RGB RGBA',
         'TIFF': '1 CMYK L LA P RGB RGBA', 'WEBP': 'RGB RGBA'}


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('encoding, mode', [(key, mode) for key, modes in MODES.items() for mode in modes.split()])
def test_every_mode_of_every_format(encoding, mode, channels):
  image = Image.fromarray(np.full((5, 4, 3), (200, 60, 90), np.uint8)).convert(mode)
  expected = np.asarray(image.convert('RGB').convert('RGB' if channels == 3 else 'L')).reshape(5, 4, channels)
  decoded = decode.decode(encode(image, encoding), channels)
  assert decoded.shape == (5, 4, channels) and decoded.dtype == np.uint8
  np.testing.assert_allclose(decoded, expected, atol=6)


def test_cmyk_formula_for_inks_that_are_not_inverted():
  inks = np.random.default_rng(0).integers(0, 256, (6, 9, 4), dtype=np.uint8)
  decoded = decode.decode(encode(Image.fromarray(inks, 'CMYK'), 'TIFF'), 3)
  light = 255.0 - inks
  np.testing.assert_allclose(decoded, light[:, :, :3] * light[:, :, 3:] / 255, atol=1)


def test_16_bit_color_png():
  """Made by hand, because Pillow cannot write it: two pixels, red is 0x1234 and 0xff80."""
  def chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
  row = b'\0' + struct.pack('>6H', 0x1234, 0, 0xffff, 0xff80, 0x8000, 0)
  png = (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', 2, 1, 16, 2, 0, 0, 0))
         + chunk(b'IDAT', zlib.compress(row)) + chunk(b'IEND', b''))
  np.testing.assert_array_equal(decode.decode(png, 3), [[[0x12, 0, 0xff], [0xff, 0x80, 0]]])


def test_first_frame_of_an_animation():
  frames = [Image.new('RGB', (5, 4), color) for color in ('red', 'blue', 'lime')]
  for encoding in ('GIF', 'WEBP', 'PNG'):
    options = {'lossless': True} if encoding == 'WEBP' else {}
    animated = encode(frames[0], encoding, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(decode.decode(animated, 3), np.broadcast_to((255, 0, 0), (4, 5, 3)))


def test_one_pixel():
  for encoding in ('PNG', 'JPEG', 'GIF', 'WEBP', 'BMP', 'TIFF'):
    assert decode.decode(encode(np.full((1, 1, 3), 7, np.uint8), encoding), 3).shape == (1, 1, 3)


# What a viewer does for each EXIF orientation, from the table in EXIF 2.3 of where row 0 and column 0 of the stored
# image belong.
TURNS = {
    1: lambda x: x, 2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1], 4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1), 6: lambda x: x.swapaxes(0, 1)[:, ::-1],
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1), 8: lambda x: x.swapaxes(0, 1)[::-1],
}


@pytest.mark.parametrize('orientation', [*TURNS, 0, 9])
@pytest.mark.parametrize('encoding', ['PNG', 'WEBP'])
def test_orientation_is_applied_on_request(encoding, orientation):
  exif = Image.Exif()
  exif[ExifTags.Base.Orientation] = orientation
  encoded = encode(noise(), encoding, exif=exif, **({'lossless': True} if encoding == 'WEBP' else {}))
  np.testing.assert_array_equal(decode.decode(encoded, 3), noise())  # as TensorFlow
  expected = TURNS.get(orientation, TURNS[1])(noise())
  np.testing.assert_array_equal(decode.decode(encoded, 3, upright=True), expected)


def test_tiff_is_turned_once_though_pillow_turns_it_by_itself():
  exif = Image.Exif()
  exif[ExifTags.Base.Orientation] = 6
  encoded = encode(noise(), 'TIFF', exif=exif)
  np.testing.assert_array_equal(decode.decode(encoded, 3, upright=True), TURNS[6](noise()))


@pytest.mark.filterwarnings('ignore:Corrupt EXIF')
def test_broken_exif_does_not_lose_the_image():
  encoded = encode(noise(), exif=b'Exif\0\0MM\0*\xff\xff\xff\xff nonsense')
  np.testing.assert_array_equal(decode.decode(encoded, 3, upright=True), noise())


def test_too_many_pixels(monkeypatch):
  encoded = encode(np.zeros((30, 30), np.uint8))
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 449)
  with pytest.raises(ValueError, match=r'DecompressionBombError.*900 pixels.*limit of 898 pixels'):
    decode.decode(encoded, 3)


@pytest.mark.parametrize('part', [0.1, 0.5, 0.9])
@pytest.mark.parametrize('encoding', ['PNG', 'JPEG', 'GIF', 'WEBP', 'BMP', 'TIFF'])
def test_truncated_files(encoding, part):
  encoded = encode(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8), encoding)
  with pytest.raises(ValueError, match='cannot be decoded'):
    decode.decode(encoded[:int(len(encoded) * part)], 3)


def test_postscript_is_not_run():
  with pytest.raises(ValueError, match='cannot be decoded: unknown format'):
    decode.decode(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n', 3)


@pytest.mark.parametrize('encoded', [b'', b'not an image', encode(noise(), 'JPEG')[:200],
                                     encode(noise())[:60]])
def test_undecodable_bytes_are_reported(encoded):
  with pytest.raises(ValueError, match=f'got {len(encoded)} bytes .*cannot be decoded'):
    decode.decode(encoded, 3)


def test_channels_are_checked():
  with pytest.raises(ValueError, match='channels: expected 1 .* or 3 .*, got 4'):
    decode.decode(encode(noise()), 4)
