"""RandAugment against big_vision, TrivialAugment against Pillow, and the distributions both sample from."""
import pathlib

import numpy as np
from PIL import ImageEnhance, ImageOps
import pytest

from vit_jax.data.images.pillow import from_pillow, to_pillow
from vit_jax.data.transforms import randaugment, warp
from vit_jax.data.transforms.erase import cutout
from vit_jax.data.transforms.spec import parse

GOLDEN = dict(np.load(pathlib.Path(__file__).parent.parent / 'golden' / 'randaugment.npz'))
IMAGE = GOLDEN.pop('image')


class Sign:
  """A random generator that always gives one sign."""

  def __init__(self, sign):
    self.sign = sign

  def random(self):
    return 0.1 if self.sign > 0 else 0.9


def test_every_operation_except_cutout_has_a_golden_output():
  assert {case.split('/')[0] for case in GOLDEN} == set(randaugment.RANDAUGMENT) - {'cutout'}


@pytest.mark.parametrize('case', GOLDEN)
def test_matches_big_vision(case):
  name, magnitude, sign = case.split('/')
  ours = from_pillow(randaugment.RANDAUGMENT[name](to_pillow(IMAGE), int(magnitude), Sign(int(sign))))
  wrong = np.abs(ours.astype(np.int32) - GOLDEN[case])
  if name in ('color', 'sharpness'):
    # Pillow rounds the degenerate image, TensorFlow truncates it; blending amplifies that.
    assert wrong.max() <= 2
  elif name.startswith(('shear', 'rotate')):  # the nearest of two at the same distance
    assert (wrong > 0).mean() <= 0.075
  else:
    assert wrong.max() == 0


@pytest.mark.parametrize('name, argument, matrix', [
    ('rotate', 23.0, [[0.92050485, 0.39073113], [-0.39073113, 0.92050485]]), ('shear_x', 0.37, [[1, 0], [0.37, 1]]),
    ('shear_y', -0.37, [[1, -0.37], [0, 1]])])
@pytest.mark.parametrize('channels', [1, 3])
def test_warps_use_the_nearest_pixel(name, argument, matrix, channels):
  """`matrix` maps (row, column) of the result to the image; rotation is about the center, with cos 23° and sin 23°."""
  pixels = IMAGE[:, :, :channels]
  ours = from_pillow(getattr(warp, name)(to_pillow(pixels), argument, 128))
  center = (np.array(pixels.shape[:2]) - 1) / 2 if name == 'rotate' else np.zeros(2)
  for index in np.ndindex(*pixels.shape[:2]):
    source = np.array(matrix) @ (index - center) + center
    if np.abs(source % 1 - 0.5).min() > 1e-3:
      row, column = np.rint(source).astype(int)
      inside = 0 <= row < pixels.shape[0] and 0 <= column < pixels.shape[1]
      np.testing.assert_array_equal(ours[index], pixels[row, column] if inside else 128)


def test_translations_shift_whole_pixels():
  for name, axis in (('translate_y', 0), ('translate_x', 1)):
    for pixels in (5, -5):
      expected = np.roll(IMAGE, -pixels, axis)
      np.moveaxis(expected, axis, 0)[slice(-5, None) if pixels > 0 else slice(5)] = 128
      np.testing.assert_array_equal(from_pillow(getattr(warp, name)(to_pillow(IMAGE), pixels, 128)), expected)


def test_cutout_covers_a_square_centered_anywhere():
  rng, centers = np.random.default_rng(0), set()
  flat = to_pillow(np.zeros((28, 24, 1), np.uint8))
  for _ in range(3000):
    covered = from_pillow(cutout(flat, 3, 128, rng))[:, :, 0] == 128
    top, left = covered.any(1).argmax(), covered.any(0).argmax()
    bottom, right = 28 - covered.any(1)[::-1].argmax(), 24 - covered.any(0)[::-1].argmax()
    assert covered.sum() == (bottom - top) * (right - left)  # a rectangle
    assert (bottom - top == 6 or top == 0 or bottom == 28) and (right - left == 6 or left == 0 or right == 24)
    centers.add((bottom - 3 if top == 0 else top + 3, right - 3 if left == 0 else left + 3))
  assert len(centers) > 0.9 * 28 * 24
  np.testing.assert_array_equal(from_pillow(cutout(to_pillow(IMAGE), 0, 128, rng)), IMAGE)


def pillow_reference(name, s):
  """Return an operation of TrivialAugment's wide space (automl/trivialaugment, aug_lib.py) at strength s of 30."""
  image, enhance = to_pillow(IMAGE), 0.01 + (2.0 - 0.01) * s / 30
  return {
      'identity': lambda: image, 'autocontrast': lambda: ImageOps.autocontrast(image),
      'equalize': lambda: ImageOps.equalize(image),
      'solarize': lambda: ImageOps.solarize(image, 256 - int(256 * s / 30)),
      'posterize': lambda: ImageOps.posterize(image, 8 - int(6 * s / 30)),
      'color': lambda: ImageEnhance.Color(image).enhance(enhance),
      'contrast': lambda: ImageEnhance.Contrast(image).enhance(enhance),
      'brightness': lambda: ImageEnhance.Brightness(image).enhance(enhance),
      'sharpness': lambda: ImageEnhance.Sharpness(image).enhance(enhance),
  }[name]()


