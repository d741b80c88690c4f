"""Every kind of positions and attention trains: on many devices as on one, through checkpoints, at another resolution."""
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests import golden_files, tiny
from tests.positions_on_devices import OPTIONS
from vit_jax import train
from vit_jax.models.base import flatten
from vit_jax.planning import planner
from vit_jax.pretrained import describe, load


@pytest.fixture(scope='module', name='on_devices')
def _on_devices():
  """Return what `tests.positions_on_devices` prints for eight devices."""
  env = dict(os.environ, JAX_PLATFORMS='cpu', XLA_FLAGS='--xla_force_host_platform_device_count=8')
  process = subprocess.run([sys.executable, '-m', 'tests.positions_on_devices', 'table', 'axial', 'local'], cwd=tiny.ROOT,
                           env=env, text=True, capture_output=True)
  assert process.returncode == 0, process.stderr
  return json.loads(process.stdout)


@pytest.mark.slow
@pytest.mark.parametrize('option', ['table', 'axial', 'local'])
@pytest.mark.parametrize('strategy', ['pmap', 'mesh'])
def test_many_devices_train_like_one(option, strategy, on_devices):
  one, many = (on_devices[option][name] for name in ('one', strategy))
  np.testing.assert_allclose(many['lines'], one['lines'], rtol=2e-5)
  assert many['sums'].keys() == one['sums'].keys()
  for path, expected in one['sums'].items():
    np.testing.assert_allclose(many['sums'][path], expected, rtol=2e-4, err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize('option', ['table', 'axial'])
def test_from_training_to_a_fine_tune_at_another_resolution(option, data_dir, tmp_path, capsys):
  """Layer-wise decay, checkpoint, plan, description, and a fine-tune that resizes every table."""
  config = tiny.config(data_dir, **{'train.duration': '6 steps', 'checkpoint.every': '6 steps', 'optim.layer_decay': 0.8,
                                    'optim.decay_mask': '.*/kernel'})
  config.model.update(OPTIONS[option])
  train.run(config, tmp_path / 'run')
  weights = load.read(tmp_path / 'run')
  program = train.build(config)
  assert planner.plan(config).to_json()['multiply_adds'] == program.model.multiply_adds()
  description = describe.describe(tmp_path / 'run')
  assert description.parameters == program.num_params
  assert description.fields.items() >= {name: value for name, value in OPTIONS[option].items() if value}.items()
  finetune = tiny.config(data_dir, init=str(tmp_path / 'run'), **{
      'data.image_size': (16, 12), 'data.train_transform': 'resize', 'optim.peak_lr': 0.0, 'optim.weight_decay': 0.0,
      'train.duration': '1 steps', 'train.eval_every': '1 steps', 'optim.warmup': '0 steps'})
  finetune.model = {}
  train.run(finetune, tmp_path / 'fine')
  before, after = flatten(weights.params), flatten(load.read(tmp_path / 'fine').params)
  resized = {path for path, layout in program.model.positions.items() if layout != 'token'}
  for path in before.keys() - resized:
    np.testing.assert_array_equal(after[path], before[path])
  assert resized and all(after[path].shape != before[path].shape for path in resized)
  output = capsys.readouterr().out
  assert 'grid 2×2 to 4×3, resized' in output
  images = np.zeros((1, 16, 12, 1), np.float32)
  assert golden_files.logits(load.read(tmp_path / 'fine'), images).shape == (1, 10)
