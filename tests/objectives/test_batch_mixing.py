"""Mixup and CutMix against their definitions; the same on one device and on many."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from tests import tiny
from tests.training.test_step import INFO, assert_close, batches, make_step, prepare, run
from vit_jax import train
from vit_jax.base.errors import UserError
from vit_jax.distributed.batch_split import count_micro_batches
from vit_jax.models import layers
from vit_jax.objectives import batch_mixing, losses
from vit_jax.objectives.batch_mixing import MixConfig
from vit_jax.objectives.classification import Classification, ClassificationConfig
from vit_jax.run import config as config_lib
from vit_jax.run.build import build
from vit_jax.training import step as step_lib

SIZE, CLASSES = (12, 10), 3


@functools.cache
def mixed(pairs=64, seed=0, **strength):
  """Return (batch before, batch after) as NumPy arrays."""
  rng = np.random.default_rng(seed)
  batch = dict(image=rng.normal(size=(2 * pairs, *SIZE, 2)).astype(np.float32),
               label=rng.integers(0, CLASSES, 2 * pairs).astype(np.int32), id=np.arange(2 * pairs))
  keys = step_lib.example_keys(seed, 0, jnp.arange(2 * pairs))
  after = jax.jit(batch_mixing.build(MixConfig(**strength), CLASSES))(batch, keys)
  return batch, {name: np.asarray(value) for name, value in after.items()}


def own_weights(batch, after):
  """Return the first's weight in its own mixture for each pair, from the labels; NaN for pairs of one class."""
  first, second = batch['label'][::2], batch['label'][1::2]
  rows = np.arange(len(first))
  own = after['label'][::2][rows, first]
  return np.where(first == second, np.nan, own)


STRENGTHS = [dict(mixup=0.2), dict(mixup=1.0), dict(cutmix=1.0), dict(cutmix=0.3), dict(mixup=0.8, cutmix=1.0)]


@pytest.mark.parametrize('strength', STRENGTHS, ids=str)
def test_labels_have_mass_one_and_lose_nothing(strength):
  batch, after = mixed(**strength)
  assert after['label'].shape == (128, CLASSES) and after['label'].dtype == np.float32
  assert after['label'].min() >= 0.0
  np.testing.assert_allclose(after['label'].sum(axis=1), 1.0, atol=1e-6)
  both = lambda x: x.reshape(-1, 2, *x.shape[1:]).sum(axis=1)
  np.testing.assert_allclose(both(after['label']), both(np.eye(CLASSES)[batch['label']]), atol=1e-6)
  np.testing.assert_allclose(both(after['image']), both(batch['image']), atol=1e-5)
  np.testing.assert_array_equal(after['id'], batch['id'])


@pytest.mark.parametrize('alpha', [0.2, 1.0])
def test_mixup_equals_its_definition(alpha):
  batch, after = mixed(mixup=alpha)
  share = own_weights(batch, after)
  assert np.nanmin(share) >= 0.5 and np.nanmax(share) <= 1.0
  for i, part in enumerate(share):
    if not np.isnan(part):
      a, b = batch['image'][2 * i].astype(np.float64), batch['image'][2 * i + 1].astype(np.float64)
      np.testing.assert_allclose(after['image'][2 * i], part * a + (1 - part) * b, atol=1e-5)
      np.testing.assert_allclose(after['image'][2 * i + 1], part * b + (1 - part) * a, atol=1e-5)


@pytest.mark.parametrize('alpha', [0.2, 1.0])
def test_mixup_weights_are_the_larger_part_of_a_beta(alpha):
  share = own_weights(*mixed(pairs=2000, mixup=alpha))
  share = share[~np.isnan(share)]
  cdf = lambda x: special.betainc(alpha, alpha, x) - special.betainc(alpha, alpha, 1 - x)
  assert stats.kstest(share, cdf).pvalue > 1e-3


