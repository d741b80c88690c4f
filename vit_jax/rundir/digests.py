"""Digests of arrays, which find what a disk or a copy has changed: one number per array, however it is sharded."""
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.base.text import listing, more

_SHOWN = 5
_WORD = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}


@jax.jit
def of_arrays(tree: Any) -> tuple[dict[str, jax.Array], jax.Array]:
  """Return ({path: digest, () uint32} of all arrays, whether all their numbers are finite).

  A digest is the sum modulo 2**32 of every element's bits, each combined with a number made of its place. The order of
  a sum does not matter, so devices add up what they hold. A change of one element always changes it; other damage is
  missed once in 2**32 times.
  """
  leaves = {jax.tree_util.keystr(path, simple=True, separator='/'): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
  finite = [jnp.isfinite(leaf).all() for leaf in leaves.values() if jnp.issubdtype(leaf.dtype, jnp.inexact)]
  return {path: _digest(leaf) for path, leaf in leaves.items()}, jnp.stack(finite or [jnp.array(True)]).all()


def compute(tree: Any) -> tuple[dict[str, int], bool]:
  """Return what `of_arrays` does, fetched from the devices."""
  digests, finite = jax.device_get(of_arrays(tree))
  return {path: int(value) for path, value in digests.items()}, bool(finite)


def changed(stored: Mapping[str, int], found: Mapping[str, int]) -> str:
  """Return the names of arrays whose digests differ, as text; '' if none does.

  Args:
    stored: digests when the arrays were saved; arrays without one are not compared.
    found: digests of the arrays that were read.
  """
  names = sorted(path for path, value in found.items() if path in stored and stored[path] != value)
  return listing(names[:_SHOWN]) + more(names, _SHOWN) if names else ''


def _digest(x: jax.Array | np.ndarray) -> jax.Array:
  bits = _bits(jnp.asarray(x))
  place = jnp.zeros((), jnp.uint32)
  for axis, length in enumerate(bits.shape):
    place = place * jnp.uint32(length) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
  return (_mix(place) | 1).__mul__(bits ^ _mix(place + jnp.uint32(0x9E3779B9))).sum(dtype=jnp.uint32)


def _bits(x: jax.Array) -> jax.Array:
  """Return the bits of every element as uint32; those of 8 bytes get an axis of two."""
  if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
    x = jax.random.key_data(x)
  if x.dtype == jnp.bool_:
    return x.astype(jnp.uint32)
  return jax.lax.bitcast_convert_type(x, _WORD[x.dtype.itemsize]).astype(jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
  """Return a hash of every uint32, by the finalizer of MurmurHash3."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
