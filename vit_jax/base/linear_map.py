"""Linear maps whose transpose is written by hand: gradients of our own that leave forward-mode differentiation intact.

`jax.custom_vjp` would give the gradient alone: `jax.jvp`, `jax.jacfwd` and `jax.hessian` refuse it. A function with a
`jax.custom_jvp` whose tangent is a `linear_map` has all of them, and reverse mode uses the transpose that we give.
"""
from collections.abc import Callable
import functools
from typing import Any

import jax
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
import numpy as np

ArrayLike = Array | np.ndarray
Residuals = tuple[Any, ...]
Tangents = tuple[ArrayLike | None, ...]
Function = Callable[[Residuals, Tangents], Array]
Transpose = Callable[[Residuals, ArrayLike], Tangents]


def linear_map(function: Function, transpose: Transpose, residuals: Residuals, tangents: tuple[Any, ...]) -> Array:
  """Return `function(residuals, tangents)`, an array; its transpose is `transpose`.

  Args:
    function: (residuals, tangents) → array, linear in the tangents. A tangent of None is zero; at least one is not.
    transpose: (residuals, gradient of the array) → a gradient for each tangent, of its shape and dtype; those of
      tangents that are None may be anything.
    residuals: arrays that both read.
    tangents: arrays, or None or symbolic zeros.
  """
  kept = tuple(t is not None and not isinstance(t, jax.custom_derivatives.SymbolicZero) for t in tangents)
  return _LINEAR_MAP.bind(*residuals, *(t for t, keep in zip(tangents, kept, strict=True) if keep), function=function,
                          transpose=transpose, num_residuals=len(residuals), kept=kept)


def _apply(*operands: ArrayLike, function: Function, transpose: Transpose, num_residuals: int,
           kept: tuple[bool, ...]) -> Array:
  del transpose
  given = iter(operands[num_residuals:])
  return function(operands[:num_residuals], tuple(next(given) if keep else None for keep in kept))


def _transpose(gradient: Any, *operands: Any, function: Function, transpose: Transpose, num_residuals: int,
               kept: tuple[bool, ...]) -> list[Any]:
  """Return a gradient for each operand: None for the residuals."""
  del function
  if isinstance(gradient, ad.Zero):
    return [None] * len(operands)
  gradients = transpose(operands[:num_residuals], gradient)
  found = [gradient for gradient, keep in zip(gradients, kept, strict=True) if keep]
  return [None] * num_residuals + [
      gradient if ad.is_undefined_primal(operand) else None
      for gradient, operand in zip(found, operands[num_residuals:], strict=True)]


def _differentiate(primals: Any, tangents: Any, **params: Any) -> tuple[Array, Array]:
  return jax.jvp(functools.partial(_apply, **params), tuple(primals), tuple(map(ad.instantiate_zeros, tangents)))


def _batch(operands: Any, axes: Any, **params: Any) -> tuple[Array, int]:
  return jax.vmap(functools.partial(_apply, **params), in_axes=tuple(axes))(*operands), 0


def _abstract(*operands: Any, **params: Any) -> Any:
  return jax.make_jaxpr(functools.partial(_apply, **params))(*operands).out_avals[0]


_LINEAR_MAP = Primitive('linear_map')
_LINEAR_MAP.def_impl(_apply)
_LINEAR_MAP.def_abstract_eval(_abstract)
ad.primitive_jvps[_LINEAR_MAP] = _differentiate
ad.primitive_transposes[_LINEAR_MAP] = _transpose
batching.primitive_batchers[_LINEAR_MAP] = _batch
mlir.register_lowering(_LINEAR_MAP, mlir.lower_fun(_apply, multiple_results=False))
