"""The product in every dense layer against float64: what is rounded, and how often."""
import functools
import re

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models import layers
from vit_jax.models.config import ViTConfig
from vit_jax.models.vit import VisionTransformer

PLAIN = functools.partial(layers.affine, 'bnd,df->bnf')


def case(batch, tokens, dtype):
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  return draw(batch, tokens, 24).astype(dtype), draw(24, 40), draw(40), draw(batch, tokens, 40).astype(dtype)


def exact(x, kernel, bias, gradient):
  """Return the output and the three gradients in float64, for a kernel rounded to x's type."""
  kernel = np.asarray(kernel.astype(x.dtype), np.float64)
  x, bias, gradient = (np.asarray(a, np.float64) for a in (x, bias, gradient))
  return (x @ kernel + bias, gradient @ kernel.T, np.einsum('bnd,bnf->df', x, gradient), gradient.sum((0, 1)))


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
@pytest.mark.parametrize('batch, tokens', [(1, 1), (1, 9), (3, 1), (3, 9)])
def test_sums_are_in_float32_and_rounded_once(batch, tokens, dtype):
  *inputs, gradient = case(batch, tokens, dtype)
  output, pull = jax.jit(lambda *inputs: jax.vjp(PLAIN, *inputs))(*inputs)
  ours = [output, *jax.jit(lambda pull, gradient: pull(gradient))(pull, gradient)]
  assert [a.dtype for a in ours] == [dtype, dtype, 'float32', 'float32']
  for a, expected in zip(ours, exact(*inputs, gradient), strict=True):
    # Half a step of the type, and what float32 sums of some dozens of terms err by.
    np.testing.assert_allclose(np.asarray(a, np.float64), expected, rtol=jnp.finfo(a.dtype).eps / 2 + 1e-6, atol=2e-5)


def test_on_gpus_the_rounding_is_left_to_the_product(monkeypatch):
  monkeypatch.setattr(layers, 'on_gpu', lambda: True)
  *inputs, gradient = case(3, 9, 'bfloat16')
  output, pull = jax.vjp(PLAIN, *inputs)
  for a, expected in zip([output, *pull(gradient)], exact(*inputs, gradient), strict=True):
    # The output is the sum of two rounded numbers, itself rounded.
    np.testing.assert_allclose(np.asarray(a, np.float64), expected, rtol=2 * jnp.finfo(a.dtype).eps + 1e-6, atol=0.02)
  text = jax.jit(lambda *inputs: jax.vjp(PLAIN, *inputs)[1](gradient)).lower(*inputs).as_text()
  products = re.findall(r'stablehlo.dot_general.* -> tensor<[\dx]+x(\w+)>', text)
  assert sorted(products) == ['bf16', 'f32']  # of the activations, of the kernel


def test_no_bias_has_no_gradient():
  x, kernel, _, gradient = case(2, 3, 'bfloat16')
  output, pull = jax.vjp(PLAIN, x, kernel, None)
  np.testing.assert_array_equal(output, PLAIN(x, kernel, jnp.zeros(40)))
  assert pull(gradient)[2] is None


def test_a_frozen_kernel_costs_no_product():
  x, kernel, bias, _ = case(2, 3, 'bfloat16')

  def products(freeze):
    keep = jax.lax.stop_gradient if freeze else lambda a: a
    loss = lambda x, kernel: PLAIN(x, keep(kernel), bias).astype(jnp.float32).sum()
    return jax.jit(jax.grad(loss, argnums=(0, 1))).lower(x, kernel).compile().cost_analysis()['flops']

  assert products(True) < 0.7 * products(False)


@pytest.mark.parametrize('product, shapes, bias', [
    ('bnd,dhk->bhnk', ((2, 5, 6), (6, 3, 4)), (3, 1, 4)),
    ('bhnk,hkd->bnd', ((2, 3, 5, 4), (3, 4, 6)), (6,)),
    ('bhqd,dhk->bhqk', ((2, 3, 1, 6), (6, 3, 4)), (3, 1, 4)),
])
def test_the_gradients_equal_those_of_einsum(product, shapes, bias):
  rng = np.random.default_rng(0)
  inputs = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in (*shapes, bias)]
  plain = lambda x, kernel, bias: (jnp.einsum(product, x, kernel) + bias)
  loss = lambda layer: lambda *inputs: jnp.sin(layer(*inputs)).sum()
  for a, expected in zip(jax.grad(loss(functools.partial(layers.affine, product)), (0, 1, 2))(*inputs),
                         jax.grad(loss(plain), (0, 1, 2))(*inputs), strict=True):
    np.testing.assert_allclose(a, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('pool, unroll', [('token', True), ('gap', False), ('map', True)])
@pytest.mark.parametrize('width, heads', [(64, 1), (48, 2), (160, 2), (128, 2)])
def test_a_bfloat16_model_compiles_for_this_backend(width, heads, pool, unroll):
  # Some products of bfloat16 with a float32 result have no kernel on XLA's CPU backend (jax 0.10.2).
  config = ViTConfig(num_classes=3, width=width, heads=heads, depth=2, mlp_dim=96, patch_size=8, image_size=(16, 24),
                     pool=pool, unroll=unroll, dtype='bfloat16')
  net = VisionTransformer(config, rngs=nnx.Rngs(0))
  graphdef, params = nnx.split(net, nnx.Param)
  images = jnp.ones((2, 16, 24, 3))
  loss = lambda params: (nnx.merge(graphdef, params)(images) ** 2).sum()
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(params)))
