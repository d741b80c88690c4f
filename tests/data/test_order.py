"""The order: permutations, random bits, and the split over processes, from a batch's number alone."""
import numpy as np
import pytest

from vit_jax.data.loading import order as orders
from vit_jax.data.loading.order import EvalOrder, TrainOrder, example_keys, seed_key


def at(positions, count, seed):
  """Return the examples at positions of the shuffled stream, and their epochs."""
  return orders.shuffled(positions, count, seed_key(seed, orders.SHUFFLE))


def test_splitmix64():
  """The first numbers of the generator with seed 1234567, as published with its reference code (Vigna, splitmix64.c)."""
  seeds = np.array([1234567 + step * 0x9E3779B97F4A7C15 & (1 << 64) - 1 for step in range(3)], np.uint64)
  assert orders.splitmix64(seeds).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize('count', [1, 2, 3, 12, 1000])
def test_epochs_are_permutations(count):
  examples, epochs = at(np.arange(4 * count), count, seed=3)
  for epoch in range(4):
    assert (epochs[epoch * count:][:count] == epoch).all()
    np.testing.assert_array_equal(np.sort(examples[epoch * count:][:count]), np.arange(count))


def test_positions_may_come_in_any_order():
  positions = np.random.default_rng(0).permutation(200)
  for in_order, permuted in zip(at(np.arange(200), 50, seed=1), at(positions, 50, seed=1), strict=True):
    np.testing.assert_array_equal(in_order[positions], permuted)


def test_all_permutations_are_equally_likely():
  """Of three examples over 1,200 epochs and two seeds: chi-squared with 5 degrees of freedom, 20.5 at one in a thousand."""
  for seed in (0, 1):
    permutations = at(np.arange(3600), 3, seed)[0].reshape(1200, 3)
    _, counts = np.unique(permutations @ [9, 3, 1], return_counts=True)
    assert len(counts) == 6 and ((counts - 200) ** 2 / 200).sum() < 20.5


def test_epochs_and_seeds_are_uncorrelated():
  one, other = (at(np.arange(6000), 2000, seed)[0].reshape(3, 2000) for seed in (0, 1))
  rows = [*one, *other, np.arange(2000)]
  for index, row in enumerate(rows):
    for second in rows[:index]:
      assert abs(np.corrcoef(row, second)[0, 1]) < 0.1 and (row == second).sum() < 10


def test_keys_differ_by_example_epoch_copy_and_seed():
  grid = [axis.ravel() for axis in np.meshgrid(np.arange(1000), np.arange(5), np.arange(3), indexing='ij')]
  keys = example_keys(*grid, seed_key(7, orders.AUGMENT))
  assert keys.dtype == np.uint64 and len(np.unique(keys)) == 15000
  bits = keys[:, None] >> np.arange(64, dtype=np.uint64) & np.uint64(1)
  assert abs(bits.mean(axis=0) - 0.5).max() < 0.02
  np.testing.assert_array_equal(example_keys(*(axis[::-1] for axis in grid), seed_key(7, orders.AUGMENT)), keys[::-1])
  assert not np.isin(example_keys(*grid, seed_key(8, orders.AUGMENT)), keys).any()


def test_evaluation_goes_through_the_split_in_stored_order():
  shards = [EvalOrder(7, batch_size=4, process_index=process, process_count=2) for process in (0, 1)]
  assert [order.num_batches for order in shards] == [2, 2] and [order.local_batch_size for order in shards] == [2, 2]
  ids = [[order(number)[0].tolist() for number in range(2)] for order in shards]
  assert ids == [[[0, 1], [4, 5]], [[2, 3], [6]]]
  keys = np.concatenate([shards[0](0)[1], shards[1](0)[1], shards[0](1)[1], shards[1](1)[1]])
  zeros = np.zeros(7, np.int64)
  np.testing.assert_array_equal(keys, example_keys(np.arange(7), zeros, zeros, seed_key(0, orders.AUGMENT)))


def test_a_process_may_have_no_example_of_the_last_batch():
  ids, keys = EvalOrder(5, batch_size=4, process_index=1, process_count=2)(1)
  assert len(ids) == len(keys) == 0


def test_the_middle_of_a_long_epoch():
  """Three hundred million examples, as many as JFT has: positions far into the epoch, also on their own."""
  count, far = 303_000_000, 303_000_000 - 50_000
  examples, epochs = at(np.arange(far, far + 100_000), count, seed=2)
  assert (epochs == np.repeat([0, 1], 50_000)).all()
  assert len(np.unique(examples[:50_000])) == len(np.unique(examples[50_000:])) == 50_000
  assert examples.min() >= 0 and examples.max() < 303_000_000
  # Uniform: each tenth of the data gets a tenth of these, to 5 standard deviations.
  assert abs(np.histogram(examples, 10, (0, 303_000_000))[0] - 10_000).max() < 5 * 95
  np.testing.assert_array_equal(at(np.arange(far + 777, far + 780), count, seed=2)[0], examples[777:780])


def test_a_train_batch_holds_positions_of_the_stream():
  order = TrainOrder(10, batch_size=6, seed=5, repeats=2)
  ids, keys = order(7)
  expected, epochs = at(np.arange(21, 24), 10, seed=5)
  np.testing.assert_array_equal(ids, np.tile(expected, 2))
  copies = np.repeat([0, 1], 3)
  np.testing.assert_array_equal(keys, example_keys(ids, np.tile(epochs, 2), copies, seed_key(5, orders.AUGMENT)))
