"""The mesh: trains like one device, holds its part and no more, and its checkpoints fit everywhere."""
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

import vit_jax
from tests import eight_devices
from tests import tiny
from vit_jax import evaluate
from vit_jax import train
from vit_jax.models.encoder import name_of
from vit_jax.models.vit import VisionTransformer
from vit_jax.training import optim
from vit_jax.distributed import strategy as parallel
from vit_jax.distributed import sharding
from vit_jax.distributed import batch_split as shares


@pytest.fixture(scope='module')
def one(data_dir, tmp_path_factory):
  """(config, workdir) of a run on one device."""
  config, workdir = eight_devices.config(data_dir), tmp_path_factory.mktemp('one') / 'run'
  train.run(config, workdir)
  return config, workdir


@pytest.fixture(scope='module')
def eight(data_dir, one, tmp_path_factory):
  """The folder that eight devices left their runs and facts in."""
  folder = tmp_path_factory.mktemp('eight')
  env = dict(os.environ, JAX_PLATFORMS='cpu', XLA_FLAGS='--xla_force_host_platform_device_count=8')
  process = subprocess.run([sys.executable, '-m', 'tests.eight_devices', data_dir, folder, one[1]], cwd=tiny.ROOT, env=env,
                           text=True, capture_output=True)
  assert process.returncode == 0, process.stderr
  return folder


@pytest.fixture(scope='module')
def facts(eight):
  return json.loads((eight / 'facts.json').read_text())


@pytest.mark.parametrize('name', eight_devices.MESHES)
def test_a_mesh_trains_like_one_device(name, one, eight):
  """Dropout, augmentation, average, evaluation, micro-batches: equal but for float32 rounding of sums."""
  config, workdir = one
  for names in (('train/loss', 'train/grad_norm'), ('test/loss', 'test_ema/loss'), ('test/accuracy',)):
    np.testing.assert_allclose(tiny.metrics(eight / name, names), tiny.metrics(workdir, names), rtol=2e-5)
  ours, theirs = (eight_devices.restored(train.build(config), where, 6) for where in (eight / name, workdir))
  assert ours.seen == theirs.seen
  for params in (ours.params, theirs.params):
    # Softmax does not see a key's bias: its true gradient is zero, and Adam makes steps of the rounding that is left.
    del params['encoder']['blocks']['attention']['key']['bias']
  for x, y in zip(jax.tree.leaves(ours.params), jax.tree.leaves(theirs.params), strict=True):
    np.testing.assert_allclose(x, y, atol=1e-4)


def test_checkpoints_fit_every_mesh_bit_for_bit(facts):
  assert len(facts['same_bits']) == 9 and all(facts['same_bits'].values()), facts['same_bits']


def test_a_save_keeps_what_the_next_step_gives_up(facts):
  assert facts['donated'] == dict(fsdp=True, all=True, one=True)


def test_a_mesh_starts_from_weights(facts):
  assert facts['init'] == dict(equal=True, lies=True)


def test_a_run_of_a_mesh_is_a_model_for_everyone(eight, data_dir):
  parts = train.build(eight_devices.config(data_dir))
  params = eight_devices.restored(parts, eight / 'fsdp', 6).params
  loaded = vit_jax.load(str(eight / 'fsdp'))
  np.testing.assert_array_equal(loaded.head.kernel[...], params['head']['kernel'])


def test_evaluation_is_the_same_there_and_on_fewer_devices(eight, facts):
  step, there, recorded = facts['evaluated']
  assert step == 6 and there == {name: recorded[name] for name in there}
  _, here, _ = evaluate.evaluate(eight / 'fsdp', None, None)
  assert here == pytest.approx(there, rel=2e-5)


# What a device holds and receives.


def test_the_state_is_cut_and_the_buffers_are_given_up(facts):
  compiled = facts['compiled']
  assert compiled['local'] < 0.16 * compiled['whole']  # an eighth, and vectors
  batch = 8 * (8 * 8 + 3 * 4)
  assert compiled['local'] <= compiled['arguments'] <= 1.02 * (compiled['local'] + batch)
  assert compiled['aliased'] >= 0.98 * compiled['local']


def test_weights_are_gathered_and_gradients_summed_block_by_block(facts):
  """The largest array that moves is one block's matrix, in the turns of two loops (and of the last block, which computes only
  what the pooling reads, outside of them); tokens and whole stacks do not."""
  found, matrix = facts['compiled']['collectives'], 64 * 256
  assert max(size for *_, size in found) == matrix
  where = lambda *kinds: {computation for kind, computation, size in found
                          if size == matrix and kind in kinds and not computation.startswith('main')}
  gathered, summed = where('all-gather'), where('all-reduce', 'reduce-scatter')
  assert len(gathered) == 2 and len(summed) == 1 and summed < gathered  # forward and backward; backward


