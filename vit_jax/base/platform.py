"""The machine: which accelerators jax finds, what commands set before jax starts, which versions are installed."""
import ctypes
import hashlib
import importlib.metadata
import os
import pathlib
import platform as python_platform

from absl import logging
import jax

PLATFORMS = ('cpu', 'gpu', 'tpu')
CACHE_LIMIT = 4 << 30  # bytes of compiled programs

# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def require(name):
  """Makes jax use the platform `name`, or whatever is there for None.

  Raises:
    ValueError: an unknown name, or a platform that is not there; never a silent fall-back.
  """
  if name is not None:
    _choose(name)
  if jax.process_count() > 1 and jax.default_backend() == 'cpu':
    # What one process compiled for several CPUs hangs in another: Gloo waits for the wrong one (jax 0.10.2).
    jax.config.update('jax_enable_compilation_cache', False)


def _choose(name):
  if name not in PLATFORMS:
    raise ValueError(f'unknown platform {name!r}; choose from {list(PLATFORMS)}')
  before = jax.config.jax_platforms
  jax.config.update('jax_platforms', name)
  try:
    found, why = jax.default_backend(), ''
  except RuntimeError as error:
    found, why = None, f' ({error})'
  if found != name:
    jax.config.update('jax_platforms', before)
    extra = {'gpu': "pip install -e '.[cuda]'", 'tpu': "pip install -e '.[tpu]'"}.get(name)
    hint = f'; install its jax with: {extra}' if extra else ''
    raise ValueError(f'platform {name!r} was asked for, but jax finds {found or "none"}{why}{hint}')


def versions():
  """{package: version} of what the numbers of a run depend on."""
  return {name: importlib.metadata.version(name) for name in ('vit_jax', 'jax', 'jaxlib', 'flax', 'optax', 'numpy')}


def keep_memory():
  """Makes malloc keep what is freed for the next step, where malloc is glibc's and MALLOC_* variables do not say more.

  XLA:CPU takes a step's temporaries with one malloc and frees them after it. Left alone, glibc gives them back to the
  kernel, which then zeroes the same pages for every step. Steps on a CPU are 1.1 to 1.2 times as quick with it, but the
  process grows to two or three times its size (the heap breaks up), so no command does it of its own accord.

  Returns:
    Whether it was done.
  """
  tunables = os.environ.get('GLIBC_TUNABLES', '')
  if any(name.startswith('MALLOC_') for name in os.environ) or 'glibc.malloc' in tunables or not is_glibc():
    return False
  mallopt = ctypes.CDLL(None).mallopt
  # Never trim, never map. One arena: the others cannot hold more than 64 MiB and would map what is larger.
  return all(mallopt(*option) for option in ((_M_TRIM_THRESHOLD, -1), (_M_MMAP_MAX, 0), (_M_ARENA_MAX, 1)))


def is_glibc():
  """Whether the C library is glibc, whose malloc has options."""
  return 'CS_GNU_LIBC_VERSION' in getattr(os, 'confstr_names', ()) and bool(os.confstr('CS_GNU_LIBC_VERSION'))


def cache_folder():
  """Where downloads and compiled programs are kept: $VIT_JAX_CACHE, else ~/.cache/vit_jax."""
  return pathlib.Path(os.environ.get('VIT_JAX_CACHE') or '~/.cache/vit_jax').expanduser()


def keep_programs():
  """Makes jax keep compiled programs from process to process, in `cache_folder()`/compilation/PROCESSOR.

  What the user told jax (JAX_COMPILATION_CACHE_DIR, JAX_ENABLE_COMPILATION_CACHE=false) holds. The least recently used
  programs go when there are more than CACHE_LIMIT bytes. A folder a processor: programs for a CPU use instructions that
  another may not have, and home folders are shared. Several processes on CPUs keep none, see `require`.

  Returns:
    The folder; None where the user told otherwise or it cannot be written.
  """
  if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:
    return None
  folder = cache_folder() / 'compilation' / _processor()
  try:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # who can write there can run code here
    prune(folder, CACHE_LIMIT)
    (folder / '.writable').touch()
  except OSError as error:
    logging.warning('compiled programs are not kept: %s', error)
    return None
  jax.config.update('jax_compilation_cache_dir', str(folder))
  if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)
  return folder


def _processor():
  """A name for processors with the same instructions, such as 'x86_64-5f3e9a1c'."""
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
    kinds = {line for line in lines if line.startswith(('flags', 'Features', 'model name', 'CPU part'))}
  except OSError:
    kinds = {python_platform.processor()}
  return f'{python_platform.machine()}-{hashlib.sha256(repr(sorted(kinds)).encode()).hexdigest()[:8]}'


def prune(folder, limit):
  """Deletes the files of a folder that were read the longest ago until the rest has at most `limit` bytes."""
  found = []
  for path in folder.iterdir():
    try:
      found.append((max(path.stat().st_atime, path.stat().st_mtime), path.stat().st_size, path))
    except FileNotFoundError:  # another process prunes, too
      continue
  total = sum(size for _, size, _ in found)
  for _, size, path in sorted(found):
    if total <= limit:
      return
    path.unlink(missing_ok=True)
    total -= size
