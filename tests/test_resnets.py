"""BiT ResNets and hybrids through the whole framework: training, devices, checkpoints, fine-tuning, converting."""
import json
import shutil

import numpy as np
import pytest

from tests import golden_files, tiny
import vit_jax
from vit_jax import train
from vit_jax.base.errors import UserError
from vit_jax.pretrained import describe, load
from vit_jax.pretrained.adapt import Adaptation

BIT = dict(kind='bit', blocks=(1, 1), stem_width=8, groups=2)
HYBRID = dict(resnet=(1,), resnet_width=32, patch_size=1, width=16, depth=1, heads=2, mlp_dim=32, dropout=0.1)
MODELS = {'bit': BIT, 'hybrid': HYBRID}


def config(data_dir, kind, **changes):
  return tiny.config(data_dir, **{'model': dict(MODELS[kind]), 'checkpoint.keep': 3, 'optim.peak_lr': 0.01, **changes})


@pytest.fixture(scope='module', params=MODELS)
def kind(request):
  return request.param


@pytest.fixture(scope='module')
def run(kind, data_dir, tmp_path_factory):
  """Return the run directory of twelve steps on one device."""
  workdir = tmp_path_factory.mktemp(kind) / 'run'
  train.run(config(data_dir, kind), workdir)
  return workdir


@pytest.mark.slow
def test_the_loss_falls_and_a_resumed_run_ends_the_same(run, kind, data_dir, tmp_path):
  losses = [loss for _, loss in tiny.metrics(run, ['train/loss'])]
  assert len(losses) == 12 and np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.02
  shutil.copytree(run, tmp_path / 'run')
  for step in (8, 12):
    shutil.rmtree(tmp_path / 'run' / 'checkpoints' / str(step))
  train.run(config(data_dir, kind), tmp_path / 'run')
  golden_files.assert_same_params(load.read(tmp_path / 'run').params, load.read(run).params)


@pytest.mark.slow
def test_eight_devices_train_alike(kind, data_dir, tmp_path):
  """With pmap, and on a mesh that shards parameters and the bottlenecks' features."""
  size = {'data.image_size': 32, 'data.train_transform': 'resize', 'data.eval_transform': 'resize'}
  strategies = {'pmap': {}, 'mesh': {'parallel.strategy': 'mesh', 'parallel.data': 2, 'parallel.fsdp': 2,
                                     'parallel.tensor': 2}}
  for name, changes in strategies.items():
    (tmp_path / name).mkdir()
    recipe = tiny.write(config(data_dir, kind, **{'train.duration': '4 steps', **size, **changes}), tmp_path / name)
    process = tiny.command('main', f'--config={recipe}', f'--workdir={tmp_path / name / "run"}', devices=8)
    output = process.communicate()
    assert process.returncode == 0, output
  train.run(config(data_dir, kind, **{'train.duration': '4 steps', **size}), tmp_path / 'one')
  names = ('train/loss', 'train/grad_norm')
  for name in strategies:
    np.testing.assert_allclose(tiny.metrics(tmp_path / name / 'run', names), tiny.metrics(tmp_path / 'one', names),
                               rtol=1e-4)


def test_fine_tuning_at_another_size_and_with_layer_decay(run, kind, data_dir, tmp_path):
  """The shipped recipe turns off a hidden layer that a ResNet does not have."""
  recipe = config(data_dir, kind, init=str(run),
                  model=dict(variant=None, representation_size=None, head_bias=0.0),
                  **{'data.image_size': (16, 12), 'data.train_transform': 'resize|flip', 'data.eval_transform': 'resize',
                     'train.duration': '2 steps', 'train.eval_every': '2 steps', 'optim.warmup': '0 steps', 'transfer.reset_head': True,
                     'optim.layer_decay': 0.7, 'optim.freeze': '.*conv_root.*'})
  train.run(recipe, tmp_path / 'run')
  weights, before = load.read(tmp_path / 'run'), load.read(run)
  assert weights.config.kind == before.config.kind and weights.config.image_size == (16, 12)
  assert weights.config.resnet == before.config.resnet if kind == 'hybrid' else weights.config.blocks == (1, 1)
  root = lambda weights: weights.params['resnet']['conv_root']['kernel']
  np.testing.assert_array_equal(root(weights), root(before))
  assert kind == 'bit' or weights.params['position']['grid'].shape == (4, 3, 16)


def test_muon_takes_convolutions(data_dir, tmp_path):
  train.run(config(data_dir, 'bit', **{'optim.name': 'muon', 'train.duration': '4 steps', 'train.eval_every': '4 steps'}),
            tmp_path / 'run')
  assert np.isfinite([loss for _, loss in tiny.metrics(tmp_path / 'run', ['train/loss'])]).all()


def test_describe_and_convert(run, kind, tmp_path):
  adaptation = Adaptation(num_classes=3, image_size=16)
  description = describe.describe(run, adaptation=adaptation)
  assert 'head: reset to zeros for 3 classes (was 10)' in description.fine_tune
  assert any('position embedding' in line for line in description.fine_tune) == (kind == 'hybrid')
  assert json.dumps(description.to_json()) and 'conv_root' in description.table
  model = vit_jax.load(run)
  assert model.predict([np.zeros((8, 8), np.uint8)]).shape == (1, 10)
  if kind == 'hybrid':
    vit_jax.save(model, tmp_path / 'hybrid.npz', 'google')
    back = load.read(tmp_path / 'hybrid.npz')
    assert (back.config.resnet, back.config.image_size) == ((1,), (8, 8))
  else:
    vit_jax.save(model, tmp_path / 'bit', 'huggingface', approximate=True)
    back = load.read(tmp_path / 'bit', trained_at=8)
    assert back.config.groups == 2
    with pytest.raises(UserError, match='patch_size: .*kind.* no patches'):
      vit_jax.load(run, patch_size=4)
  golden_files.assert_same_params(back.params, load.read(run).params)
