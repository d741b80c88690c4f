"""Which examples are left out of a step, and what the batch is then."""
import numpy as np
import pytest

from vit_jax.training.left_out import leave_out, pick_cause
from vit_jax.training.step import WEIGHT


def make_batch(size=8):
  rng = np.random.default_rng(0)
  return dict(image=rng.integers(0, 256, (size, 2, 2, 1), dtype=np.uint8), label=np.arange(size, dtype=np.int32),
              id=np.arange(size, dtype=np.int32) + 100, rng=rng.integers(0, 2**32, size, dtype=np.uint32))


def test_neighbors_take_the_place_of_examples_and_ids_stay():
  batch = make_batch()
  found = leave_out(batch, [3, 4, 5], 8)
  np.testing.assert_array_equal(found['label'], [0, 1, 2, 2, 0, 0, 6, 7])
  np.testing.assert_array_equal(found['image'][3], batch['image'][2])
  assert not found['image'][4:6].any()  # a pair of two
  np.testing.assert_array_equal(found['id'], batch['id'])
  np.testing.assert_allclose(found[WEIGHT], 8 / 5 * np.array([1, 1, 1, 0, 0, 0, 1, 1]))
  np.testing.assert_array_equal(batch['label'], np.arange(8))  # the batch given stays as it is


@pytest.mark.parametrize('processes', [2, 4])
def test_processes_leave_out_what_one_process_does(processes):
  batch, rows, size = make_batch(), [0, 3, 5], 8 // processes
  whole = leave_out(batch, rows, 8)
  for process in range(processes):
    part = slice(process * size, (process + 1) * size)
    found = leave_out({name: values[part] for name, values in batch.items()}, rows, 8, process * size)
    for name, values in found.items():
      np.testing.assert_array_equal(values, whole[name][part], err_msg=name)


def test_a_batch_without_any_example_has_no_weight():
  assert not leave_out(make_batch(), range(8), 8)[WEIGHT].any()


def test_the_cause_is_the_fewest_examples_without_which_the_loss_is_usual():
  losses = np.array([0.1, 9.0, 0.2, 5.0, 0.1, 0.3, 0.2, 0.1])
  assert pick_cause(losses, 0.5) == [1, 3]
  assert pick_cause(losses, 1.0) == [1]
  assert pick_cause(losses, 2.0) == []


def test_losses_that_are_not_finite_are_a_cause_whatever_is_usual():
  losses = np.array([0.1, np.nan, 9.0, np.inf, 0.1, 0.3, 0.2, 0.1])
  assert pick_cause(losses, np.inf) == [1, 3]
  assert pick_cause(losses, 0.5) == [1, 2, 3]


def test_if_it_takes_more_than_half_the_whole_batch_is_the_cause():
  assert pick_cause(np.array([5.0, 5.0, 5.0, 0.1]), 0.5) == [0, 1, 2, 3]
  assert pick_cause(np.array([5.0, 5.0, 0.1, 0.1]), 0.5) == [0, 1]
