"""BiT ResNets through the whole framework: training, devices, checkpoints, fine-tuning, converting."""
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
MODELS = {'bit': BIT}


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


def test_the_loss_falls_and_a_resumed_run_ends_the_same(run, kind, data_dir, tmp_path):
  losses = [loss for _, loss in tiny.metrics(run, ['train/loss'])]
  assert len(losses) == 12 and np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.02
  shutil.copytree(run, tmp_path / 'run')
  for step in (8, 12):
    shutil.rmtree(tmp_path / 'run' / 'checkpoints' / str(step))
  train.run(config(data_dir, kind), tmp_path / 'run')
  golden_files.assert_same_params(load.read(tmp_path / 'run').params, load.read(run).params)


def test_muon_takes_convolutions(data_dir, tmp_path):
  train.run(config(data_dir, 'bit', **{'optim.name': 'muon', 'train.duration': '4 steps', 'train.eval_every': '4 steps'}),
            tmp_path / 'run')
  assert np.isfinite([loss for _, loss in tiny.metrics(tmp_path / 'run', ['train/loss'])]).all()


def test_describe_and_convert(run, tmp_path):
  adaptation = Adaptation(num_classes=3, image_size=16)
  description = describe.describe(run, adaptation=adaptation)
  assert 'head: reset to zeros for 3 classes (was 10)' in description.fine_tune
  assert json.dumps(description.to_json()) and 'conv_root' in description.table
  model = vit_jax.load(run)
  assert model.predict([np.zeros((8, 8), np.uint8)]).shape == (1, 10)
  vit_jax.save(model, tmp_path / 'bit', 'huggingface', approximate=True)
  back = load.read(tmp_path / 'bit', trained_at=8)
  assert back.config.groups == 2
  with pytest.raises(UserError, match='patch_size: .*kind.* no patches'):
    vit_jax.load(run, patch_size=4)
  golden_files.assert_same_params(back.params, load.read(run).params)
