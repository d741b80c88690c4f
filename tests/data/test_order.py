import numpy as np
import pytest

from vit_jax.data.loading.order import mix, Order


def test_mix_is_splitmix64():
  """The first numbers of the generator with seed 1234567, as published with its reference code (Vigna, splitmix64.c)."""
  seeds = np.array([1234567 + step * 0x9E3779B97F4A7C15 & (1 << 64) - 1 for step in range(3)], np.uint64)
  assert mix(seeds).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize('count', [1, 2, 3, 12, 1000])
def test_epochs_are_permutations(count):
  examples, epochs = Order(count, seed=3)(np.arange(4 * count))
  for epoch in range(4):
    assert (epochs[epoch * count:][:count] == epoch).all()
    np.testing.assert_array_equal(np.sort(examples[epoch * count:][:count]), np.arange(count))


def test_positions_may_come_in_any_order():
  order, positions = Order(50, seed=1), np.random.default_rng(0).permutation(200)
  examples, epochs = order(np.arange(200))
  for all_at_once, one_by_one in zip((examples, epochs), order(positions)):
    np.testing.assert_array_equal(all_at_once[positions], one_by_one)


def test_all_permutations_are_alike():
  """Of three examples over 1,200 epochs and two seeds: chi-squared with 5 degrees of freedom, 20.5 at one in a thousand."""
  for seed in (0, 1):
    orders = Order(3, seed)(np.arange(3600))[0].reshape(1200, 3)
    _, counts = np.unique(orders @ [9, 3, 1], return_counts=True)
    assert len(counts) == 6 and ((counts - 200) ** 2 / 200).sum() < 20.5


def test_epochs_and_seeds_are_unlike():
  one, other = (Order(2000, seed)(np.arange(6000))[0].reshape(3, 2000) for seed in (0, 1))
  rows = [*one, *other, np.arange(2000)]
  for index, row in enumerate(rows):
    for second in rows[:index]:
      assert abs(np.corrcoef(row, second)[0, 1]) < 0.1 and (row == second).sum() < 10


def test_keys_belong_to_example_epoch_and_copy():
  order = Order(1000, seed=7)
  grid = [axis.ravel() for axis in np.meshgrid(np.arange(1000), np.arange(5), np.arange(3), indexing='ij')]
  keys = order.keys(*grid)
  assert keys.dtype == np.uint64 and len(np.unique(keys)) == 15000
  bits = keys[:, None] >> np.arange(64, dtype=np.uint64) & np.uint64(1)
  assert abs(bits.mean(axis=0) - 0.5).max() < 0.02
  np.testing.assert_array_equal(order.keys(*(axis[::-1] for axis in grid)), keys[::-1])
  assert not np.isin(Order(1000, seed=8).keys(*grid), keys).any()


def test_without_shuffling_the_order_is_as_stored():
  examples, epochs = Order(3, seed=0, shuffled=False)(np.arange(7))
  assert examples.tolist() == [0, 1, 2, 0, 1, 2, 0] and epochs.tolist() == [0, 0, 0, 1, 1, 1, 2]


def test_the_middle_of_a_long_epoch():
  """Three hundred million examples, as many as JFT has: places far in, and the same ones asked for by themselves."""
  order, far = Order(303_000_000, seed=2), 303_000_000 - 50_000
  examples, epochs = order(np.arange(far, far + 100_000))
  assert (epochs == np.repeat([0, 1], 50_000)).all()
  assert len(np.unique(examples[:50_000])) == len(np.unique(examples[50_000:])) == 50_000
  assert examples.min() >= 0 and examples.max() < 303_000_000
  # Uniform: each tenth of the data gets a tenth of these, to 5 standard deviations.
  assert abs(np.histogram(examples, 10, (0, 303_000_000))[0] - 10_000).max() < 5 * 95
  np.testing.assert_array_equal(order(np.arange(far + 777, far + 780))[0], examples[777:780])
