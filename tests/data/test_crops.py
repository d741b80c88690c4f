"""Crops, resizes, flips and affine maps against slow references, and the strings that chain transforms."""
import re

import numpy as np
import pytest

from vit_jax.base.errors import UserError
from vit_jax.data.transforms import crops
from vit_jax.data.transforms.registry import TRANSFORMS
from vit_jax.data.transforms.spec import parse


def make_image(rows=12, columns=9, channels=3, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (rows, columns, channels), dtype=np.uint8)


def apply(spec, image, size, seed=0):
  return parse(spec, size)(image, np.random.default_rng(seed))


def triangle(x):
  return np.maximum(0, 1 - x)


def cubic(x):
  """Keys' filter with a = -0.5."""
  near, far = 1.5 * x ** 3 - 2.5 * x ** 2 + 1, -0.5 * (x ** 3 - 5 * x ** 2 + 8 * x - 4)
  return np.where(x < 1, near, np.where(x < 2, far, 0))


def resize_reference(image, size, kernel=triangle):
  """Resize with a filter that is widened by the scale when shrinking."""

  def weights(old, new):
    scale = old / new
    distance = np.abs((np.arange(new)[:, None] + 0.5) * scale - (np.arange(old)[None] + 0.5))
    values = kernel(distance / max(scale, 1.0))
    return values / values.sum(axis=1, keepdims=True)

  return np.einsum('ri,cj,ijk->rck', weights(image.shape[0], size[0]), weights(image.shape[1], size[1]),
                   image.astype(np.float64))


EXAMPLES = {
    'central_crop': 'central_crop', 'flip': 'flip|resize', 'inception_crop': 'inception_crop',
    'pad_crop': 'pad_crop(2)', 'random_crop': 'random_crop', 'resize': 'resize',
    'resize_small': 'resize_small(20)|central_crop', 'resize_ratio': 'resize_ratio((20, 20))|central_crop', 'affine': 'affine(30, 0.1, 0.2)|resize',
    'color_jitter': 'color_jitter(0.4, 0.4, 0.4, 0.1)|resize', 'randaugment': 'randaugment(2, 5)|resize',
    'random_erasing': 'random_erasing(1.0)|resize', 'trivial_augment': 'trivial_augment|resize',
}


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('name', sorted(TRANSFORMS))
def test_every_transform_is_deterministic_and_keeps_its_input(name, channels):
  image = make_image(12, 9, channels)
  image.setflags(write=False)  # Cached images must never be written to.
  for size in ((8, 9), (12, 7)):
    outputs = [apply(EXAMPLES[name], image, size, seed) for seed in (0, 0, 1, 2, 3)]
    assert all(output.shape == (*size, channels) for output in outputs)
    assert all(output.dtype == np.uint8 for output in outputs)
    np.testing.assert_array_equal(outputs[0], outputs[1])
    random = name not in ('central_crop', 'resize', 'resize_ratio', 'resize_small')
    assert random == any((output != outputs[0]).any() for output in outputs)


@pytest.mark.parametrize('spec', [
    'flip(p=0)', 'pad_crop(0)', "pad_crop(0, fill='edge')", 'affine', 'resize', 'central_crop',
    'random_crop', 'resize_small(9)', 'inception_crop(area=(1.0, 1.0), aspect=(0.75, 0.75))',
    ' flip(0) | resize ', 'randaugment(0, 10)', 'color_jitter', 'random_erasing(0)',
])
@pytest.mark.parametrize('channels', [1, 3])
def test_zero_strength_is_the_identity(spec, channels):
  image = make_image(12, 9, channels)
  np.testing.assert_array_equal(apply(spec, image, (12, 9)), image)


def test_flip_probability():
  image = make_image()
  np.testing.assert_array_equal(apply('flip(p=1)', image, (12, 9)), image[:, ::-1])
  flip, rng = parse('flip(p=0.2)', (12, 9)), np.random.default_rng(0)
  flipped = sum((flip(image, rng) != image).any() for _ in range(2000))
  assert abs(flipped - 400) < 4 * np.sqrt(2000 * 0.2 * 0.8)