# Largest argument, and whether it is truncated to whole numbers.
WARPS = {'rotate': (135, True), 'shear_x': (0.99, False), 'shear_y': (0.99, False), 'translate_x': (32, True),
         'translate_y': (32, True)}


@pytest.mark.parametrize('s', [0, 1, 13, 30])
@pytest.mark.parametrize('name', sorted(set(randaugment.TRIVIAL_WIDE) - set(WARPS)))
def test_trivial_augment_matches_pillow(name, s):
  ours = from_pillow(randaugment.TRIVIAL_WIDE[name](to_pillow(IMAGE), s, None))
  assert np.abs(ours.astype(np.int32) - np.asarray(pillow_reference(name, s))).max() <= 1


@pytest.mark.parametrize('s', [0, 1, 13, 30])
@pytest.mark.parametrize('name', WARPS)
def test_trivial_augment_warp_arguments(name, s, monkeypatch):
  monkeypatch.setattr(warp, name, lambda image, argument, fill: (argument, fill))
  largest, whole = WARPS[name]
  expected = int(largest * s / 30) if whole else largest * s / 30
  for sign in (1, -1):
    assert randaugment.TRIVIAL_WIDE[name](None, s, Sign(sign)) == (pytest.approx(sign * expected), 0)


@pytest.mark.parametrize('spec, table', [('randaugment(3, 7)', 'RANDAUGMENT'), ('trivial_augment', 'TRIVIAL_WIDE')])
def test_operations_and_strengths_are_uniform(spec, table, monkeypatch):
  calls = []
  recorded = {name: (lambda image, strength, rng, name=name: calls.append((name, strength)) or image)
              for name in getattr(randaugment, table)}
  monkeypatch.setattr(randaugment, table, recorded)
  transform, rng = parse(spec, (28, 24)), np.random.default_rng(0)
  for _ in range(2400):
    transform(IMAGE, rng)
  layers = 3 if table == 'RANDAUGMENT' else 1
  assert len(calls) == 2400 * layers
  names, counts = np.unique([name for name, _ in calls], return_counts=True)
  expected = len(calls) / len(recorded)
  assert len(names) == len(recorded) and np.abs(counts - expected).max() < 5 * np.sqrt(expected)
  assert {strength for _, strength in calls} == ({7} if layers == 3 else set(range(31)))


def test_signs_are_equally_likely():
  shifted = [from_pillow(randaugment.RANDAUGMENT['translate_x'](to_pillow(IMAGE), 1, rng))[0, 0, 0] == 128
             for rng in map(np.random.default_rng, range(400))]
  assert abs(sum(shifted) - 200) < 60


@pytest.mark.parametrize('mode', ['pixel', 'zero'])
def test_random_erasing_stays_within_its_bounds(mode):
  image, rng = np.full((60, 50, 3), 100, np.uint8), np.random.default_rng(0)
  erase = parse(f"random_erasing(0.5, area=(0.1, 0.3), aspect=(0.5, 2.0), mode='{mode}')", (60, 50))
  shapes, untouched = [], 0
  for _ in range(1000):
    changed = (erase(image, rng) != 100).any(axis=2)
    untouched += not changed.any()
    if changed.any():
      shapes.append((changed.any(1).sum(), changed.any(0).sum()))
      assert changed.sum() == np.prod(shapes[-1])
  rows, columns = np.array(shapes).T
  area, aspect = rows * columns / 3000, rows / columns
  assert abs(untouched - 500) < 65
  assert 0.09 < area.min() < 0.12 and 0.28 < area.max() < 0.31 and abs(area.mean() - 0.2) < 0.02
  assert 0.45 < aspect.min() < 0.6 and 1.8 < aspect.max() < 2.15 and abs(aspect.mean() - 1.25) < 0.1
  assert (image == 100).all()


def test_random_erasing_fills_with_all_values():
  image = np.full((90, 90, 3), 100, np.uint8)
  out = parse('random_erasing(1.0, area=(1.0, 1.0), aspect=(1.0, 1.0))', (90, 90))(image, np.random.default_rng(0))
  counts = np.bincount(out.ravel(), minlength=256)
  assert counts.min() > 50 and counts.max() < 145  # 95 each


def test_random_erasing_gives_up_if_nothing_fits():
  image = np.full((2, 200, 1), 100, np.uint8)
  out = parse('random_erasing(1.0, area=(0.9, 0.9), aspect=(1.0, 1.0))', (2, 200))(image, np.random.default_rng(0))
  np.testing.assert_array_equal(out, image)
