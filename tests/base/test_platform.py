"""What commands set before jax starts: malloc, and the cache of compiled programs."""
import importlib.util
import json
import os
import subprocess
import sys

import pytest

from tests import tiny
import vit_jax
from vit_jax.base import platform

COUNT = '''
import collections, json, sys
import jax
from vit_jax.base import platform
platform.enable_compilation_cache()
seen = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: seen.update([name.rpartition('/')[2]]))
from tests import tiny
from vit_jax import train
values = train.run(tiny.config(sys.argv[1]), sys.argv[2])
print(json.dumps(dict(hits=seen['cache_hits'], misses=seen['cache_misses'], values=values)))
'''


def train(data_dir, workdir, cache):
  """Train in another process, on two devices; return what COUNT prints."""
  env = dict(os.environ, VIT_JAX_CACHE=str(cache), JAX_ENABLE_COMPILATION_CACHE='true', JAX_PLATFORMS='cpu',
             JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0', XLA_FLAGS='--xla_force_host_platform_device_count=2')
  output = subprocess.run([sys.executable, '-c', COUNT, str(data_dir), str(workdir)], cwd=tiny.ROOT, env=env,
                          check=True, capture_output=True, text=True).stdout
  return json.loads(output.splitlines()[-1])


def test_a_second_start_compiles_nothing_and_computes_the_same(data_dir, tmp_path):
  first = train(data_dir, tmp_path / 'first', tmp_path / 'cache')
  files = {path.name for path in (tmp_path / 'cache').rglob('*-cache')}
  assert files and first['misses'] >= len(files)
  second = train(data_dir, tmp_path / 'second', tmp_path / 'cache')
  assert second['misses'] == 0 and second['hits'] >= first['misses']
  assert {path.name for path in (tmp_path / 'cache').rglob('*-cache')} == files
  assert second['values'] == first['values']
  assert tiny.metrics(tmp_path / 'second') == tiny.metrics(tmp_path / 'first')


@pytest.mark.slow
def test_damaged_programs_are_compiled_again_and_replaced(data_dir, tmp_path):
  """Empty, cut in half, bits flipped; the start after that compiles nothing."""
  first = train(data_dir, tmp_path / 'first', tmp_path / 'cache')
  paths = sorted((tmp_path / 'cache').rglob('*-cache'))
  for number, path in enumerate(paths):
    content = bytearray(path.read_bytes())
    if number % 3 == 2:
      content[len(content) // 2] ^= 4
    path.write_bytes(content if number % 3 == 2 else content[:len(content) // 2 * (number % 3)])
  second = train(data_dir, tmp_path / 'second', tmp_path / 'cache')
  assert second['misses'] >= 1
  third = train(data_dir, tmp_path / 'third', tmp_path / 'cache')
  assert third['misses'] == 0 and first['values'] == second['values'] == third['values']


def test_the_command_caches_programs(data_dir, tmp_path, monkeypatch):
  monkeypatch.setenv('JAX_ENABLE_COMPILATION_CACHE', 'true')
  monkeypatch.setenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
  monkeypatch.setenv('VIT_JAX_CACHE', str(tmp_path / 'cache'))
  recipe = tiny.write(tiny.config(data_dir), tmp_path)
  process = tiny.command('main', f'--config={recipe}', f'--workdir={tmp_path / "run"}')
  _, errors = process.communicate()
  assert process.returncode == 0, errors
  folder, = (tmp_path / 'cache' / 'compilation').iterdir()
  assert list(folder.glob('*-cache')) and not folder.stat().st_mode & 0o077


@pytest.mark.parametrize('option, value', [
    ('jax_compilation_cache_dir', '/elsewhere'), ('jax_enable_compilation_cache', False)])
def test_settings_of_the_user_win(option, value, tmp_path, monkeypatch):
  import jax
  monkeypatch.setenv('VIT_JAX_CACHE', str(tmp_path))
  before = {name: getattr(jax.config, name) for name in ('jax_compilation_cache_dir', 'jax_enable_compilation_cache')}
  try:
    jax.config.update('jax_enable_compilation_cache', True)
    jax.config.update(option, value)
    assert platform.enable_compilation_cache() is None
    assert getattr(jax.config, option) == value and not list(tmp_path.iterdir())
  finally:
    for name, old in before.items():
      jax.config.update(name, old)


@pytest.mark.parametrize('installed, given, after', [
    (True, None, '--xla_gpu_enable_triton_gemm=false'),
    (True, '--xla_dump_to=here', '--xla_dump_to=here --xla_gpu_enable_triton_gemm=false'),
    (True, '--xla_gpu_enable_triton_gemm=true', '--xla_gpu_enable_triton_gemm=true'),
    (False, None, None)])
def test_products_on_gpus_come_from_cublas_unless_the_user_decides(installed, given, after, monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: installed and name == 'jax_cuda13_plugin' or None)
  monkeypatch.delenv('XLA_FLAGS', raising=False)
  if given is not None:
    monkeypatch.setenv('XLA_FLAGS', given)
  assert platform.prefer_cublas() == (after != given)
  assert os.environ.get('XLA_FLAGS') == after


def test_versions_need_no_installation():
  """A clone runs uninstalled: from its root, or on a machine whose packages cannot be changed."""
  code = 'import importlib.metadata as m\nreal = m.version\n' \
         'def fake(name):\n  assert name != "vit_jax"\n  return real(name)\n' \
         'm.version = fake\nfrom vit_jax.base import platform\nprint(platform.versions()["vit_jax"])'
  found = subprocess.run([sys.executable, '-c', code], cwd=tiny.ROOT, check=True, capture_output=True, text=True)
  assert found.stdout.strip() == vit_jax.__version__


@pytest.mark.parametrize('backend, cached', [('cpu', False), ('tpu', True)])
def test_several_processes_on_cpus_cache_nothing(backend, cached, monkeypatch):
  import jax
  before = jax.config.jax_enable_compilation_cache
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  monkeypatch.setattr(jax, 'default_backend', lambda: backend)
  try:
    jax.config.update('jax_enable_compilation_cache', True)
    platform.require(None)
    assert jax.config.jax_enable_compilation_cache == cached
  finally:
    jax.config.update('jax_enable_compilation_cache', before)


def test_a_folder_that_cannot_be_made_is_not_an_error(tmp_path, monkeypatch):
  import jax
  (tmp_path / 'file').write_text('')
  monkeypatch.setenv('VIT_JAX_CACHE', str(tmp_path / 'file'))
  before = jax.config.jax_enable_compilation_cache
  jax.config.update('jax_enable_compilation_cache', True)
  try:
    assert platform.enable_compilation_cache() is None and jax.config.jax_compilation_cache_dir is None
  finally:
    jax.config.update('jax_enable_compilation_cache', before)


def test_the_least_recently_used_files_are_deleted_first(tmp_path):
  for age, name in enumerate(['new', 'middle', 'old']):
    (tmp_path / name).write_bytes(b'x' * 100)
    os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
  platform.prune(tmp_path, 300)
  assert len(list(tmp_path.iterdir())) == 3
  platform.prune(tmp_path, 250)
  assert {path.name for path in tmp_path.iterdir()} == {'new', 'middle'}
  platform.prune(tmp_path, 0)
  assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not platform.is_glibc(), reason='malloc is not that of glibc')
@pytest.mark.parametrize('variables, faults', [({}, False), ({'MALLOC_ARENA_TEST': '8'}, True)])
def test_freed_memory_is_kept(variables, faults):
  """Repeated allocations of 128 MiB have page faults only once, unless the user configures malloc."""
  script = '''
import resource
import numpy as np
from vit_jax.base import platform
kept = platform.keep_freed_memory()
np.ones(1 << 24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
  np.ones(1 << 24)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
'''
  env = {name: value for name, value in os.environ.items() if not name.startswith('MALLOC_')} | variables
  kept, count = subprocess.run([sys.executable, '-c', script], cwd=tiny.ROOT, env=env, check=True, capture_output=True,
                               text=True).stdout.split()
  assert (kept == 'False') == faults
  assert (int(count) > 200) == faults  # 64 huge pages of 2 MiB