def test_cutmix_swaps_one_rectangle_and_counts_its_pixels():
  batch, after = mixed(cutmix=1.0)
  share = own_weights(batch, after)
  for i, part in enumerate(share):
    first, second = batch['image'][2 * i:2 * i + 2]
    new_first, new_second = after['image'][2 * i:2 * i + 2]
    pasted = (new_first == second).all(axis=-1)
    np.testing.assert_array_equal(new_first, np.where(pasted[..., None], second, first))
    np.testing.assert_array_equal(new_second, np.where(pasted[..., None], first, second))
    rows, columns = pasted.any(axis=1), pasted.any(axis=0)
    assert pasted.sum() == rows.sum() * columns.sum()
    assert (np.diff(np.flatnonzero(rows)) == 1).all() and (np.diff(np.flatnonzero(columns)) == 1).all()
    if not np.isnan(part):
      assert part == pytest.approx(1 - pasted.mean(), abs=1e-6)


def test_cutmix_boxes_have_the_drawn_sides_and_a_centre_anywhere():
  """Uniform area: the mean side is E[√u] = 2/3; cutting off at the edges leaves side · (1 - side / 4) of it on average."""
  keys = jax.random.split(jax.random.key(0), 4000)
  own = np.asarray(jax.vmap(lambda key: batch_mixing._cutmix_weights(key, 1.0, (40, 40)))(keys))
  pasted = own == 0
  sides = pasted.any(axis=2).mean(axis=1)
  assert sides.mean() == pytest.approx(2 / 3 - 1 / 8, abs=0.02)  # E[s - s² / 4], s² uniform
  assert sides.max() > 0.9 and sides.min() < 0.05
  np.testing.assert_allclose(pasted.mean(axis=0), pasted.mean(axis=0)[::-1, ::-1], atol=0.06)  # central symmetry


def test_both_kinds_are_equally_likely():
  batch, after = mixed(pairs=400, mixup=1.0, cutmix=1.0)
  pasted = ((after['image'] == batch['image']) | (after['image'] == np.roll(batch['image'], -1, 0))).all(axis=(1, 2, 3))
  assert abs(pasted[::2].sum() - 200) < 50


def test_off_traces_nothing():
  assert batch_mixing.build(MixConfig(), CLASSES) is None
  assert batch_mixing.build(config_lib.read(tiny.config('nowhere')).mix, 10) is None


def test_many_labels_become_their_convex_combination():
  labels = jnp.array([[1, 0, 1], [0, 0, 1], [0, 0, 0], [1, 1, 0]], jnp.int32)
  keys = step_lib.example_keys(0, 0, jnp.arange(4))
  batch = dict(image=jnp.zeros((4, *SIZE, 1)), label=labels)
  after = np.asarray(batch_mixing.build(MixConfig(mixup=1.0), CLASSES)(batch, keys)['label'])
  part = after[0, 0]
  np.testing.assert_allclose(after[:2], [[part, 0, 1], [1 - part, 0, 1]], atol=1e-6)
  assert after[3, 0] == pytest.approx(after[3, 1]) and after[2, 0] == pytest.approx(1 - after[3, 0])


def test_the_keys_differ_from_those_of_the_layers():
  key = jax.random.key(7)
  data = lambda key: np.asarray(jax.random.key_data(key)).tolist()
  ours = data(jax.random.fold_in(key, batch_mixing._STREAM))
  assert ours not in data(jax.random.split(key, 1000))
  assert ours not in data(jax.vmap(lambda n: layers.fold_in(key[None], n)[0])(jnp.arange(64)))


# Losses and accuracy of mixtures.


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_the_loss_of_a_mixture_is_the_mixture_of_the_losses(smoothing):
  """Cross-entropies are linear in the target."""
  rng = np.random.default_rng(0)
  logits, labels, part = rng.normal(size=(6, CLASSES)).astype(np.float32), rng.integers(0, CLASSES, (2, 6)), rng.random(6)
  hot = np.eye(CLASSES)[labels]
  soft = (part[:, None] * hot[0] + (1 - part)[:, None] * hot[1]).astype(np.float32)
  for loss in losses.LOSSES.values():
    expected = part * loss(logits, labels[0], smoothing) + (1 - part) * loss(logits, labels[1], smoothing)
    np.testing.assert_allclose(loss(logits, soft, smoothing), expected, rtol=1e-5)


