"""Color operations against Pillow, closed forms and slow loops."""
import colorsys

import numpy as np
from PIL import Image, ImageEnhance, ImageOps
import pytest

from vit_jax.data.images.pillow import from_pillow, to_pillow
from vit_jax.data.transforms import color
from vit_jax.data.transforms.spec import parse

FACTORS = (0.0, 0.1, 0.7, 1.0, 1.9, 2.8)


def picture(channels=3, rows=11, columns=14, low=20, high=230):
  return np.random.default_rng(0).integers(low, high, (rows, columns, channels), dtype=np.uint8)


def assert_close(ours, expected, levels):
  difference = np.abs(np.asarray(ours, np.int32) - np.asarray(expected, np.int32))
  assert ours.size == expected.size and difference.max() <= levels


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('factor', FACTORS)
@pytest.mark.parametrize('name, enhancer', [
    ('brightness', ImageEnhance.Brightness), ('contrast', ImageEnhance.Contrast), ('saturation', ImageEnhance.Color),
    ('sharpness', ImageEnhance.Sharpness)])
def test_blends_match_pillow(name, enhancer, factor, channels):
  image = to_pillow(picture(channels))
  assert_close(getattr(color, name)(image, factor), enhancer(image).enhance(factor), 1)


@pytest.mark.parametrize('name', ['brightness', 'contrast', 'saturation', 'sharpness'])
def test_factor_one_is_the_identity(name):
  image = to_pillow(picture())
  assert_close(getattr(color, name)(image, 1.0), image, 0)


@pytest.mark.parametrize('channels', [1, 3])
def test_autocontrast_and_invert_match_pillow(channels):
  image = to_pillow(picture(channels))
  assert_close(color.autocontrast(image), ImageOps.autocontrast(image), 1)
  assert from_pillow(color.autocontrast(image)).min() == 0
  np.testing.assert_array_equal(from_pillow(color.invert(image)), 255 - picture(channels))
  flat = to_pillow(np.full((4, 5, channels), 77, np.uint8))
  assert_close(color.autocontrast(flat), flat, 0)


def test_contrast_blends_with_the_given_gray():
  pixels = picture()
  expected = np.clip(196 + 1.5 * (pixels.astype(np.float64) - 196), 0, 255)
  np.testing.assert_allclose(from_pillow(color.contrast(to_pillow(pixels), 1.5, gray=196)), expected, atol=1)


@pytest.mark.parametrize('channels', [1, 3])
def test_equalize_follows_its_definition(channels):
  """A value v becomes (pixels below v + step / 2) / step; 255 steps divide all pixels except the brightest."""
  pixels = picture(channels, 40, 50, 60, 200)
  expected = np.zeros_like(pixels)
  for k in range(channels):
    values = pixels[:, :, k]
    step = (values.size - (values == values.max()).sum()) // 255
    for index, value in np.ndenumerate(values):
      expected[(*index, k)] = min(255, ((values < value).sum() + step // 2) // step)
  np.testing.assert_array_equal(from_pillow(color.equalize(to_pillow(pixels))), expected)


@pytest.mark.parametrize('bits', [1, 2, 5, 8])
def test_posterize_keeps_the_highest_bits(bits):
  step = 256 // 2 ** bits
  np.testing.assert_array_equal(from_pillow(color.posterize(to_pillow(picture()), bits)), picture() // step * step)


@pytest.mark.parametrize('threshold', [0, 1, 128, 255, 256])
def test_solarize(threshold):
  pixels = picture(low=0, high=256)
  expected = np.where(pixels >= threshold, 255 - pixels, pixels)
  np.testing.assert_array_equal(from_pillow(color.solarize(to_pillow(pixels), threshold)), expected)


@pytest.mark.parametrize('addition', [0, 55, 330])
@pytest.mark.parametrize('channels', [1, 3])
def test_solarize_add(addition, channels):
  pixels = picture(channels, low=0, high=256).astype(np.int32)
  expected = [min(255, value + addition) if value < 128 else value for value in pixels.ravel()]
  ours = from_pillow(color.solarize_add(to_pillow(pixels.astype(np.uint8)), addition))
  np.testing.assert_array_equal(ours.ravel(), expected)


@pytest.mark.parametrize('turn', [-0.5, -0.2, 0.1, 0.37])
def test_hue_rotates_the_color_circle(turn):
  pixels = np.array([[[200, 40, 40], [40, 200, 90], [30, 60, 220], [220, 210, 20]]], np.uint8)
  ours = from_pillow(color.hue(to_pillow(pixels), turn))
  for before, after in zip(pixels[0], ours[0], strict=True):
    h, s, v = colorsys.rgb_to_hsv(*before / 255)
    np.testing.assert_allclose(after, 255 * np.array(colorsys.hsv_to_rgb((h + turn) % 1, s, v)), atol=6)  # 256 hues


def test_hue_does_not_change_gray():
  gray = to_pillow(np.repeat(picture(1), 3, axis=2))
  for image in (gray, to_pillow(picture(1))):
    assert_close(color.hue(image, 0.3), image, 0)


@pytest.mark.parametrize('argument, enhancer', [
    ('brightness', ImageEnhance.Brightness), ('contrast', ImageEnhance.Contrast), ('saturation', ImageEnhance.Color)])
def test_jitter_factors_cover_their_range(argument, enhancer):
  """The factor of each draw, found by trying all, is spread over 0.6..1.4."""
  pixels, size = picture(), (11, 14)
  factors = np.linspace(0, 2, 201)
  tries = np.stack([np.asarray(enhancer(Image.fromarray(pixels)).enhance(f), np.float32) for f in factors])
  jitter, rng = parse(f'color_jitter({argument}=0.4)', size), np.random.default_rng(0)
  found = [factors[np.abs(tries - jitter(pixels, rng)).mean(axis=(1, 2, 3)).argmin()] for _ in range(200)]
  assert 0.59 <= min(found) < 0.64 and 1.36 < max(found) <= 1.41 and abs(np.mean(found) - 1) < 0.06


def test_jitter_applies_operations_in_random_order(monkeypatch):
  seen = set()
  calls = []
  recorded = {name: (lambda image, change, name=name: calls.append(name) or image)
              for name in ('brightness', 'contrast', 'hue', 'saturation')}
  monkeypatch.setattr(color, '_JITTER', recorded)
  jitter, rng = parse('color_jitter(0.1, 0.1, 0.1, 0.1)', (11, 14)), np.random.default_rng(0)
  for _ in range(400):
    calls.clear()
    jitter(picture(), rng)
    seen.add(tuple(calls))
  assert len(seen) == 24 and all(len(set(order)) == 4 for order in seen)
