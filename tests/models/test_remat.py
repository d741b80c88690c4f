"""Unrolled blocks, micro-batches and rematerialisation: other programs for the same step."""
import functools
import re

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.base.preprocessing import Normalization
from vit_jax.models.config import ViTConfig
from vit_jax.models.vit import VisionTransformer
from vit_jax.objectives.classification import Classification
from vit_jax.training import optim
from vit_jax.training import step as step_lib
from vit_jax.training.state import TrainState


def model(**fields):
  return VisionTransformer(ViTConfig(image_size=8, patch_size=4, width=16, depth=3, heads=2, mlp_dim=32, num_classes=5,
                                     dropout=0.1, **fields), rngs=nnx.Rngs(0))


@functools.cache
def stepped(accumulate=1, freeze=None, **fields):
  """(parameters after a step of SGD, metrics) of a model with random head."""
  graphdef, params = nnx.split(model(**fields), nnx.Param)
  params = nnx.to_pure_dict(params)
  rng = np.random.default_rng(0)
  params['head']['kernel'] = jnp.asarray(rng.normal(size=(16, 5)), jnp.float32)
  optimizer, _ = optim.build(10, name='sgd', peak_lr=0.5, schedule='constant', freeze=freeze,
                             options=dict(momentum=0.0))
  step = step_lib.make_train_step(
      graphdef, Classification(), optimizer, Normalization(), seed=0, accumulate=accumulate, ema_decay=None,
      axis_name=None, by_block=fields.get('unroll', False), frozen=optim.frozen_tree(params, freeze))
  batch = dict(image=rng.integers(0, 256, (8, 8, 8, 3), dtype=np.uint8), label=rng.integers(0, 5, 8).astype(np.int32),
               id=np.arange(8, dtype=np.int32), rng=rng.integers(0, 2**32, 8, dtype=np.uint32))
  state, metrics = jax.jit(step)(TrainState.create(params, optimizer, ema=False), batch)
  return state.params, {name: float(value) for name, value in metrics.compute().items()}


@pytest.mark.parametrize('how', [
    dict(unroll=True), dict(unroll=True, accumulate=4), dict(accumulate=4), dict(remat='dots'),
    dict(remat='full', unroll=True), dict(remat='offload', accumulate=2), dict(remat='offload', unroll=True)], ids=str)
def test_the_step_is_the_same(how):
  expected, ours = stepped(), stepped(**how)
  assert ours[1] == pytest.approx(expected[1], rel=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ours[0], expected[0])


def test_frozen_parameters_stay_in_unrolled_micro_batches():
  params, _ = stepped(unroll=True, accumulate=2, freeze='(?!head/).*')
  before = nnx.to_pure_dict(nnx.state(model(), nnx.Param))
  jax.tree.map(np.testing.assert_array_equal, params['encoder'], before['encoder'])
  assert np.abs(params['head']['bias'] - before['head']['bias']).max() > 1e-3


def test_rematerialisation_keeps_less():
  def kept(remat):
    graphdef, params = nnx.split(model(remat=remat), nnx.Param)
    loss = lambda params: nnx.merge(graphdef, params)(jnp.ones((2, 8, 8, 3))).sum()
    saved = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], params)
    return sum(np.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(saved))

  assert kept('full') < kept('dots') < kept('none')


@pytest.mark.parametrize('remat, unroll, moved', [
    ('full', False, set()), ('offload', True, {(2, 5, 16)}), ('offload', False, {(2, 5, 16), (2, 2, 5, 16)})])
def test_what_waits_in_the_hosts_memory_is_the_blocks_inputs(remat, unroll, moved):
  """Five tokens of each of two images; if scanned, of the two blocks before the last, which outputs one token only."""
  graphdef, params = nnx.split(model(remat=remat, unroll=unroll), nnx.Param)
  loss = lambda params: nnx.merge(graphdef, params)(jnp.ones((2, 8, 8, 3))).sum()
  found = re.findall(r'f32<host>\[([\d,]+)\]', str(jax.make_jaxpr(jax.grad(loss))(params)))
  assert {tuple(map(int, shape.split(','))) for shape in found} == moved


def test_an_unknown_policy_lists_the_choices():
  with pytest.raises(ValueError, match=r"unknown remat 'all'; choose from \['dots', 'full', 'none', 'offload'\]"):
    model(remat='all')


@pytest.mark.parametrize('fields', [
    dict(), dict(dtype='bfloat16'), dict(dtype='bfloat16', attention_dropout=0.1)], ids=str)
def test_cudnn_is_an_early_error_where_it_cannot_be(fields):
  with pytest.raises(ValueError, match="attention='cudnn' needs a GPU"):
    model(attention='cudnn', **fields)
