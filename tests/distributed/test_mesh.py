"""The mesh trains like one device, each device holds only its shards, and its checkpoints fit every mesh."""
import json
import os
import subprocess
import sys
import types

from flax import nnx
import jax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec
import numpy as np
import pytest

from tests import eight_devices, tiny
import vit_jax
from vit_jax import train
from vit_jax.base.durations import Pace
from vit_jax.base.errors import UserError
from vit_jax.distributed import sharding, strategy
from vit_jax.distributed.strategy import ParallelConfig
from vit_jax.models.base import path_of
from vit_jax.models.config import ViTConfig
from vit_jax.models.vit import VisionTransformer
from vit_jax.run import evaluation
from vit_jax.run.build import build
from vit_jax.training import optim
from vit_jax.training.optim import OptimConfig
from vit_jax.training.optimizers import OPTIMIZERS


@pytest.fixture(scope='module')
def one(data_dir, tmp_path_factory):
  """Return (config, workdir) of a run on one device."""
  config, workdir = eight_devices.config(data_dir), tmp_path_factory.mktemp('one') / 'run'
  train.run(config, workdir)
  return config, workdir


@pytest.fixture(scope='module')
def eight(data_dir, one, tmp_path_factory):
  """Return the folder with the runs and the results of eight devices."""
  folder = tmp_path_factory.mktemp('eight')
  env = dict(os.environ, JAX_PLATFORMS='cpu', XLA_FLAGS='--xla_force_host_platform_device_count=8')
  process = subprocess.run([sys.executable, '-m', 'tests.eight_devices', data_dir, folder, one[1]], cwd=tiny.ROOT, env=env,
                           text=True, capture_output=True)
  assert process.returncode == 0, process.stderr
  return folder


@pytest.fixture(scope='module')
def results(eight):
  return json.loads((eight / 'results.json').read_text())


@pytest.mark.parametrize('name', eight_devices.MESHES)
def test_a_mesh_trains_like_one_device(name, one, eight):
  """Dropout, augmentation, EMA, evaluation and micro-batches are equal except for float32 rounding of sums."""
  config, workdir = one
  for names in (('train/loss', 'train/grad_norm'), ('test/loss', 'test_ema/loss'), ('test/accuracy',)):
    np.testing.assert_allclose(tiny.metrics(eight / name, names), tiny.metrics(workdir, names), rtol=2e-5)
  sharded, single = (eight_devices.restored(build(config), run, 6) for run in (eight / name, workdir))
  assert sharded.seen == single.seen
  for params in (sharded.params, single.params):
    # Softmax cancels the key bias: its true gradient is zero, and Adam turns the remaining rounding errors into steps.
    del params['encoder']['blocks']['attention']['key']['bias']
  for x, y in zip(jax.tree.leaves(sharded.params), jax.tree.leaves(single.params), strict=True):
    np.testing.assert_allclose(x, y, atol=1e-4)


def test_checkpoints_restore_on_every_mesh_bit_for_bit(results):
  assert len(results['same_bits']) == 9 and all(results['same_bits'].values()), results['same_bits']


def test_a_save_is_not_changed_by_the_next_step_that_donates_the_state(results):
  assert results['donated'] == dict(fsdp=True, all=True, one=True)


def test_a_mesh_starts_from_pretrained_weights(results):
  assert results['init'] == dict(equal=True, same_shardings=True)


def test_a_run_on_a_mesh_loads_on_one_device(eight, data_dir):
  parts = build(eight_devices.config(data_dir))
  params = eight_devices.restored(parts, eight / 'fsdp', 6).params
  loaded = vit_jax.load(str(eight / 'fsdp'))
  np.testing.assert_array_equal(loaded.head.kernel[...], params['head']['kernel'])


def test_evaluation_on_fewer_devices_gives_the_same_metrics(eight, results):
  step, on_eight, recorded = results['evaluated']
  assert on_eight and step == 6 and on_eight == {name: recorded[name] for name in on_eight}
  _, on_one, _ = evaluation.evaluate(eight / 'fsdp')
  assert on_one == pytest.approx(on_eight, rel=2e-5)


# Memory and communication of a device.


def test_the_state_is_sharded_and_its_buffers_are_donated(results):
  compiled = results['compiled']
  assert compiled['local'] < 0.16 * compiled['whole']  # an eighth, and replicated vectors
  batch = 8 * (8 * 8 + 3 * 4)
  assert compiled['local'] <= compiled['arguments'] <= 1.02 * (compiled['local'] + batch)
  assert compiled['aliased'] >= 0.98 * compiled['local']


def test_weights_are_gathered_and_gradients_reduced_block_by_block(results):
  """The largest array in a collective is one block's matrix, never tokens or whole stacks.

  They run in the iterations of two loops, and outside of them for the last block, which computes only what the pooling
  reads.
  """
  found, matrix = results['compiled']['collectives'], 64 * 256
  assert max(size for *_, size in found) == matrix
  loops = lambda *kinds: {computation for kind, computation, size in found
                          if size == matrix and kind in kinds and not computation.startswith('main')}
  gathered, reduced = loops('all-gather'), loops('all-reduce', 'reduce-scatter')
  assert len(gathered) == 2 and len(reduced) == 1 and reduced < gathered  # forward and backward; backward


@pytest.mark.parametrize('variant, fsdp, tensor', [('B/16', 8, 1), ('L/16', 8, 1), ('H/14', 4, 2), ('H/14', 16, 16)])
def test_large_models_are_divisible(variant, fsdp, tensor):
  mesh, params, model = abstract_mesh(fsdp=fsdp, tensor=tensor), *abstract_params(variant=variant)
  sharding.check_divides(mesh, params, model)
  shardings = jax.tree.leaves(sharding.shardings(mesh, params, params, model))
  local = sum(np.prod(s.shard_shape(x.shape)) for s, x in zip(shardings, jax.tree.leaves(params), strict=True))
  whole = sum(x.size for x in jax.tree.leaves(params))
  assert local < whole / (fsdp * tensor) + 0.01 * whole


