"""Digests find every flipped bit. That sharding does not matter is tested by the restores of test_mesh.py."""
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from vit_jax.rundir.checks import digests

MASK = 0xFFFFFFFF


def mix(x):
  """Return the finalizer of MurmurHash3 of a Python integer."""
  x = (x ^ (x >> 16)) * 0x85EBCA6B & MASK
  x = (x ^ (x >> 13)) * 0xC2B2AE35 & MASK
  return x ^ (x >> 16)


def slow_digest(x):
  """Return the digest of an array of 1, 2 or 4 bytes per element, one element after the other."""
  words = np.ascontiguousarray(x).reshape(-1).view(f'u{x.dtype.itemsize}').tolist()
  return sum((mix(place) | 1) * (word ^ mix(place + 0x9E3779B9 & MASK)) for place, word in enumerate(words)) & MASK


def arrays():
  """Return an array of every type that a state holds."""
  rng = np.random.default_rng(0)
  return dict(kernel=rng.normal(size=(3, 4, 5)).astype(np.float32), moment=rng.normal(size=(7,)).astype(ml_dtypes.bfloat16),
              step=np.int32(-3), seen=np.uint32(2**32 - 1), half=rng.normal(size=(2, 2)).astype(np.float16),
              flags=np.array([True, False]), bytes=np.arange(5, dtype=np.int8), nothing=np.zeros((0, 3), np.float32))


def on_devices(tree):
  """Return what `compute` does, computed by jax."""
  found = jax.device_get(digests._on_devices(tree))
  return {path: int(digest) for path, (digest, _) in found.items()}, [path for path, (_, ok) in found.items() if not ok]


@pytest.mark.parametrize('compute', [digests.compute, on_devices])
def test_equals_a_slow_version(compute):
  assert compute(arrays()) == ({name: slow_digest(x) for name, x in arrays().items()}, [])


def test_blocks_change_nothing(monkeypatch):
  whole = digests.compute(arrays())
  monkeypatch.setattr(digests, '_BLOCK', 7)
  assert digests.compute(arrays()) == whole


@pytest.mark.parametrize('name', ['kernel', 'moment', 'step', 'bytes'])
def test_every_single_flipped_bit_is_found(name):
  x = np.atleast_1d(arrays()[name])
  whole, words = slow_digest(x), x.reshape(-1).view(f'u{x.dtype.itemsize}')
  compute = lambda x: digests.compute([x])[0]['0']
  for place in range(len(words)):
    for bit in range(8 * x.dtype.itemsize):
      words[place] ^= words.dtype.type(1 << bit)
      assert compute(x) != whole
      words[place] ^= words.dtype.type(1 << bit)
  assert compute(x) == whole


def test_exchanged_elements_are_found():
  x = arrays()['kernel']
  assert digests.compute([x])[0] != digests.compute([x.swapaxes(0, 1)])[0] != digests.compute([x.reshape(-1)[::-1]])[0]


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_found(bad):
  x = np.zeros((4,), jnp.bfloat16)
  assert digests.compute({'x': x, 'n': np.int32(1)})[1] == []
  x[2] = bad
  for compute in (digests.compute, on_devices):
    assert compute({'x': x, 'n': np.int32(1)})[1] == ['x']


def test_changed_arrays_are_named():
  stored, found = digests.compute(arrays())[0], digests.compute(dict(arrays(), step=np.int32(4), new=np.int32(1)))[0]
  assert digests.changed(stored, found) == 'step'
  assert digests.changed(stored, stored) == ''
