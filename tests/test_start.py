"""Starting is quick and light: no backend, no TensorFlow, no torch for a look at the package or at --help."""
import subprocess
import sys
import time

from tests import tiny

SCRIPT = '''
import sys
import vit_jax
heavy = sorted({'tensorflow', 'torch'} & set(sys.modules))
if 'jax' in sys.modules:
  from jax._src import xla_bridge
  assert not xla_bridge.backends_are_initialized()
print(heavy)
'''


def test_import_is_quick_and_light():
  start = time.monotonic()
  output = subprocess.run([sys.executable, '-c', SCRIPT], cwd=tiny.ROOT, capture_output=True, text=True, check=True).stdout
  assert output.strip() == '[]'
  assert time.monotonic() - start < 2.0


def test_training_needs_neither_tensorflow_nor_torch():
  script = "import sys, vit_jax.train, vit_jax.evaluate; print(sorted({'tensorflow', 'torch'} & set(sys.modules)))"
  output = subprocess.run([sys.executable, '-c', script], cwd=tiny.ROOT, capture_output=True, text=True, check=True).stdout
  assert output.strip().splitlines()[-1] == '[]'


def test_help_is_quick():
  start = time.monotonic()
  process = tiny.command('main', '--help')
  output, _ = process.communicate()
  assert '--config' in output and '--workdir' in output
  assert time.monotonic() - start < 3.0


def test_public_names():
  import vit_jax
  assert {name for name in vit_jax.__all__ if getattr(vit_jax, name) is None} == set()
  assert callable(vit_jax.train.run)