# Which parameter is sharded how.


def abstract_mesh(data=1, fsdp=1, tensor=1):
  return AbstractMesh((data, fsdp, tensor), ('data', 'fsdp', 'tensor'), (AxisType.Auto,) * 3)


def abstract_params(**fields):
  """Return (shapes of the parameters, model)."""
  model = nnx.eval_shape(lambda: VisionTransformer(ViTConfig(**fields), rngs=nnx.Rngs(0)))
  return nnx.to_pure_dict(nnx.state(model, nnx.Param)), model


TINY = dict(image_size=8, width=16, depth=4, heads=2, mlp_dim=32, patch_size=4, num_classes=10)


def test_partition_specs_of_parameters():
  params, model = abstract_params(**TINY, pool='map')
  specs = {path_of(path): target.spec for path, target in jax.tree_util.tree_leaves_with_path(
      sharding.shardings(abstract_mesh(2, 2, 2), params, params, model))}
  blocks = {name.removeprefix('encoder/blocks/'): spec for name, spec in specs.items() if name.startswith('encoder')}
  assert blocks['attention/query/kernel'] == PartitionSpec(None, 'fsdp', 'tensor', None)
  assert blocks['attention/value/bias'] == PartitionSpec(None, 'tensor', None)
  assert blocks['attention/out/kernel'] == PartitionSpec(None, 'tensor', None, 'fsdp')
  assert blocks['mlp/up/kernel'] == PartitionSpec(None, 'fsdp', 'tensor')
  assert blocks['mlp/up/bias'] == PartitionSpec(None, 'tensor')
  assert blocks['mlp/down/kernel'] == PartitionSpec(None, 'tensor', 'fsdp')
  assert not any(blocks['mlp/down/bias']) and not any(blocks['attention_norm/scale'])
  assert specs['pool/attention/key/kernel'] == PartitionSpec('fsdp', 'tensor', None)
  assert specs['head/kernel'] == PartitionSpec('fsdp', None)


# Moments of each optimizer that have their parameter's shape; Adafactor factors only larger matrices.
MOMENTS = dict(adafactor=1, adam=2, adamw=2, lamb=2, lion=1, muon=1, sgd=1)


@pytest.mark.parametrize('name, moments', MOMENTS.items())
def test_moments_are_sharded_like_their_parameter(name, moments):
  """In every optimizer's state, leaves with a parameter's name and shape; all others are replicated."""
  params, model = abstract_params(**TINY)
  optimizer = optim.build(OptimConfig(name=name), 10, Pace(1, 1), model, params)
  state = jax.eval_shape(optimizer.transform.init, params)
  shardings = jax.tree.leaves(sharding.shardings(abstract_mesh(2, 2, 2), state, params, model))
  shapes = {leaf.shape for leaf in jax.tree.leaves(params)}
  found = 0
  for (path, leaf), target in zip(jax.tree_util.tree_leaves_with_path(state), shardings, strict=True):
    if path_of(path).endswith('mlp/up/kernel') and leaf.shape == (4, 16, 32):
      assert target.spec == PartitionSpec(None, 'fsdp', 'tensor')
      found += 1
    assert leaf.shape in shapes or not any(target.spec)
  assert found == moments


def test_every_optimizer_has_its_number_of_moments():
  assert set(MOMENTS) == set(OPTIMIZERS)


@pytest.mark.parametrize('fields, mesh, message', [
    (dict(heads=4), dict(tensor=8), 'parallel.tensor: must divide heads=4 of encoder/blocks/attention/.* got 8'),
    (dict(mlp_dim=33), dict(tensor=2), r'parallel.tensor: must divide mlp_dim=33 .* got 2. .*choose from \[1\]'),
    (dict(width=18), dict(fsdp=4), r'parallel.fsdp: must divide width=18 .* got 4. With 4 devices choose from \[1, 2\]'),
])
def test_indivisible_dimensions_are_errors_that_name_the_parameter(fields, mesh, message):
  with pytest.raises(UserError, match=message):
    sharding.check_divides(abstract_mesh(**mesh), *abstract_params(**{**TINY, **fields}))


# Config.


@pytest.mark.parametrize('section, message', [
    (dict(strategy='mesh', data=3), r'number of devices, 1; got data=3 × fsdp=1 × tensor=1. Choose from 1×1×1'),
    (dict(strategy='mesh', fsdp=2), 'number of devices, 1; got fsdp=2 × tensor=1'),
    (dict(strategy='mesh', fsdp=-1), 'at most one of them -1; got'),
    (dict(strategy='mesh', tensor=0), "must be at least 1, .* got .*'tensor': 0"),
    (dict(strategy='pmap', fsdp=8), r"need --config.parallel.strategy=mesh; got .*fsdp=8, .* with 'pmap'"),
    (dict(strategy='magic'), "strategy: unknown 'magic'; choose from .*mesh.*pmap"),
])
def test_invalid_meshes_are_errors(section, message):
  with pytest.raises(UserError, match='^parallel.*' + message):
    strategy.build(ParallelConfig(**section))


def test_an_example_is_on_devices_of_one_process_only():
  """Each process reads its own examples, in whatever order jax lists the devices."""
  devices = [types.SimpleNamespace(process_index=i % 2, platform='cpu') for i in range(8)]
  with pytest.raises(UserError, match=r'parallel.tensor: must divide the 4 devices of a process; got 8.*\[1, 2, 4\]'):
    strategy.build(ParallelConfig('mesh', tensor=8), devices)