def test_the_label_of_largest_weight_is_correct():
  labels = jnp.array([[0.7, 0.3, 0.0], [0.4, 0.6, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 0.0]], jnp.float32)
  model = lambda images, rngs: jnp.array([[2.0, 1.0, 0.0]] * 4)
  for row, expected in zip(range(4), [1.0, 0.0, 1.0, 0.0], strict=True):
    batch = dict(image=jnp.zeros((4, *SIZE, 1)), label=labels, mask=jnp.arange(4) == row)
    total, count = Classification(ClassificationConfig(), tiny.objective_context(INFO))(
        model, {}, {}, batch, None).metrics['accuracy']
    assert (float(total), float(count)) == (expected, 1.0)


# In the step.


def mixing_step(**options):
  mixing = batch_mixing.build(MixConfig(mixup=0.4, cutmix=1.0), CLASSES)
  return make_step(prepare=lambda batch, keys: mixing(prepare(batch, keys), keys), **options)


def test_micro_batches_and_devices_change_nothing():
  plain, plain_metrics = run(jax.jit(mixing_step()), batches(2), ema=False)
  cut = lambda batch: {name: x.reshape(2, 4, *x.shape[1:]) for name, x in batch.items()}
  over_devices = jax.vmap(mixing_step(num_micro_batches=2, axis_name='batch'), in_axes=(None, 0), axis_name='batch')
  two_devices = lambda state, batch: jax.tree.map(lambda x: x[0], over_devices(state, cut(batch)))
  for step in (mixing_step(num_micro_batches=4), two_devices):
    states, metrics = run(jax.jit(step), batches(2), ema=False)
    assert_close(states[-1].params, plain[-1].params, atol=2e-6, rtol=2e-5)
    assert metrics[-1] == pytest.approx(plain_metrics[-1], rel=1e-4)


@pytest.mark.slow
def test_eight_devices_train_like_one(data_dir, tmp_path):
  config = tiny.config(data_dir, **{'mix.mixup': 0.2, 'mix.cutmix': 1.0, 'train.duration': '3 steps',
                                    'train.eval_every': '3 steps', 'optim.warmup': '1 steps'})
  process = tiny.command('main', f'--config={tiny.write(config, tmp_path)}', f'--workdir={tmp_path / "eight"}', devices=8)
  train.run(config, tmp_path / 'one')
  _, error = process.communicate()
  assert process.returncode == 0, error
  np.testing.assert_allclose(tiny.metrics(tmp_path / 'eight'), tiny.metrics(tmp_path / 'one'), rtol=2e-5)


@pytest.mark.parametrize('changes, message', [
    ({'mix.mixup': -0.1}, 'mix.mixup: expected a positive concentration, or 0 for off, got -0.1'),
    ({'mix.cutmix': float('inf')}, 'mix.cutmix: expected a positive concentration'),
    ({'mix.alpha': 0.1}, 'mix.alpha: unknown config key;.* valid keys are .*mix.cutmix'),
    ({'mix.mixup': 0.2, 'data.batch_size': 60, 'train.micro_batch': 15},
     'each of the 1 shards of data.batch_size=60.*even number.*got 15 of 60.*: --config.train.micro_batch=30'),
    ({'mix.mixup': 0.2, 'data.batch_size': 63}, 'got 63 of 63.*: --config.data.batch_size=64'),
    ({'mix.mixup': 0.2, 'data.name': 'tiny_scenes', 'data.train_split': 'train', 'evaluators': {}},
     "use objective.loss='sigmoid'"),
])
def test_bad_input_is_an_error_before_anything_compiles(changes, message, data_dir):
  with pytest.raises(UserError, match=message):
    build(tiny.config(data_dir, **changes))


@pytest.mark.parametrize('batch_size, num_shards, num_micro_batches', [(60, 1, 4), (60, 4, 3), (60, 4, 1), (14, 2, 1), (12, 2, 2)])
def test_what_the_error_suggests_fits(batch_size, num_shards, num_micro_batches):
  with pytest.raises(UserError, match=f'each of the {num_shards} shards') as error:
    batch_mixing.check_pairs(batch_size, num_shards, num_micro_batches)
  key, value = str(error.value).rpartition('--config.')[2].split('=')
  if key == 'data.batch_size':
    batch_mixing.check_pairs(int(value), num_shards, 1)
  else:
    batch_mixing.check_pairs(batch_size, num_shards, count_micro_batches(batch_size, num_shards, int(value)))
