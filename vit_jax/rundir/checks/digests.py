"""Digests of arrays, which find what a disk or a copy has changed: one number per array, however it is sharded.

A digest is the sum modulo 2**32 of every element's bits, each combined with a number made of its place. The order of a
sum does not matter, so devices add up what they hold. A change of one element always changes the digest; other damage
is missed once in 2**32 times.
"""
from collections.abc import Mapping
from concurrent import futures
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.base.text import listing

_GOLDEN = 0x9E3779B9
_WORDS = {1: 'uint8', 2: 'uint16', 4: 'uint32', 8: 'uint32'}
_BLOCK = 1 << 18  # elements that NumPy takes at once, so that temporary arrays stay in the cache

Digests = dict[str, int]


def compute(tree: Any) -> tuple[Digests, list[str]]:
  """Return ({path: digest, 0..2**32 - 1} of all arrays, paths of those with numbers that are not finite).

  Args:
    tree: of NumPy arrays, or of jax arrays on any devices, which then compute; with several processes, on all of them.
  """
  leaves = {jax.tree_util.keystr(path, simple=True, separator='/'): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
  if all(_on_host(leaf) for leaf in leaves.values()):  # nothing to compile
    with futures.ThreadPoolExecutor(os.cpu_count()) as pool:  # NumPy lets other threads run while it computes
      found = dict(zip(leaves, pool.map(lambda leaf: _on_cpu(np.asarray(leaf)), leaves.values()), strict=True))
  else:
    found = jax.device_get(_on_devices(leaves))
  return {path: int(digest) for path, (digest, _) in found.items()}, [path for path, (_, ok) in found.items() if not ok]


def changed(stored: Mapping[str, int], found: Mapping[str, int]) -> str:
  """Return the names of arrays whose digests differ, as text; '' if none does.

  Args:
    stored: digests when the arrays were saved; arrays without one are not compared.
    found: digests of the arrays that were read.
  """
  return listing([path for path, value in found.items() if stored.get(path, value) != value], 5)


def _on_host(leaf: Any) -> bool:
  return not isinstance(leaf, jax.Array) or (
      leaf.is_fully_addressable and all(device.platform == 'cpu' for device in leaf.devices()))


def _on_cpu(x: np.ndarray) -> tuple[int, bool]:
  flat = np.ascontiguousarray(x).reshape(-1)
  words = flat.view(_WORDS[x.dtype.itemsize])
  total = 0
  with np.errstate(over='ignore', invalid='ignore'):
    for start in range(0, len(words), _BLOCK):
      block = words[start:start + _BLOCK].astype(np.uint32)
      place = np.arange(start, start + len(block), dtype=np.uint64).astype(np.uint32)
      total += int(_combine(block, place).sum(dtype=np.uint32))
    finite = not jnp.issubdtype(x.dtype, jnp.inexact) or bool(np.isfinite(flat).all())
  return total % 2**32, finite


@jax.jit
def _on_devices(leaves: dict[str, jax.Array]) -> dict[str, tuple[jax.Array, jax.Array]]:
  found = {}
  for path, x in leaves.items():
    bits = (x if x.dtype == jnp.bool_ else jax.lax.bitcast_convert_type(x, _WORDS[x.dtype.itemsize])).astype(jnp.uint32)
    place = jnp.zeros((), jnp.uint32)
    for axis, length in enumerate(bits.shape):
      place = place * jnp.uint32(length % 2**32) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    finite = jnp.isfinite(x).all() if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.array(True)
    found[path] = _combine(bits, place).sum(dtype=jnp.uint32), finite
  return found


def _combine(bits: Any, place: Any) -> Any:
  """Return what an element adds to its digest, from its bits and its place, both uint32.

  The factor is odd, so that it has an inverse: no change of the bits is lost.
  """
  return (_mix(place) | np.uint32(1)) * (bits ^ _mix(place + np.uint32(_GOLDEN)))


def _mix(x: Any) -> Any:
  """Return a hash of every uint32, by the finalizer of MurmurHash3."""
  x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
  x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
  return x ^ (x >> np.uint32(16))
