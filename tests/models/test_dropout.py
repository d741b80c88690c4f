"""Dropout masks: they have the rate, and are independent between neighbors, examples, layers and steps."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models import layers
from vit_jax.training.step import example_keys

SHAPE = (97, 256)
SIGMAS = 5  # two-sided, normal: one in 1.7 million
RATE = 0.1


def keys(batch, seed=0, step=0):
  return example_keys(seed, step, jnp.arange(batch, dtype=jnp.uint32))


@functools.partial(jax.jit, static_argnums=(1, 2))
def zeroed(rngs, rate, shape):
  return layers.dropout(jnp.ones((len(rngs), *shape)), rate, rngs) == 0


def dropped(rngs, rate=RATE, shape=SHAPE):
  """Return where dropout zeroes an array of ones, (B, *shape) bool."""
  return np.asarray(zeroed(rngs, rate, shape))


def lowbias32(x):
  """Return the published hash without its last line `x ^= x >> 16`, in Python integers."""
  x = (x ^ x >> 16) * 0x7feb352d % 2 ** 32
  return (x ^ x >> 15) * 0x846ca68b % 2 ** 32


def assert_uncorrelated(a, b, rate=RATE):
  """Check the products of deviations: mean 0 and, if a and b are independent, variance (rate (1 - rate))²."""
  products = (a - rate) * (b - rate) / (rate * (1 - rate))
  assert abs(products.sum()) < SIGMAS * np.sqrt(products.size)


@pytest.mark.parametrize('shape', [(3,), (2, 2, 3)])
def test_numbers_are_hashes_of_a_word_per_row_and_a_word_per_column(shape):
  rngs, rows = keys(2), int(np.prod(shape[:-1]))
  found = np.asarray(layers.uniform(rngs, shape)).reshape(2, rows, 3)
  for key, example in zip(rngs, found, strict=True):
    words = [int(word) for word in jax.random.bits(key, (rows + 3,), jnp.uint32)]
    np.testing.assert_array_equal(example, [[lowbias32(r ^ c) for c in words[rows:]] for r in words[:rows]])


@pytest.mark.parametrize('rate', [0.001, 0.1, 0.5, 0.9])
def test_masks_have_the_rate(rate):
  mask = dropped(keys(64), rate)
  assert abs(mask.sum() - rate * mask.size) < SIGMAS * np.sqrt(mask.size * rate * (1 - rate))


def test_high_bits_are_uniform():
  counts = np.bincount(np.asarray(layers.uniform(keys(64), SHAPE)).ravel() >> 22, minlength=1024)
  expected = counts.sum() / 1024
  assert abs(((counts - expected) ** 2 / expected).sum() - 1023) < SIGMAS * np.sqrt(2 * 1023)


@pytest.mark.parametrize('rows, columns', [(0, 1), (1, 0), (1, 1), (0, 8), (8, 0), (0, 128), (3, 64)])
def test_neighbors_are_independent(rows, columns):
  mask = dropped(keys(64))
  assert_uncorrelated(mask[:, rows:, columns:], mask[:, :SHAPE[0] - rows, :SHAPE[1] - columns])


@pytest.mark.parametrize('rows, columns', [(1, 1), (1, 128), (48, 1), (48, 128)])
def test_corners_of_rectangles_are_independent(rows, columns):
  """Chi-square of the 16 outcomes of four corners, which an XOR of two words alone fails by hundreds of sigmas."""
  mask = dropped(keys(64))[:, :96]
  row, column = (np.arange(n)[np.arange(n) // step % 2 == 0] for n, step in ((96, rows), (256, columns)))
  corners = [mask[:, row + i][:, :, column + j] for i in (0, rows) for j in (0, columns)]
  counts = np.bincount(sum(corner * 2 ** n for n, corner in enumerate(corners)).ravel(), minlength=16)
  drops = np.array([bin(n).count('1') for n in range(16)])
  expected = counts.sum() * RATE ** drops * (1 - RATE) ** (4 - drops)
  assert ((counts - expected) ** 2 / expected).sum() < 50  # of 15 degrees of freedom: one in 80 thousand


def test_examples_layers_steps_and_seeds_are_independent():
  mask = dropped(keys(64))
  assert_uncorrelated(mask[1:], mask[:-1])
  embed_rngs, encoder_rngs = layers.split(keys(64), 2)
  others = [keys(64, step=1), keys(64, seed=1), embed_rngs, *(layers.fold_in(encoder_rngs, layer) for layer in (0, 1))]
  masks = [mask, *(dropped(rngs) for rngs in others)]
  for i, one in enumerate(masks):
    for other in masks[:i]:
      assert_uncorrelated(one, other)


@pytest.mark.parametrize('shape', [(5,), (2, 7, 7)])
def test_a_mask_depends_only_on_the_key_of_its_example(shape):
  rngs, order = keys(6), np.array([4, 0, 5])
  mask = dropped(rngs, 0.5, shape)
  np.testing.assert_array_equal(dropped(rngs[order], 0.5, shape), mask[order])
  np.testing.assert_array_equal(dropped(rngs[3:4], 0.5, shape), mask[3:4])


def test_the_gradient_is_scaled_and_masked_like_the_output():
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, *SHAPE)), jnp.float32)
  y, gradient = jax.vjp(lambda x: layers.dropout(x, RATE, keys(2)), x)
  np.testing.assert_allclose(gradient(jnp.ones_like(x))[0], np.where(dropped(keys(2)), 0, 1 / (1 - RATE)), rtol=1e-6)
  np.testing.assert_allclose(y, np.where(dropped(keys(2)), 0, x / (1 - RATE)), rtol=1e-6)


@pytest.mark.parametrize('rate, rngs', [(0.0, keys(2)), (0.5, None)])
def test_rate_zero_or_no_keys_return_the_input(rate, rngs):
  x = jnp.ones((2, 3, 4))
  assert layers.dropout(x, rate, rngs) is x