@pytest.mark.parametrize('size', [(24, 9), (5, 4), (12, 20), (3, 9), (7, 31)])
@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('spec, kernel', [('resize', triangle), ("resize('bilinear')", triangle),
                                          ("resize(interpolation='bicubic')", cubic)])
def test_resize_antialiases(size, channels, spec, kernel):
  image = 64 + make_image(12, 9, channels) // 2  # Leaves room for bicubic overshoot, so that nothing is clipped.
  np.testing.assert_allclose(apply(spec, image, size), resize_reference(image, size, kernel), atol=1.5)


def test_resize_small_keeps_the_aspect_ratio():
  for rows, columns, expected in ((12, 9, (24, 18)), (9, 12, (18, 24)), (30, 37, (18, 22))):
    resized = apply('resize_small(18)', make_image(rows, columns), expected)
    assert resized.shape[:2] == expected


@pytest.mark.parametrize('spec, kernel', [('resize_small(18)', triangle), ("resize_small(18, 'bicubic')", cubic)])
def test_resize_small_filters_like_resize(spec, kernel):
  image = 64 + make_image(12, 9) // 2
  np.testing.assert_allclose(apply(spec, image, (24, 18)), resize_reference(image, (24, 18), kernel), atol=1.5)


def test_central_crop_is_centered():
  image = make_image(12, 9)
  np.testing.assert_array_equal(apply('central_crop', image, (5, 4)), image[3:8, 2:6])


def positions(spec, image, size, padded, count):
  """Return {(row, column) of `padded` where a crop of `image` was taken: how often}, of `count` crops."""
  transform, rng, seen = parse(spec, size), np.random.default_rng(0), {}
  windows = np.lib.stride_tricks.sliding_window_view(padded, size, axis=(0, 1))
  for _ in range(count):
    crop = np.moveaxis(transform(image, rng), -1, 0)[None, None]
    found = np.argwhere((windows == crop).all(axis=(2, 3, 4)))
    assert len(found) == 1
    seen[tuple(found[0].tolist())] = seen.get(tuple(found[0].tolist()), 0) + 1
  return seen


@pytest.mark.parametrize('spec, mode', [('pad_crop(2)', 'constant'),
                                        ("pad_crop(padding=2, fill='edge')", 'edge')])
def test_pad_crop_positions_are_uniform(spec, mode):
  image = make_image(7, 6)
  padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode=mode)
  seen = positions(spec, image, (7, 6), padded, 2500)
  assert set(seen) == {(row, column) for row in range(5) for column in range(5)}
  assert all(abs(count - 100) < 50 for count in seen.values())


def test_random_crop_positions_are_uniform():
  image = make_image(7, 6)
  seen = positions('random_crop', image, (5, 5), image, 1200)
  assert set(seen) == {(row, column) for row in range(3) for column in range(2)}
  assert all(abs(count - 200) < 70 for count in seen.values())


def test_affine_rotates_about_the_center_within_its_range():
  image = np.zeros((21, 21, 1), np.uint8)
  image[10, 18] = 255  # Eight pixels right of the center.
  turn, rng = parse('affine(40)', (21, 21)), np.random.default_rng(0)
  angles = []
  for _ in range(300):
    turned = turn(image, rng)[:, :, 0].astype(np.float64)
    row, column = (np.indices(turned.shape) * turned).sum(axis=(1, 2)) / turned.sum() - 10
    assert abs(np.hypot(row, column) - 8) < 0.6
    angles.append(np.degrees(np.arctan2(row, column)))
  assert -44 < min(angles) < -34 and 34 < max(angles) < 44 and abs(np.mean(angles)) < 6


