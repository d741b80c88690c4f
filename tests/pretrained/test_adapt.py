"""Weights adapted to other images, patches, channels and classes."""
import dataclasses

import numpy as np
import pytest

from tests import golden_files
from vit_jax.base.errors import UserError
from vit_jax.base.preprocessing import Preprocessing
from vit_jax.pretrained import resize
from vit_jax.pretrained.adapt import Adaptation
from vit_jax.pretrained.adapt import adapt as adapt_weights
from vit_jax.pretrained.formats import weights as weights_lib


def adapt(weights, **changes):
  return adapt_weights(weights, Adaptation(**changes))


def random_weights(**fields):
  """Return random weights of a tiny model with 14×14 patches."""
  config = weights_lib.read_config(
      dict(dict(image_size=28, patch_size=2, width=8, depth=1, heads=2, mlp_dim=8, num_classes=5), **fields))
  rng = np.random.default_rng(0)
  params = {path: rng.normal(size=shape).astype(np.float32) for path, shape in weights_lib.shapes(config).items()}
  return weights_lib.Weights(config, weights_lib.unflatten(params), class_names=tuple('abcde'))


def images(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize('fields', [
    dict(), dict(pool='gap'), dict(token_position=False), dict(pool='gap', class_token=True, registers=2)])
def test_14x14_to_16x12(fields):
  before = random_weights(**fields)
  after, lines = adapt(before, image_size=(32, 24))
  assert after.config.image_size == (32, 24)
  np.testing.assert_array_equal(
      after.params['position']['grid'], resize.resize_grid(before.params['position']['grid'], (16, 12)))
  assert ('token' in after.params['position']) == before.config.class_token * before.config.token_position
  if 'token' in after.params['position']:
    np.testing.assert_array_equal(after.params['position']['token'], before.params['position']['token'])
  assert golden_files.logits(after, images(1, 32, 24, 3)).shape == (1, 5)
  assert lines == ['position embedding (learned): grid 14×14 to 16×12, resized, bilinear', 'image size: 28×28 to 32×24']
  assert before.params['position']['grid'].shape == (14, 14, 8)


def test_learned2d_and_sincos2d():
  before = random_weights(position='learned2d')
  after, _ = adapt(before, image_size=(32, 24), method='bicubic')
  assert {name: leaf.shape for name, leaf in after.params['position'].items()} == dict(
      rows=(16, 4), columns=(12, 4), token=(8,))
  np.testing.assert_array_equal(after.params['position']['rows'], resize.resize_grid(
      before.params['position']['rows'][:, None], (16, 1), 'bicubic')[:, 0])
  after, lines = adapt(random_weights(position='sincos2d'), image_size=(32, 24))
  assert lines[0] == 'position embedding (sincos2d): grid 14×14 to 16×12, nothing to resize'
  assert golden_files.logits(after, images(1, 32, 24, 3)).shape == (1, 5)


def test_relative_positions():
  grids, shape = ((14, 14), (16, 12)), dict(image_size=(32, 24))
  before = random_weights(relative_position='table', depth=2)
  after, lines = adapt(before, **shape)
  tables = [weights.params['encoder']['blocks']['relative']['table'] for weights in (before, after)]
  assert tables[1].shape == (2, 31 * 23 + 3, 2)
  for old, new in zip(*tables, strict=True):
    np.testing.assert_array_equal(new, resize.resize_offsets(old, *grids))
    np.testing.assert_array_equal(new[-3:], old[-3:])
  assert lines[:2] == ['position embedding (learned): grid 14×14 to 16×12, resized, bilinear',
                       'relative positions (table): grid 14×14 to 16×12, resized']
  assert golden_files.logits(after, images(1, 32, 24, 3)).shape == (1, 5)
  before = random_weights(relative_position='keys1d', relative_position_shared=True, position=None, pool='gap')
  after, lines = adapt(before, **shape)
  old, new = (weights.params['encoder']['relative']['keys'] for weights in (before, after))
  # Linear in the offset, with both ends and the middle in place.
  at = np.linspace(0, 2 * 196 - 2, 2 * 192 - 1)
  np.testing.assert_allclose(new[:, 1, 2], np.interp(at, np.arange(2 * 196 - 1), old[:, 1, 2]), atol=1e-6)
  assert lines[:2] == ['position embedding (None): grid 14×14 to 16×12, nothing to resize',
                       'relative positions (keys1d): grid 14×14 to 16×12, resized, bilinear']
  after, lines = adapt(random_weights(relative_position='mlp'), **shape)
  assert lines[1] == 'relative positions (mlp): grid 14×14 to 16×12, nothing to resize'
  assert golden_files.logits(after, images(1, 32, 24, 3)).shape == (1, 5)


@pytest.mark.parametrize('at', ['every', 'shared'])
def test_positions_of_every_block(at):
  before = random_weights(position_at=at, depth=2)
  after, _ = adapt(before, image_size=(32, 24))
  tables = lambda weights: weights.params['encoder']['blocks' if at == 'every' else 'position']
  old, new = ([tables(weights)['position']['grid'][i] for i in range(2)] if at == 'every' else [tables(weights)['grid']]
              for weights in (before, after))
  for before_grid, after_grid in zip(old, new, strict=True):
    np.testing.assert_array_equal(after_grid, resize.resize_grid(before_grid, (16, 12)))
  assert golden_files.logits(after, images(1, 32, 24, 3)).shape == (1, 5)


def test_patch_size_keeps_the_embedding_of_a_patch():
  before = random_weights()
  after, lines = adapt(before, patch_size=4, image_size=56)
  enlarge = resize.bilinear_half_pixel(2, 4)
  small = images(1, 28, 28, 3)
  patches = small.reshape(1, 14, 2, 14, 2, 3)
  large = np.einsum('ip,jq,bhpwqc->bhiwjc', enlarge, enlarge, patches).reshape(1, 56, 56, 3).astype(np.float32)
  assert lines == ['patch kernel: resampled from 2×2 to 4×4 pixels', 'image size: 28×28 to 56×56']
  np.testing.assert_allclose(golden_files.logits(after, large), golden_files.logits(before, small), atol=1e-4)


@pytest.mark.parametrize('channels', [1, 2, 4, 5, 6])
def test_channels_keep_the_embedding_of_a_grey_image(channels):
  before = random_weights()
  after, lines = adapt(before, channels=channels)
  assert after.config.channels == channels and lines[0].startswith('stem: 3 input channels')
  embed = lambda weights: weights.params['patch_embed']['kernel'].sum(axis=2)
  np.testing.assert_allclose(embed(after), embed(before), atol=1e-6)
  assert adapt(before, channels=3)[0].params['patch_embed'] is before.params['patch_embed']


def test_one_channel_equals_replicated_rgb():
  before, image = random_weights(), images(2, 28, 28, 1)
  after, _ = adapt(before, channels=1)
  np.testing.assert_allclose(golden_files.logits(after, image), golden_files.logits(before, np.repeat(image, 3, -1)),
                             atol=1e-4)


def test_one_channel_to_three():
  before = random_weights(channels=1)
  after, _ = adapt(before, channels=3)
  image = images(2, 28, 28, 1)
  np.testing.assert_allclose(golden_files.logits(after, np.repeat(image, 3, -1)), golden_files.logits(before, image),
                             atol=1e-4)


def test_normalization_follows_the_channels():
  weights = dataclasses.replace(random_weights(), preprocessing=Preprocessing('resize', (0.1, 0.2, 0.3), 0.5))
  assert adapt(weights, channels=1)[0].preprocessing.mean == pytest.approx(0.2)
  assert adapt(weights, channels=4)[0].preprocessing.mean == (0.1, 0.2, 0.3, 0.1)
  bordered = "resize_ratio((14, 14), fit='inside')|central_crop(rule='torchvision', fill=(26, 51, 76))"
  weights = dataclasses.replace(weights, preprocessing=Preprocessing(bordered, (0.1, 0.2, 0.3)))
  assert adapt(weights, channels=1)[0].preprocessing.transform == bordered.replace('(26, 51, 76)', '51')


def test_the_head_stays_unless_reset_or_of_another_size():
  before = random_weights(representation_size=6)
  same, lines = adapt(before, num_classes=5)
  assert same.params is before.params and not lines and same.class_names == before.class_names
  for changes, count in ((dict(num_classes=3), 3), (dict(reset_head=True), 5)):
    after, lines = adapt(before, **changes)
    assert lines == [f'head: reset to zeros for {count} classes (was 5)'] and after.class_names is None
    assert {name: leaf.shape for name, leaf in after.params['head'].items()} == dict(kernel=(6, count), bias=(count,))
    assert not any(leaf.any() for leaf in after.params['head'].values()) and 'pre_logits' in after.params


def test_dropping_pre_logits_resets_the_head():
  after, lines = adapt(random_weights(representation_size=6), drop_pre_logits=True)
  assert lines == ['pre_logits: dropped (was 6 features)', 'head: reset to zeros for 5 classes (was 5)']
  assert 'pre_logits' not in after.params and after.params['head']['kernel'].shape == (8, 5)
  assert not adapt(random_weights(), drop_pre_logits=True)[1]


def test_a_model_without_a_head_gets_one():
  after, lines = adapt(random_weights(num_classes=None), num_classes=2)
  assert lines == ['head: reset to zeros for 2 classes'] and after.params['head']['kernel'].shape == (8, 2)


@pytest.mark.parametrize('transform, size, expected', [
    ('resize', 56, 'resize'),
    ('resize_small(32)|central_crop', 56, 'resize_small(64)|central_crop'),
    ("resize_small(32, interpolation='bicubic')|central_crop", 56,
     "resize_small(64, interpolation='bicubic')|central_crop"),
    ("resize_small(32, interpolation='bicubic')|central_crop", (56, 28), "resize(interpolation='bicubic')"),
    ('resize_small(32)|central_crop', (56, 28), 'resize'),
    ('resize_small(32)|central_crop', 28, 'resize_small(32)|central_crop'),
])
def test_the_evaluation_transform_follows_the_size(transform, size, expected):
  weights = dataclasses.replace(random_weights(), preprocessing=Preprocessing(transform))
  assert adapt(weights, image_size=size)[0].preprocessing.transform == expected


def test_sizes_that_do_not_divide():
  weights, lines = adapt(random_weights(), image_size=29)
  assert weights.config.grid == (14, 14)
  assert any('sees the 28×28 pixels' in line for line in lines)
  with pytest.raises(UserError, match=r'image_size: \(1, 1\) is smaller than a patch, \(2, 2\)'):
    adapt(random_weights(), image_size=1)
