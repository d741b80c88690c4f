"""Random crops and colors against plain NumPy versions, and their distributions."""
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.objectives.views import colors, crops
from vit_jax.objectives.views.colors import ColorJitter
from vit_jax.objectives.views.crops import CropKind

PLAIN = ColorJitter().scaled(0)


def images(count=3, rows=11, columns=8, channels=3, seed=0):
  return np.random.default_rng(seed).random((count, rows, columns, channels)).astype(np.float32)


def keys(count, seed=0):
  return jax.random.split(jax.random.key(seed), count)


def slow_crop(image, top, height, left, width, size):
  """Bilinear interpolation at one place after the other, in float64."""
  rows, columns, channels = image.shape
  result = np.zeros((*size, channels))
  for i in range(size[0]):
    for j in range(size[1]):
      y = min(max(top + (i + 0.5) * height / size[0] - 0.5, 0), rows - 1)
      x = min(max(left + (j + 0.5) * width / size[1] - 0.5, 0), columns - 1)
      r, c = min(int(y), rows - 2), min(int(x), columns - 2)
      dy, dx = y - r, x - c
      result[i, j] = ((1 - dy) * (1 - dx) * image[r, c] + (1 - dy) * dx * image[r, c + 1]
                      + dy * (1 - dx) * image[r + 1, c] + dy * dx * image[r + 1, c + 1])
  return result


@pytest.mark.parametrize('box, size', [
    ((0, 11, 0, 8), (11, 8)), ((0, 11, 0, 8), (22, 4)), ((2.3, 5.1, 1.7, 3.9), (6, 5)), ((9.5, 1.5, 0, 1), (4, 4))])
def test_a_crop_is_bilinear_interpolation(box, size):
  image, (top, height, left, width) = images()[0], box
  rows, columns = (crops.bilinear_weights(jnp.float32(start), jnp.float32(length), old, new)
                   for start, length, old, new in zip((top, left), (height, width), image.shape[:2], size, strict=True))
  got = crops.resample(jnp.asarray(image), rows, columns)
  np.testing.assert_allclose(got, slow_crop(image, *box, size), atol=2e-6)


def test_the_whole_image_at_its_own_size_is_the_image():
  image = images()
  kind = CropKind(1, (11, 8), (1.0, 1.0), flip=False, colors=PLAIN)
  boxes = [crops.random_box(draw, 11, 8, (1.0, 1.0)) for draw in jax.random.uniform(keys(1)[0], (20, 4))]
  # A share of 1 with another aspect ratio does not fit: the longer side is cut.
  assert all(h <= 11 and w <= 8 and max(h / 11, w / 8) == 1 for _, h, _, w in boxes)
  weights = crops.bilinear_weights(jnp.float32(0), jnp.float32(11), 11, 11)
  np.testing.assert_allclose(weights, np.eye(11), atol=1e-6)
  assert crops.crop(jnp.asarray(image), keys(3), kind).shape == (3, 1, 11, 8, 3)


def test_boxes_are_inside_and_cover_the_share_that_was_asked_for():
  draw = jax.jit(jax.vmap(lambda draws: crops.random_box(draws, 40, 40, (0.1, 0.5))))
  top, height, left, width = map(np.asarray, draw(jax.random.uniform(keys(1)[0], (4000, 4))))
  assert top.min() >= 0 and left.min() >= 0
  assert (top + height).max() <= 40 + 1e-4 and (left + width).max() <= 40 + 1e-4
  area, ratio = height * width / 1600, width / height
  assert 0.1 - 1e-5 <= area.min() < 0.11 and 0.49 < area.max() <= 0.5 + 1e-5
  assert area.mean() == pytest.approx(0.3, abs=0.01)
  assert np.log(ratio).min() >= -math.log(4 / 3) - 1e-5 and abs(np.log(ratio).mean()) < 0.01
  assert (top / (40 - height)).mean() == pytest.approx(0.5, abs=0.02)
  assert abs(np.corrcoef(top / (40 - height), left / (40 - width))[0, 1]) < 0.05


def test_a_crop_equals_its_box_flip_and_blur():
  """The whole function against the slow crop, with the box and the flip that its key draws."""
  kind = CropKind(4, (6, 5), (0.2, 0.6), colors=PLAIN)
  image, example_keys = images(), keys(3)
  got = np.asarray(jax.jit(functools.partial(crops.crop, kind=kind))(jnp.asarray(image), example_keys))
  flips = 0
  for b in range(3):
    for i, draws in enumerate(jax.random.uniform(example_keys[b], (4, 8 + colors.NUM_DRAWS))):
      box = [float(x) for x in crops.random_box(draws[:4], 11, 8, kind.area)]
      expected = slow_crop(image[b], *box, (6, 5))
      flipped = bool(draws[4] < 0.5)
      flips += flipped
      np.testing.assert_allclose(got[b, i], expected[:, ::-1] if flipped else expected, atol=5e-6)
  assert 0 < flips < 12