@pytest.mark.parametrize('variant, fsdp, tensor', [('B/16', 8, 1), ('L/16', 8, 1), ('H/14', 4, 2), ('H/14', 16, 16)])
def test_large_models_divide(variant, fsdp, tensor):
  mesh, params = abstract_mesh(fsdp=fsdp, tensor=tensor), abstract_params(variant=variant)
  sharding.check_divides(mesh, params)
  lies = sharding.shardings(mesh, params, params)
  local = sum(np.prod(s.shard_shape(x.shape)) for s, x in zip(jax.tree.leaves(lies), jax.tree.leaves(params)))
  whole = sum(x.size for x in jax.tree.leaves(params))
  assert local < whole / (fsdp * tensor) + 0.01 * whole


# Rules.


def abstract_mesh(data=1, fsdp=1, tensor=1):
  return AbstractMesh((data, fsdp, tensor), ('data', 'fsdp', 'tensor'), (AxisType.Auto,) * 3)


def abstract_params(**fields):
  model = nnx.eval_shape(lambda: VisionTransformer(rngs=nnx.Rngs(0), **fields))
  return nnx.to_pure_dict(nnx.state(model, nnx.Param))


TINY = dict(image_size=8, width=16, depth=4, heads=2, mlp_dim=32, patch_size=4, num_classes=10)


def test_the_rules_of_each_parameter():
  params = abstract_params(**TINY, pool='map')
  specs = {name_of(path): lies.spec for path, lies in jax.tree_util.tree_leaves_with_path(
      sharding.shardings(abstract_mesh(2, 2, 2), params, params))}
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


@pytest.mark.parametrize('name', optim.OPTIMIZERS)
def test_what_is_shaped_like_a_parameter_is_cut_like_it(name):
  """In every optimizer's state: under its name, at its shape; all else is whole."""
  params = abstract_params(**TINY)
  state = jax.eval_shape(optim.build(10, name=name)[0].init, params)
  lies = sharding.shardings(abstract_mesh(2, 2, 2), state, params)
  shapes = {leaf.shape for leaf in jax.tree.leaves(params)}
  moments = 0
  for (path, leaf), where in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(lies), strict=True):
    if name_of(path).endswith('mlp/up/kernel') and leaf.shape == (4, 16, 32):
      assert where.spec == PartitionSpec(None, 'fsdp', 'tensor')
      moments += 1
    assert leaf.shape in shapes or not any(where.spec)
  assert moments >= (name != 'adafactor' or 1)


@pytest.mark.parametrize('fields, mesh, message', [
    (dict(heads=4), dict(tensor=8), 'parallel.tensor=8 does not divide heads=4 of encoder/blocks/attention/'),
    (dict(mlp_dim=33), dict(tensor=2), r'parallel.tensor=2 does not divide mlp_dim=33 .*choose from \[1\]'),
    (dict(width=18), dict(fsdp=4), r'parallel.fsdp=4 does not divide width=18 .*of 4 devices choose from \[1, 2\]'),
])
def test_what_does_not_divide_is_named(fields, mesh, message):
  with pytest.raises(ValueError, match=message):
    sharding.check_divides(abstract_mesh(**mesh), abstract_params(**{**TINY, **fields}))


# Config.


@pytest.mark.parametrize('section, message', [
    (dict(strategy='mesh', data=3), r'a mesh of data=3 × fsdp=1 × tensor=1 does not fit 1 devices; .* may be 1×1×1'),
    (dict(strategy='mesh', fsdp=2), 'a mesh of fsdp=2 × tensor=1 does not fit 1 devices'),
    (dict(strategy='mesh', fsdp=-1), 'at most one of them -1'),
    (dict(strategy='mesh', tensor=0), 'must be at least 1'),
    (dict(strategy='pmap', fsdp=8), r"parallel.fsdp=8, .* need --config.parallel.strategy=mesh; it is 'pmap'"),
    (dict(strategy='magic'), "unknown parallel.strategy 'magic'; choose from .*mesh.*pmap"),
])
def test_a_mesh_that_cannot_be_is_an_error(section, message):
  with pytest.raises(ValueError, match=message):
    parallel.build(**section)


def test_an_example_lies_on_one_process_and_no_more():
  """Each process reads examples of its own; in whatever order jax lists the devices."""
  devices = [types.SimpleNamespace(process_index=i % 2, platform='cpu') for i in range(8)]
  with pytest.raises(ValueError, match='parallel.tensor=8 must divide the 4 devices of a process'):
    parallel.build(devices, strategy='mesh', tensor=8)


def test_micro_batches_take_their_part_of_every_share():
  """Four devices of six rows, three micro-batches: rows stay on their device, neighbours stay neighbours."""
  cut = shares.cut(dict(x=np.arange(24)), 3, 4)['x']
  assert cut.shape == (3, 8)
  for k in range(3):
    assert cut[k].tolist() == [6 * device + 2 * k + i for device in range(4) for i in range(2)]
  np.testing.assert_array_equal(shares.cut(np.arange(24), 3, 1), np.arange(24).reshape(3, 8))
