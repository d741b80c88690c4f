"""Unrolled blocks, micro-batches and rematerialization compute the same step."""
import functools
import re

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from vit_jax.base.durations import Pace
from vit_jax.base.errors import UserError
from vit_jax.base.preprocessing import Normalization
from vit_jax.data.sources.info import DatasetInfo
from vit_jax.models.base import flatten
from vit_jax.models.config import ViTConfig
from vit_jax.models.vit import VisionTransformer
from vit_jax.objectives.base import mean_of
from vit_jax.objectives.classification import Classification, ClassificationConfig
from vit_jax.training import optim
from vit_jax.training import step as step_lib
from vit_jax.training.optim import OptimConfig
from vit_jax.training.state import TrainState


def model(**fields):
  return VisionTransformer(ViTConfig(image_size=8, patch_size=4, width=16, depth=3, heads=2, mlp_dim=32, num_classes=5,
                                     dropout=0.1, **fields), rngs=nnx.Rngs(0))


@functools.cache
def stepped(num_micro_batches=1, freeze=None, **fields):
  """Return (state after a step of SGD with weight decay, metrics) of a model with random head."""
  net = model(**fields)
  graphdef, params = nnx.split(net, nnx.Param)
  params = nnx.to_pure_dict(params)
  rng = np.random.default_rng(0)
  params['head']['kernel'] = jnp.asarray(rng.normal(size=(16, 5)), jnp.float32)
  config = OptimConfig(name='sgd', peak_lr=0.5, schedule='constant', weight_decay=0.01, freeze=freeze,
                       options=dict(momentum=0.0))
  optimizer = optim.build(config, 10, Pace(8, 8), net, params)
  step = step_lib.make_train_step(
      step_lib.StepModel(lambda params: nnx.merge(graphdef, params), net.unstack, net.stack),
      Classification(ClassificationConfig(), tiny.objective_context(
          DatasetInfo(num_examples=8, num_classes=5, channels=3))), optimizer,
      lambda batch, keys: dict(batch, image=Normalization()(batch['image'])),
      step_lib.BatchSplit(num_micro_batches), seed=0, ema_decay=0.9)
  batch = dict(image=rng.integers(0, 256, (8, 8, 8, 3), dtype=np.uint8), label=rng.integers(0, 5, 8).astype(np.int32),
               id=np.arange(8, dtype=np.int32), rng=rng.integers(0, 2**32, 8, dtype=np.uint32))
  state, metrics = jax.jit(step)(TrainState.create(params, optimizer.transform, ema=True), batch)
  return state, {name: mean_of(metric) for name, metric in metrics.items()}


@pytest.mark.slow
@pytest.mark.parametrize('how', [
    dict(unroll=True), dict(unroll=True, num_micro_batches=4), dict(num_micro_batches=4), dict(remat='dots'),
    dict(remat='full', unroll=True), dict(remat='offload', num_micro_batches=2), dict(remat='offload', unroll=True)],
    ids=str)
def test_the_step_is_the_same(how):
  expected, ours = stepped(), stepped(**how)
  assert ours[1] == pytest.approx(expected[1], rel=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ours[0].params, expected[0].params)


def test_frozen_parameters_stay_in_unrolled_micro_batches():
  state, _ = stepped(unroll=True, num_micro_batches=2, freeze='(?!head/).*')
  before = flatten(nnx.to_pure_dict(nnx.state(model(), nnx.Param)))
  after, ema = flatten(state.params), flatten(state.ema)
  assert before.keys() == after.keys() == ema.keys()
  for path in before.keys() - {'head/kernel', 'head/bias'}:
    np.testing.assert_array_equal(after[path], before[path], err_msg=path)
    np.testing.assert_allclose(ema[path], before[path], rtol=1e-6, err_msg=path)
  assert np.abs(after['head/bias'] - before['head/bias']).max() > 1e-3


def test_rematerialization_keeps_less():
  def kept(remat):
    graphdef, params = nnx.split(model(remat=remat), nnx.Param)
    loss = lambda params: nnx.merge(graphdef, params)(jnp.ones((2, 8, 8, 3))).sum()
    saved = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], params)
    return sum(np.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(saved))

  assert kept('full') < kept('dots') < kept('none')


@pytest.mark.parametrize('remat, unroll, moved', [
    ('full', False, set()), ('offload', True, {(2, 5, 16)}), ('offload', False, {(2, 5, 16), (2, 2, 5, 16)})])
def test_offloading_keeps_the_inputs_of_blocks_in_host_memory(remat, unroll, moved):
  """Five tokens of each of two images; if scanned, of the two blocks before the last, which outputs one token only."""
  graphdef, params = nnx.split(model(remat=remat, unroll=unroll), nnx.Param)
  loss = lambda params: nnx.merge(graphdef, params)(jnp.ones((2, 8, 8, 3))).sum()
  found = re.findall(r'f32<host>\[([\d,]+)\]', str(jax.make_jaxpr(jax.grad(loss))(params)))
  assert {tuple(map(int, shape.split(','))) for shape in found} == moved


def test_an_unknown_policy_lists_the_choices():
  with pytest.raises(UserError, match=r"model.remat: unknown 'all'; choose from \['dots', 'full', 'none', 'offload'\]"):
    model(remat='all')


@pytest.mark.parametrize('fields', [
    dict(), dict(dtype='bfloat16'), dict(dtype='bfloat16', attention_dropout=0.1)], ids=str)
def test_cudnn_without_a_gpu_is_an_early_error(fields):
  with pytest.raises(UserError, match="model.attention: 'cudnn' needs a GPU"):
    model(attention='cudnn', **fields)