def test_inception_crop_stays_within_area_and_aspect(monkeypatch):
  shapes = []
  monkeypatch.setattr(crops, 'interpolate', lambda image, size: shapes.append(image.shape[:2])
                      or np.zeros((*size, 3), np.uint8))
  image, rng = make_image(90, 120), np.random.default_rng(0)
  crop = parse('inception_crop(area=(0.1, 0.5), aspect=(0.5, 2.0))', (8, 8))
  for _ in range(1000):
    crop(image, rng)
  rows, columns = np.array(shapes).T
  area, aspect = rows * columns / (90 * 120), columns / rows
  assert 0.1 <= area.min() < 0.12 and 0.45 < area.max() <= 0.5
  assert 0.48 < aspect.min() < 0.55 and 1.8 < aspect.max() < 2.06
  assert abs(np.mean(aspect) - 1.25) < 0.06  # Uniform in the ratio, not in its logarithm.


def test_inception_crop_covers_the_whole_image():
  ramp = np.broadcast_to(np.arange(100, dtype=np.uint8)[:, None, None], (100, 100, 1))
  crop, rng = parse('inception_crop(area=(0.05, 0.05))', (1, 1)), np.random.default_rng(0)
  centers = np.array([crop(ramp, rng)[0, 0, 0] for _ in range(800)])
  assert centers.min() < 14 and centers.max() > 85 and abs(centers.mean() - 49.5) < 3


def interpolate_reference(image, size):
  """Bilinear between the nearest four pixels, centers at half: `tf.image.resize` with antialias=False."""

  def neighbors(old, new):
    at = ((np.arange(new) + 0.5) * old / new - 0.5).clip(0, old - 1)
    low = np.floor(at).astype(int)
    return low, np.minimum(low + 1, old - 1), at - low

  (top, bottom, down), (left, right, across) = map(neighbors, image.shape[:2], size)
  rows = image[top] * (1.0 - down)[:, None, None] + image[bottom] * down[:, None, None]
  return rows[:, left] * (1.0 - across)[:, None] + rows[:, right] * across[:, None]


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('size', [(6, 6), (40, 17), (3, 70), (20, 15), (10, 30)])
def test_inception_crop_interpolates_without_antialiasing(size, channels):
  image = make_image(40, 30, channels)
  cropped = apply('inception_crop(area=(1.0, 1.0), aspect=(0.75, 0.75))', image, size)
  np.testing.assert_allclose(cropped, interpolate_reference(image, size), atol=1)


def test_inception_crop_falls_back_to_the_whole_image():
  image = make_image(4, 400)
  cropped = apply('inception_crop(area=(0.9, 1.0))', image, (6, 6))
  np.testing.assert_allclose(cropped, interpolate_reference(image, (6, 6)), atol=1)


def test_transforms_apply_from_left_to_right():
  image = make_image(12, 9)
  expected = apply('central_crop', apply('resize_small(18)', image, (24, 18)), (10, 11))
  np.testing.assert_array_equal(
      apply('resize_small(18)|central_crop|flip(0)', image, (10, 11)), expected)


