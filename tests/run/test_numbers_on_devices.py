"""Numbers that go wrong on eight devices, by pmap and on meshes; see `tests/numbers_on_devices.py`."""
import json
import os
import subprocess
import sys

import pytest

from tests import tiny


@pytest.fixture(scope='module')
def found():
  env = dict(os.environ, JAX_PLATFORMS='cpu', XLA_FLAGS='--xla_force_host_platform_device_count=8')
  process = subprocess.run([sys.executable, '-m', 'tests.numbers_on_devices'], cwd=tiny.ROOT, env=env, text=True,
                           capture_output=True, check=False)
  assert process.returncode == 0, process.stderr
  return json.loads(process.stdout)


@pytest.mark.slow
def test_eight_devices_skip_and_leave_out_what_one_does(found):
  one = found['one']
  for name, other in found.items():
    assert other['kept'] and other['nothing'] and other['steps'] == 1, name
    assert other['counted'] == 60 and len(set(other['seen'])) == 1 and other['seen'] == one['seen'], name
    for metric in ('loss', 'grad_norm'):
      assert other[metric] == pytest.approx(one[metric], rel=1e-5), name


@pytest.mark.slow
def test_the_device_with_another_bit_is_named(found):
  for name, other in found.items():
    assert other['agreeing'] == [], name
  assert found['pmap']['disagreeing'] == ['cpu:5']
  for name in ('mesh', 'fsdp'):  # a shard may be on several devices
    assert len(found[name]['disagreeing']) == 1 and 'cpu:5' in found[name]['disagreeing'][0], name
