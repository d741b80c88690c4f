"""Objectives of hidden patches against a slow NumPy version, and what they promise about masks and devices."""
import dataclasses
import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from tests.models.test_encode import encode
from tests.models.test_vit import randomized
from vit_jax.base.errors import UserError
from vit_jax.base.preprocessing import Normalization
from vit_jax.data.sources.info import DatasetInfo
from vit_jax.models.mixer.config import MixerConfig
from vit_jax.models.mixer.mixer import Mixer
from vit_jax.models.vit import VisionTransformer
from vit_jax.objectives import OBJECTIVES
from vit_jax.objectives.base import mean_of
from vit_jax.objectives.masked import masks
from vit_jax.objectives.masked import patches as patches_lib
from vit_jax.objectives.masked.masked_patches import draw_corruption

NORMALIZATION = Normalization(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
BATCH = 3


def context(channels=3, **fields):
  normalization = NORMALIZATION if channels == 3 else Normalization()
  info = DatasetInfo(num_examples=10, num_classes=10, channels=channels)
  return dataclasses.replace(tiny.objective_context(info, **{**dict(image_size=(16, 24), depth=1), **fields}),
                             normalization=normalization)


def make(kind, given=None, **fields):
  """Return (objective, model with random parameters, the objective's own, random too)."""
  given = given or context()
  objective = OBJECTIVES[kind](OBJECTIVES[kind].Config(**fields), given)
  own, averages = objective.init({}, jax.random.key(0))
  assert averages == {}
  rng = np.random.default_rng(5)
  own = jax.tree.map(lambda x: jnp.asarray(0.2 * rng.normal(size=x.shape), jnp.float32), own)
  return objective, randomized(given.model), own


def batch_of(count=BATCH, channels=3, seed=0, size=(16, 24)):
  """Return a batch of uint8 images as they are, and normalized."""
  images = np.random.default_rng(seed).integers(0, 256, (count, *size, channels), dtype=np.uint8)
  normalization = NORMALIZATION if channels == 3 else Normalization()
  return images, dict(image=normalization(jnp.asarray(images)), id=jnp.arange(count) + 7)


def run(objective, model, own, batch, keys=None):
  """Return the outcome, compiled."""
  return compiled(objective)(model, own, batch, keys)


@functools.cache
def compiled(objective):
  return nnx.jit(lambda model, own, batch, keys: objective(model, own, {}, batch, keys))


def keys_of(count, seed=3):
  return jax.vmap(lambda number: jax.random.fold_in(jax.random.key(seed), number))(jnp.arange(count))


# The slow version: one image, one patch, one pixel at a time, in float64.


def hidden_of(objective, batch, keys=None):
  """Return ((B, hidden), (B, visible)) indices of a batch, by hiding nothing but drawing the same."""
  seen = {}

  def predict(model, own, tokens, hidden, visible, corruption, keys):
    seen.update(hidden=np.array(hidden), visible=np.array(visible), corruption=corruption)
    return jnp.zeros((*hidden.shape, objective.target.num_outputs))

  class Embedding:
    patch_tokens = staticmethod(lambda images: jnp.zeros((len(images), 1, 1)))

  original, objective.predict = objective.predict, predict
  own = objective.init({}, jax.random.key(0))[0]
  objective(Embedding(), own, {}, batch, keys)
  objective.predict = original
  return seen


def crop(image, patch, size=(4, 4)):
  """Return a patch's pixels, patches counted row by row."""
  row, column = divmod(patch, image.shape[1] // size[1])
  return image[row * size[0]:(row + 1) * size[0], column * size[1]:(column + 1) * size[1]]


def color(pixels):
  """Return the 3-bit color of uint8 pixels (rows, columns, channels), by whole numbers."""
  total, count = pixels.reshape(-1, pixels.shape[-1]).sum(axis=0, dtype=int), pixels.shape[0] * pixels.shape[1]
  bins = [min(7, int(value) * 8 // (255 * count)) for value in total]
  return functools.reduce(lambda before, one: before * 8 + one, bins)


def cross_entropy(logits, label):
  return np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[label]


def last_patches(model, tokens, keep=None):
  """Return the last tokens of the patches."""
  return np.array(encode(model, jnp.asarray(tokens), keep))[:, model.config.num_prefix_tokens:]


def head(own, token):
  return np.asarray(token, np.float64) @ np.asarray(own['head']['kernel'], np.float64) + np.asarray(own['head']['bias'])


@pytest.mark.parametrize('target', ['mean_color', 'small_patch', 'pixels'])
@pytest.mark.parametrize('channels, train', [(3, True), (1, False)])
def test_masked_patches_equal_the_slow_version(target, channels, train):
  objective, model, own = make('masked_patches', context(channels), target=target)
  images, batch = batch_of(channels=channels)
  keys = keys_of(BATCH) if train else None
  outcome = run(objective, model, own, batch, keys)
  drawn, tokens = hidden_of(objective, batch, keys), np.array(model.patch_tokens(batch['image']))
  corrupted = tokens.copy()
  for i in range(BATCH):
    token, source = map(np.array, draw_corruption(drawn['corruption'][i], 24))
    for patch in drawn['hidden'][i]:
      corrupted[i, patch] = own['mask_token'] if token[patch] else tokens[i][source[patch]]
  last, losses, right, errors = last_patches(model, corrupted), [], [], []
  for i, image in enumerate(images):
    for patch in drawn['hidden'][i]:
      logits, pixels, seen = head(own, last[i, patch]), crop(image, patch), crop(np.array(batch['image'][i]), patch)
      if target == 'pixels':
        losses.append(np.mean((logits - seen.reshape(-1)) ** 2))
        predicted = logits.reshape(4, 4, channels) * np.array(objective.place.normalization.std) + np.array(
            objective.place.normalization.mean)
        errors.append(255 * np.abs(np.clip(predicted, 0, 1) - pixels / 255).mean())
        continue
      cells = [pixels] if target == 'mean_color' else [pixels[r:r + 1, c:c + 1] for r in range(4) for c in range(4)]
      logits = logits.reshape(len(cells), 8 ** channels)
      labels = [color(cell) for cell in cells]
      losses.append(np.mean([cross_entropy(one, label) for one, label in zip(logits, labels, strict=True)]))
      right.append(np.mean(logits.argmax(axis=1) == labels))
  np.testing.assert_allclose(outcome.losses, np.reshape(losses, (BATCH, 12)).mean(axis=1), rtol=2e-5)
  if target == 'pixels':
    np.testing.assert_allclose(mean_of(outcome.metrics['pixel_error']), np.mean(errors), rtol=1e-5)
  else:
    np.testing.assert_allclose(mean_of(outcome.metrics['color_accuracy']), np.mean(right), rtol=1e-5)


def test_simmim_equals_the_slow_version():
  objective, model, own = make('simmim', unit=2, ratio=0.5)
  _, batch = batch_of()
  drawn, tokens = hidden_of(objective, batch), np.array(model.patch_tokens(batch['image']))
  for i in range(BATCH):
    tokens[i][drawn['hidden'][i]] = own['mask_token']
  last = last_patches(model, tokens)
  expected = [np.mean([np.abs(head(own, last[i, patch]) - crop(np.array(batch['image'][i]), patch).reshape(-1))
                       for patch in drawn['hidden'][i]]) for i in range(BATCH)]
  np.testing.assert_allclose(run(objective, model, own, batch).losses, expected, rtol=2e-5)


@pytest.mark.parametrize('standardize, fields', [(True, dict(registers=1)), (False, dict(pool='gap', unroll=True, remat='dots'))])
def test_mae_equals_the_slow_version(standardize, fields):
  """With the patches back in their order, as in the authors' code."""
  objective, model, own = make('mae', context(**fields), decoder_width=16, decoder_depth=2, decoder_heads=2,
                               standardize=standardize)
  _, batch = batch_of()
  drawn = hidden_of(objective, batch)
  decoder = nnx.merge(nnx.graphdef(nnx.eval_shape(lambda: objective.make_own(nnx.Rngs(0)))), own)
  tokens, prefix = model.patch_tokens(batch['image']), model.config.num_prefix_tokens
  place, expected = np.array(decoder.position()[0]).reshape(24, 16), []
  embedded = np.array(encode(model, tokens, jnp.asarray(drawn['visible'])) @ own['embed']['kernel'] + own['embed']['bias'])
  full = np.tile(np.array(own['mask_token']), (BATCH, 24, 1))
  for i in range(BATCH):
    full[i][drawn['visible'][i]] = embedded[i, prefix:]
  last = nnx.jit(lambda decoder, x: decoder.encoder(x))(decoder, jnp.concatenate([embedded[:, :prefix], full + place], 1))
  for i in range(BATCH):
    losses = []
    for patch in drawn['hidden'][i]:
      x = np.array(last[i, prefix + patch], np.float64)
      x = (x - x.mean()) / np.sqrt(x.var() + 1e-6) * own['norm']['scale'] + own['norm']['bias']
      target = crop(np.array(batch['image'][i], np.float64), patch).reshape(-1)
      if standardize:
        target = (target - target.mean()) / np.sqrt(target.var() * 48 / 47 + 1e-6)
      losses.append(np.mean((head(own, x) - target) ** 2))
    expected.append(np.mean(losses))
  np.testing.assert_allclose(run(objective, model, own, batch).losses, expected, rtol=2e-4)


# Masks.


@pytest.mark.parametrize('kind, fields, hidden', [
    ('masked_patches', {}, 12), ('mae', dict(decoder_width=8, decoder_heads=2, decoder_depth=1), 18),
    ('simmim', dict(), 16), ('simmim', dict(unit=1), 15),
])
def test_the_number_of_hidden_patches_is_exact_and_examples_differ(kind, fields, hidden):
  objective = make(kind, **fields)[0]
  drawn = hidden_of(objective, batch_of(6)[1])
  assert drawn['hidden'].shape == (6, hidden)
  for h, v in zip(drawn['hidden'], drawn['visible'], strict=True):
    assert sorted([*h, *v]) == list(range(24))
  assert len({tuple(sorted(h)) for h in drawn['hidden']}) == 6


def test_squares_are_hidden_together():
  hidden, _ = masks.draw(keys_of(5), (4, 6), 0.5, unit=2)
  grid = np.array(masks.are_among(hidden, 24)).reshape(5, 2, 2, 3, 2)
  assert (grid.all(axis=(2, 4)) == grid.any(axis=(2, 4))).all() and (grid.all(axis=(2, 4)).sum(axis=(1, 2)) == 3).all()


def test_every_patch_is_hidden_equally_often():
  hidden, _ = masks.draw(keys_of(4000), (2, 3), 0.5)
  counts = np.array(masks.are_among(hidden, 6)).mean(axis=0)
  np.testing.assert_allclose(counts, 0.5, atol=5 * 0.5 / np.sqrt(4000))


def test_corruption_has_the_shares_of_the_paper():
  token, source = jax.vmap(lambda key: draw_corruption(key, 10))(keys_of(4000))
  token, other = np.array(token), np.array(source) != np.arange(10)
  np.testing.assert_allclose(token.mean(), 0.8, atol=0.01)
  np.testing.assert_allclose((~token & other).mean(), 0.1, atol=0.01)
  np.testing.assert_allclose((~token & ~other).mean(), 0.1, atol=0.01)
  offsets = ((np.array(source) - np.arange(10)) % 10)[~token & other]
  np.testing.assert_allclose(np.bincount(offsets, minlength=10)[1:] / len(offsets), 1 / 9, atol=0.02)


@pytest.mark.parametrize('kind, fields', [
    ('masked_patches', dict(target='small_patch')), ('simmim', {}),
    ('mae', dict(decoder_width=8, decoder_heads=2, decoder_depth=1)),
])
@pytest.mark.parametrize('train', [True, False])
def test_an_example_does_not_depend_on_its_batch(kind, fields, train):
  objective, model, own = make(kind, context(dropout=0.2), **fields)
  _, batch = batch_of(4)
  keys = keys_of(4) if train else None
  losses = np.array(run(objective, model, own, batch, keys).losses)
  order = jnp.asarray([2, 0, 3, 1])
  moved = run(objective, model, own, jax.tree.map(lambda x: x[order], batch), keys if keys is None else keys[order])
  np.testing.assert_allclose(moved.losses, losses[np.array(order)], rtol=1e-5)
  assert len(np.unique(losses)) == 4
  again = run(objective, model, own, batch, keys_of(4, seed=4) if train else None).losses
  assert np.array_equal(again, losses) != train


def test_hidden_patches_do_not_leak_into_their_prediction():
  """MAE and SimMIM see nothing of what they predict: other pixels there change targets, not predictions."""
  for kind, fields in (('simmim', {}), ('mae', dict(decoder_width=8, decoder_heads=2, decoder_depth=1))):
    objective, model, own = make(kind, **fields)
    images, batch = batch_of()
    hidden = hidden_of(objective, batch)['hidden']
    predict = nnx.jit(lambda model, batch, objective=objective, own=own: (
        objective._predict(model, own, batch, None)[0], objective(model, own, {}, batch, None).losses))
    before, losses = predict(model, batch)
    for i, patches in enumerate(hidden):
      for patch in patches:
        crop(images[i], patch)[...] = 255 - crop(images[i], patch)
    changed = dict(batch, image=NORMALIZATION(jnp.asarray(images)))
    after, changed_losses = predict(model, changed)
    np.testing.assert_array_equal(after, before)
    assert not np.allclose(changed_losses, losses)


def test_padding_does_not_count():
  objective, model, own = make('masked_patches')
  _, batch = batch_of(4)
  metrics = run(objective, model, own, dict(batch, mask=jnp.array([True, True, False, False]))).metrics
  expected = run(objective, model, own, jax.tree.map(lambda x: x[:2], batch)).metrics
  for name, metric in metrics.items():
    assert float(metric[1]) == 2
    np.testing.assert_allclose(metric[0], expected[name][0], rtol=1e-5)


# Patches, and pictures.


def test_patches_and_their_inverse():
  images = np.random.default_rng(0).normal(size=(2, 9, 14, 3)).astype(np.float32)
  patches = patches_lib.patchify(jnp.asarray(images), (4, 3))
  assert patches.shape == (2, 8, 36)
  for patch in range(8):
    np.testing.assert_array_equal(patches[1, patch], crop(images[1, :, :12], patch, (4, 3)).reshape(-1))
  np.testing.assert_array_equal(patches_lib.unpatchify(patches, (4, 3), (2, 4)), images[:, :8, :12])


def test_cell_means_of_sizes_that_do_not_divide():
  """A patch of 6 rows in 4 cells: one and a half rows each."""
  x = np.random.default_rng(0).normal(size=(6, 4, 2)).astype(np.float32)
  means = np.array(patches_lib.cell_means(jnp.asarray(x.reshape(1, 1, -1)), (6, 4), 4)).reshape(4, 4, 2)
  fine = np.repeat(x, 2, axis=0)  # 12 half rows, three for each cell
  np.testing.assert_allclose(means, fine.reshape(4, 3, 4, 2).mean(axis=1), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('kind, fields', [
    ('masked_patches', dict(target='mean_color')), ('masked_patches', dict(target='small_patch')),
    ('masked_patches', dict(target='pixels')), ('simmim', {}),
    ('mae', dict(decoder_width=8, decoder_heads=2, decoder_depth=1)),
])
def test_reconstructions_show_the_image_where_it_was_visible(kind, fields):
  objective, model, own = make(kind, **fields)
  images, batch = batch_of()
  original, hidden, filled = map(np.array, nnx.jit(objective.reconstruct)(model, own, batch))
  np.testing.assert_allclose(255 * original, images, atol=1e-3)
  np.testing.assert_array_equal(filled[~hidden], original[~hidden])
  drawn = hidden_of(objective, batch)['hidden']
  for i in range(BATCH):
    assert {patch for patch in range(24) if crop(hidden[i], patch).all()} == set(drawn[i].tolist())
  assert 0 <= filled.min() and filled.max() <= 1
  error = 255 * np.abs(filled - original)[hidden].mean()
  np.testing.assert_allclose(mean_of(run(objective, model, own, batch).metrics['pixel_error']), error, rtol=1e-4)


def test_a_perfect_prediction_of_colors_is_drawn_within_its_bin():
  objective, model, own = make('masked_patches', target='small_patch')
  images, batch = batch_of()
  patches = patches_lib.patchify(batch['image'], (4, 4))
  perfect = jax.nn.one_hot(objective.target.classes(patches), 512).reshape(*patches.shape[:2], -1)
  drawn = objective.target.to_pixels(perfect, patches)
  np.testing.assert_allclose(drawn, patches_lib.patchify(jnp.asarray(images / 255, jnp.float32), (4, 4)), atol=1 / 16 + 1e-3)
  assert (np.array(objective.target.losses(1e4 * perfect, patches)) == 0).all()


def test_a_mask_token_of_the_model_is_used():
  objective, model, own = make('simmim', context(mask_token=True))
  assert 'mask_token' not in own
  _, batch = batch_of()
  before = run(objective, model, own, batch).losses
  model.mask_token[...] = -model.mask_token[...]
  assert not np.allclose(run(objective, model, own, batch).losses, before)


# Errors.


@pytest.mark.parametrize('kind, fields, model, message', [
    ('mae', dict(ratio=1.0), {}, 'objective.ratio: must be between 0 and 1, got 1.0'),
    ('mae', dict(ratio=0.99), {}, 'objective.ratio: 0.99 of 24 patches hides 24'),
    ('mae', dict(decoder_width=10), {}, 'objective.decoder_width: must be divisible by 4, got 10'),
    ('mae', dict(decoder_width=20), {}, 'objective.decoder_width: must be divisible by objective.decoder_heads'),
    ('mae', {}, dict(rotary='eva'), "model.rotary: .*set model.rotary='none'"),
    ('simmim', dict(unit=4), {}, 'objective.unit: must divide the 4×6 patches of an image, got 4'),
    ('simmim', dict(unit=0), {}, 'objective.unit: must be at least 1'),
    ('masked_patches', dict(target='edges'), {}, "objective.target: unknown 'edges'.*'mean_color'"),
    ('masked_patches', dict(target='small_patch'), dict(patch_size=2), 'small_patch.*a patch has 2×2 pixels'),
])
def test_mistakes_are_named(kind, fields, model, message):
  with pytest.raises(UserError, match=message):
    make(kind, context(**model), **fields)


def test_models_without_patches_are_refused():
  mixer = nnx.eval_shape(lambda: Mixer(MixerConfig(image_size=16, patch_size=4, width=8, depth=1, token_mlp_dim=8,
                                                   channel_mlp_dim=8), rngs=nnx.Rngs(0)))
  with pytest.raises(UserError, match="objective.kind: 'simmim'.*kind 'mixer' does not have; use model.kind='vit'"):
    make('simmim', dataclasses.replace(context(), model=mixer))
  assert isinstance(context().model, VisionTransformer)