@pytest.mark.parametrize('spec, message', [
    ('sharpen', "'sharpen': unknown 'sharpen'; choose from .*'central_crop', 'color_jitter', 'flip', 'inception_crop'"),
    ('flip|augment.flip', "unknown 'augment.flip'"),
    ('flip|3', "unknown '3'"),
    ('flip and resize', "unknown 'flip and resize'"),
    ('', "transform '': cannot be parsed: .*Expected a chain such as"),
    ('flip||resize', 'cannot be parsed: .*Expected a chain such as'),
    (None, 'transform None: cannot be parsed: .*Expected a chain such as'),
    ('flip(q=1)', r"unexpected keyword argument 'q'.*Expected flip\(p=0.5\)"),
    ('pad_crop', r"missing a required argument: 'padding'.*Expected pad_crop\(padding, fill='zero'\)"),
    ('random_crop(3)', 'too many positional arguments.*Expected random_crop,'),
    ('resize(3)', r"interpolation: unknown 3; choose from \['bicubic', 'bilinear', 'box', 'hamming',"),
    ('resize(to=(0, 8))', r'to: expected \(rows, columns\), two positive ints, got \(0, 8\)'),
    ("resize_small(8, rounding='up')", "rounding: expected 'nearest' or 'down', got 'up'"),
    ("resize_ratio((8, 8), fit='fill')", "fit: expected 'cover' or 'inside', got 'fill'"),
    ("central_crop('timm')", "rule: expected 'strict' or 'torchvision' or 'huggingface', got 'timm'"),
    ('central_crop(fill=256)', r'fill: expected grey levels, 0..255, got 256'),
    ("resize_small(8, 'cubic')", r"interpolation: unknown 'cubic'; choose from \['bicubic', 'bilinear', "),
    ('flip(p=exit())', 'Expected flip'),
    ("flip(p='high')", 'Expected flip'),
    ('flip(**{})', 'Expected flip'),
    ('flip(p=2)', r"'flip\(p=2\)': p: expected a probability, 0..1, got 2"),
    ('inception_crop(area=(0.5, 0.1))', r'area: expected 0 < .*, got \(0.5, 0.1\)'),
    ('inception_crop(area=0.5)', 'Expected inception_crop'),
    ('inception_crop(aspect=(0, 1))', 'aspect: expected 0 <'),
    ('pad_crop(-1)', 'padding: expected pixels, an int >= 0, got -1'),
    ("pad_crop(1, fill='pink')", "fill: expected 'edge' or 'zero', got 'pink'"),
    ('resize_small(2.5)', 'smaller: expected pixels, an int > 0, got 2.5'),
    ('affine(-5)', 'degrees: expected 0..180, got -5'),
    ('randaugment(2)', r"missing a required argument: 'magnitude'.*Expected randaugment\(layers, magnitude\)"),
    ('randaugment(2.0, 10)', 'layers: expected an int of 0 or more, got 2.0'),
    ('randaugment(2, 31)', 'magnitude: expected 0..30, got 31'),
    ('color_jitter(-0.1)', 'brightness: expected at least 0, got -0.1'),
    ('color_jitter(hue=0.6)', 'hue: expected 0..0.5, got 0.6'),
    ('random_erasing(1.5)', 'probability: expected 0..1, got 1.5'),
    ('random_erasing(area=(0.0, 0.4))', 'area: expected 0 <'),
    ('random_erasing(aspect=(2.0, 1.0))', 'aspect: expected 0 <'),
    ("random_erasing(mode='pink')", "mode: expected 'pixel' or 'zero', got 'pink'"),
])
def test_errors_list_what_is_valid(spec, message):
  with pytest.raises(UserError, match='(?s)' + message):
    parse(spec, (8, 8))


@pytest.mark.parametrize('size', [8, (8,), (8, 0), (8, 8, 3), (8.0, 8), '88', None])
def test_bad_sizes(size):
  with pytest.raises(UserError, match='image_size: .*' + re.escape(f'two positive ints, got {size!r}')):
    parse('resize', size)


def test_wrong_size_is_an_error():
  with pytest.raises(UserError, match=r"'flip'.*\(8, 8\).*got shape \(12, 9, 3\).*End it with"):
    apply('flip', make_image(), (8, 8))
  with pytest.raises(UserError, match=r'central_crop: .*\(13, 9\).*got \(12, 9\).*resize_small'):
    apply('central_crop', make_image(), (13, 9))


def test_affine_shifts_and_zooms_within_its_range():
  """The center of a Gaussian blob measures the shift, its spread the zoom."""
  grid = np.indices((41, 31)) - np.array([20, 15])[:, None, None]
  image = np.rint(255 * np.exp(-(grid ** 2).sum(axis=0) / (2 * 3.0 ** 2))).astype(np.uint8)[:, :, None]
  move, rng = parse('affine(shift=0.1, scale=0.3)', (41, 31)), np.random.default_rng(0)
  seen = []
  for _ in range(300):
    moved = move(image, rng)[:, :, 0].astype(np.float64)
    row, column = (grid * moved).sum(axis=(1, 2)) / moved.sum()
    seen.append((row, column, np.sqrt(((grid[0] - row) ** 2 * moved).sum() / moved.sum()) / 3.0))
  low, high = np.min(seen, axis=0), np.max(seen, axis=0)
  np.testing.assert_allclose(low, [-4.1, -3.1, 0.7], atol=0.2)
  np.testing.assert_allclose(high, [4.1, 3.1, 1.3], atol=0.2)
