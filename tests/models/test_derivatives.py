"""Derivatives of every kind, and copies, of loaded models; the gradient written by hand is that of forward mode."""
import copy
import pickle

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from tests import golden_files
from vit_jax.models import attention, layers
from vit_jax.pretrained import load

NAMES = ['vit_token', 'bv_map', 'mixer']
DTYPES = ['float32', 'bfloat16']
# Of derivatives against differences or other derivatives; bfloat16 has three digits.
TOLERANCE = {'float32': dict(rtol=2e-3, atol=2e-4), 'bfloat16': dict(rtol=0.1, atol=0.1)}


def loaded(name, dtype='float32'):
  """Return (model, its outputs as a function of two numbers that images are linear in)."""
  model = load.load(golden_files.MODELS[name], dtype=dtype)
  one, other = golden_files.vectors(name)[0][:, None]
  return model, lambda t: model(jnp.asarray(one) * t[0] + jnp.asarray(other) * t[1])[0]


@pytest.mark.slow
@pytest.mark.parametrize('name, dtype', [*((name, 'float32') for name in NAMES), ('bv_map', 'bfloat16')])
def test_forward_mode_equals_reverse_mode(name, dtype):
  _, function = loaded(name, dtype)
  at, direction = jnp.array([1.0, -0.5]), jnp.array([0.3, 0.7])
  forward = jax.jit(jax.jacfwd(function))(at)
  np.testing.assert_allclose(forward, jax.jit(jax.jacrev(function))(at), **TOLERANCE[dtype])
  tangent = jax.jit(lambda at, direction: jax.jvp(function, (at,), (direction,))[1])(at, direction)
  np.testing.assert_allclose(tangent, forward @ direction, **TOLERANCE[dtype])
  if dtype == 'float32':
    step = 1e-2 * direction
    np.testing.assert_allclose(tangent, (function(at + step) - function(at - step)) / 2e-2, rtol=0.02, atol=2e-3)


def test_second_derivatives():
  _, function = loaded('vit_token')
  scalar, at = jax.jit(lambda t: function(t)[1]), jnp.array([1.0, -0.5])
  hessian = jax.jit(jax.hessian(scalar))(at)
  np.testing.assert_allclose(hessian, hessian.T, rtol=2e-3, atol=2e-4)
  np.testing.assert_allclose(hessian, jax.jit(jax.jacrev(jax.jacrev(scalar)))(at), rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize('of', [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=['deepcopy', 'pickle'])
@pytest.mark.parametrize('name', ['vit_token', 'mixer'])
def test_copies_are_whole_and_separate(name, of):
  model, _ = loaded(name)
  model.class_names = tuple(map(str, range(model.num_classes)))
  images = golden_files.vectors(name)[0]
  expected, other = model(images), of(model)
  assert type(other) is type(model) and other.config == model.config
  assert other.class_names == model.class_names and other.preprocessing == model.preprocessing
  np.testing.assert_array_equal(other(images), expected)
  other.head.bias[...] += 1.0
  np.testing.assert_array_equal(model(images), expected)


@pytest.mark.parametrize('dtype', DTYPES)
def test_a_copy_keeps_its_dtype(dtype):
  model, _ = loaded('vit_token', dtype)
  other = pickle.loads(pickle.dumps(model))
  assert other.config.dtype == dtype
  np.testing.assert_array_equal(other(golden_files.vectors('vit_token')[0]), model(golden_files.vectors('vit_token')[0]))


def draw(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize('bias', [None, (4,)])
def test_first_and_second_derivatives_of_affine(bias):
  # NumPy arrays are what the differences are taken of.
  function = lambda *x: jnp.sin(layers.affine('bnd,df->bnf', *map(jnp.asarray, x), *([None] if bias is None else [])))
  arguments = (draw(2, 3, 5), draw(5, 4, seed=1), *([] if bias is None else [draw(*bias, seed=2)]))
  jax.test_util.check_grads(function, arguments, order=2, modes=('fwd', 'rev'), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize('bias', [None, (1, 2, 3, 3), (2, 2, 3, 3)])
def test_first_and_second_derivatives_of_attend(bias):
  arguments = [draw(2, 2, 3, 4, seed=seed) for seed in range(3)] + ([] if bias is None else [draw(*bias, seed=3)])
  jax.test_util.check_grads(attention.attend, arguments, order=2, modes=('fwd', 'rev'), rtol=2e-2, atol=2e-2)


def test_what_is_constant_takes_no_part():
  """Of any subset of the arguments, mapped over, inside and outside of a scan."""
  x, kernels, bias = draw(2, 3, 4), draw(5, 4, 4, seed=1), draw(4, seed=2)
  step = lambda layer: lambda x, kernel: (jnp.tanh(layer(x, kernel)), None)
  ours = step(lambda x, kernel: layers.affine('bnd,df->bnf', x, kernel, bias))
  plain = step(lambda x, kernel: x @ kernel + bias)
  loss = lambda step: lambda x, kernels: (jax.lax.scan(step, x, kernels)[0] ** 2).sum()
  for argnums in (0, 1, (0, 1)):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
                 jax.jacfwd(jax.grad(loss(ours), argnums), argnums)(x, kernels),
                 jax.jacfwd(jax.grad(loss(plain), argnums), argnums)(x, kernels))
  many = draw(3, 2, 3, 4, seed=4)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
               jax.grad(lambda k: jax.vmap(loss(ours), (0, None))(many, k).sum())(kernels),
               jax.grad(lambda k: jax.vmap(loss(plain), (0, None))(many, k).sum())(kernels))