def test_a_blur_is_a_gaussian():
  sigma, image = 1.3, images(rows=9, columns=9)[0]
  weights = np.exp(-0.5 * ((np.arange(9)[:, None] - np.arange(9)) / sigma) ** 2)
  weights /= weights.sum(1, keepdims=True)
  matrix = crops.gaussian_weights(jnp.float32(sigma), 9)
  np.testing.assert_allclose(matrix, weights, atol=1e-6)
  np.testing.assert_allclose(crops.gaussian_weights(jnp.float32(0.1), 9), np.eye(9), atol=1e-6)
  flat = crops.resample(jnp.full(image.shape, 0.3), matrix, matrix)
  np.testing.assert_allclose(flat, 0.3, atol=1e-6)


def test_blur_and_solarization_have_the_chance_of_each_crop():
  image = jnp.asarray(np.indices((8, 8)).sum(0) % 2, jnp.float32)[None, :, :, None].repeat(2, 0)
  kind = CropKind(2, (8, 8), (1.0, 1.0), flip=False, colors=PLAIN, blur=5.0, blur_chance=(1.0, 0.0),
                  solarize_chance=(0.0, 1.0))
  plain = crops.crop(image, keys(2), CropKind(2, (8, 8), (1.0, 1.0), flip=False, colors=PLAIN))
  got = crops.crop(image, keys(2), kind)
  assert (got[:, 0].std(axis=(1, 2)) < 0.9 * plain[:, 0].std(axis=(1, 2))).all()
  np.testing.assert_allclose(got[:, 1], np.where(plain[:, 1] >= 0.5, 1 - plain[:, 1], plain[:, 1]), atol=1e-6)


def test_crops_belong_to_the_example():
  kind = CropKind(2, (6, 5), (0.2, 0.6), blur=1.0, blur_chance=(0.5,))
  image, example_keys = jnp.asarray(images(4)), keys(4)
  make = jax.jit(functools.partial(crops.crop, kind=kind))
  all_at_once, order = make(image, example_keys), jnp.array([2, 0, 3, 1])
  np.testing.assert_array_equal(make(image[order], example_keys[order]), all_at_once[order])
  one_by_one = jnp.concatenate([make(image[i:i + 1], example_keys[i:i + 1]) for i in range(4)])
  np.testing.assert_allclose(one_by_one, all_at_once, atol=1e-6)
  same_image = make(jnp.broadcast_to(image[:1], image.shape), example_keys)
  assert len(np.unique(np.asarray(same_image).reshape(8, -1).round(4), axis=0)) == 8  # no two crops are equal


def test_colors_against_plain_numpy():
  image, luma = images()[0].astype(np.float64), np.array([0.299, 0.587, 0.114])
  contrast = np.clip((image @ luma).mean() + 1.3 * (image - (image @ luma).mean()), 0, 1)
  np.testing.assert_allclose(colors.with_contrast(jnp.asarray(image, jnp.float32), jnp.float32(1.3)), contrast, atol=1e-5)
  gray = colors.with_chroma(jnp.asarray(image, jnp.float32), jnp.float32(0), jnp.float32(0))
  np.testing.assert_allclose(gray, np.repeat((image @ luma)[..., None], 3, -1), atol=1e-3)  # YIQ's published digits
  same = colors.with_chroma(jnp.asarray(image, jnp.float32), jnp.float32(1), jnp.float32(1.0))
  np.testing.assert_allclose(same, image, atol=1e-5)  # a whole turn
  turned = colors.with_chroma(jnp.full((1, 1, 3), 0.5).at[0, 0, 0].add(0.1), jnp.float32(1), jnp.float32(1 / 3))
  assert np.argmax(turned[0, 0]) == 1 or np.argmax(turned[0, 0]) == 2  # red has become another color
  np.testing.assert_allclose(turned @ luma.astype(np.float32), 0.5 + 0.1 * luma[0], atol=1e-3)


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_jitter_stays_in_range_and_is_drawn_with_its_chance(channels):
  image = jnp.asarray(images(1, channels=channels)[0])
  jittered = jax.jit(jax.vmap(lambda draws: colors.jitter(image, draws, ColorJitter())))(jax.random.uniform(keys(1)[0], (400, 6)))
  assert jittered.min() >= 0 and jittered.max() <= 1 and not jnp.isnan(jittered).any()
  same = np.asarray((jittered == image).all(axis=(1, 2, 3))).mean()
  assert same == pytest.approx(0.2 * 0.8 if channels == 3 else 0.2, abs=0.06)
  if channels == 3:
    gray = np.asarray((jittered.max(-1) - jittered.min(-1) < 1e-6).all(axis=(1, 2))).mean()
    assert gray == pytest.approx(0.2, abs=0.06)
  np.testing.assert_array_equal(colors.jitter(image, jnp.zeros(6), PLAIN), image)
