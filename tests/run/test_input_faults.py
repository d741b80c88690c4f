"""A whole run whose input fails: workers are killed and stopped, an image disappears; it ends as if nothing had happened."""
import json
import random
import signal
import time

import numpy as np
import pytest

from experiments import data_faults
from tests import tiny
from tests.conftest import encode
from tests.data.test_pool import LINUX
from vit_jax import train
from vit_jax.models.base import flatten
from vit_jax.pretrained import load

pytestmark = [LINUX, pytest.mark.slow]
STEPS = 60


@pytest.fixture(scope='module')
def images(tmp_path_factory):
  """Return a folder of images that take a worker some milliseconds each."""
  root, rng = tmp_path_factory.mktemp('data') / 'images', np.random.default_rng(0)
  for i in range(24):
    path = root / 'train' / ('ants', 'bees')[i % 2] / f'{i}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(rng.integers(0, 256, (800, 800, 3), np.uint8)))
  return root


def config_of(images, workers):
  return tiny.config('', **{
      'data.name': f'folder:{images}', 'data.data_dir': None, 'data.train_split': 'train', 'data.batch_size': 12,
      'data.image_size': (8, 8), 'data.train_transform': 'inception_crop|flip', 'data.eval_transform': 'resize',
      'data.threads': 1, 'data.cache': False, 'data.workers': workers, 'train.duration': f'{STEPS} steps', 'train.eval_every': f'{STEPS} steps',
      'evaluators': {}})


@pytest.fixture(scope='module')
def expected(images, tmp_path_factory):
  """Return the parameters of the uninterrupted run, made by threads."""
  workdir = tmp_path_factory.mktemp('expected') / 'run'
  train.run(config_of(images, 0), workdir)
  return flatten(load.read(workdir).params)


def start(images, folder, workdir):
  return tiny.command('main', f'--config={tiny.write(config_of(images, 2), folder)}', f'--workdir={workdir}')


def steps_of(workdir):
  path = workdir / 'metrics.jsonl'
  return max((json.loads(line)['step'] for line in path.read_text().splitlines(keepends=True) if line.endswith('\n')),
             default=0) if path.exists() else 0


def assert_same_params(workdir, expected):
  params = flatten(load.read(workdir).params)
  assert params.keys() == expected.keys()
  for path, leaf in expected.items():
    np.testing.assert_array_equal(params[path], leaf, err_msg=path)


def test_workers_that_are_killed_and_stopped(images, expected, tmp_path):
  rng, faults = random.Random(0), 0
  process = start(images, tmp_path, tmp_path / 'run')
  while process.poll() is None and steps_of(tmp_path / 'run') < STEPS - 5:
    time.sleep(rng.uniform(1.0, 2.0))
    if steps_of(tmp_path / 'run') and faults < 6:
      number = signal.SIGSTOP if faults == 2 else signal.SIGKILL
      faults += data_faults.signal_worker(process.pid, number, rng) is not None
  _, errors = process.communicate()
  assert process.returncode == 0, errors
  assert faults >= 3 and 'data.workers: a worker process was lost (killed' in errors
  assert_same_params(tmp_path / 'run', expected)


def test_an_image_that_disappears_and_comes_back(images, expected, tmp_path):
  path, workdir = images / 'train/ants/4.png', tmp_path / 'run'
  process = start(images, tmp_path, workdir)
  while steps_of(workdir) < 6:
    assert process.poll() is None, process.communicate()
    time.sleep(0.1)
  with data_faults.damaged(path, 'hide', random.Random(0)):
    _, errors = process.communicate()
  assert process.returncode == 1
  assert f'error: {path}: cannot read the image: No such file or directory' in errors and 'Traceback' not in errors
  assert 6 <= steps_of(workdir) < STEPS
  process = start(images, tmp_path, workdir)
  output, errors = process.communicate()
  assert process.returncode == 0 and 'resuming after step' in output, errors
  assert_same_params(workdir, expected)
