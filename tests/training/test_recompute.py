"""Which device is wrong, from what devices computed."""
import numpy as np
import pytest

from vit_jax.training.recompute import Recomputation

NAMES = ['a', 'b', 'c', 'd']
PLACES = [1, 2, 3, 0]
BITS = np.array([10, 11, 12, 13])


def run(bits, devices, wrong):
  """Return what the devices compute of the shards that they hold; copy 1 is that of other devices."""
  found = [bits[shard] + wrong.get(device, 0) for device, shard in enumerate(devices)]
  return dict(shards=np.array([bits[devices], found]), whole=np.zeros(2))


def disagreeing(first, again, moved):
  """Return the devices; arguments are {number of a device: what it adds}, at the three times."""
  at_home, next_door = [0, 1, 2, 3], [3, 0, 1, 2]
  return Recomputation(run(BITS, at_home, first), run(BITS, at_home, again), run(BITS, next_door, moved), NAMES,
                       PLACES).disagreeing()


def test_devices_that_agree():
  assert disagreeing({}, {}, {}) == []


@pytest.mark.parametrize('device', range(4))
def test_a_device_that_fails_once_is_named(device):
  assert disagreeing({device: 1}, {}, {}) == disagreeing({}, {device: 1}, {device: 1}) == [NAMES[device]]


@pytest.mark.parametrize('device', range(4))
def test_a_device_that_is_always_wrong_is_the_one_in_most_disagreements(device):
  assert disagreeing({device: 1}, {device: 1}, {device: 1}) == [NAMES[device]]


def test_a_failure_at_the_third_time_is_of_one_of_two():
  assert disagreeing({}, {}, {2: 1}) == ['b', 'c']


def test_a_gradient_of_all_devices_names_none():
  found = run(BITS, [0, 1, 2, 3], {})
  again = dict(found, whole=np.array([0, 1]))
  assert Recomputation(found, again, run(BITS, [3, 0, 1, 2], {}), NAMES, PLACES).disagreeing() == ['one of a, b, c, d']
