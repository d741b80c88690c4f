import warnings

import numpy as np
from PIL import Image
import pytest

from tests.conftest import encode
from vit_jax.data import decode


def colours(rows=6, columns=9):
  return np.random.default_rng(0).integers(0, 256, (rows, columns, 3), dtype=np.uint8)


def luma(image):
  """ITU-R 601 weights, which Pillow applies in 16-bit integers."""
  return image.astype(np.float64) @ [0.299, 0.587, 0.114]


def test_png_is_exact_and_keeps_rows_and_columns_apart():
  decoded = decode.decode(encode(colours()), 3)
  assert decoded.shape == (6, 9, 3) and decoded.dtype == np.uint8
  np.testing.assert_array_equal(decoded, colours())


def test_colour_to_grey_and_grey_to_colour():
  grey = decode.decode(encode(colours()), 1)
  assert grey.shape == (6, 9, 1)
  np.testing.assert_allclose(grey[:, :, 0], luma(colours()), atol=1)
  stored = colours()[:, :, 0]
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


def test_palette_with_alpha_loses_the_alpha_without_a_warning():
  image = Image.fromarray(colours()).quantize(8)
  expected = np.asarray(image.convert('RGB'))
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    decoded = decode.decode(encode(image, transparency=bytes([0] * 8)), 3)
  np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize('mode, channels', [('RGBA', 3), ('LA', 1), ('LA', 3), ('1', 1)])
def test_other_modes_keep_what_is_visible(mode, channels):
  image = Image.fromarray(colours()).convert(mode)
  expected = np.asarray(image.convert('RGB' if channels == 3 else 'L'))
  np.testing.assert_array_equal(
      decode.decode(encode(image), channels), expected.reshape(6, 9, channels))


def test_cmyk_jpeg():
  flat = Image.new('RGB', (16, 16), (200, 60, 90)).convert('CMYK')
  decoded = decode.decode(encode(flat, 'JPEG', quality=95), 3)
  np.testing.assert_allclose(decoded, np.broadcast_to((200, 60, 90), (16, 16, 3)), atol=6)


@pytest.mark.parametrize('encoded', [b'', b'not an image', encode(colours(), 'JPEG')[:200],
                                     encode(colours())[:60]])
def test_undecodable_bytes_are_described(encoded):
  with pytest.raises(ValueError, match=f'got {len(encoded)} bytes .*cannot be decoded'):
    decode.decode(encoded, 3)


def test_channels_are_checked():
  with pytest.raises(ValueError, match='1 .* or 3 .*, got 4'):
    decode.decode(encode(colours()), 4)
