"""The machine: the accelerators that jax finds, what commands set before jax starts, and installed versions."""
import contextlib
import ctypes
import glob
import hashlib
import importlib.metadata
import importlib.util
import os
import pathlib
import platform as python_platform
import re
import sys
from typing import Any
import warnings

from absl import logging
import jax

from vit_jax.base.errors import UserError
from vit_jax.base.files import local

_config: Any = jax.config  # type checkers do not know its options
PLATFORMS = ('cpu', 'gpu', 'tpu')
CACHE_LIMIT = 4 << 30  # bytes of compiled programs

# What jax warns of a program in its cache that is damaged (jax/_src/compiler.py).
_UNREADABLE = re.compile("Error reading persistent compilation cache entry for '(.+?)'")

# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def require(name: str | None) -> None:
  """Make jax use the platform `name`, or whatever it finds if None.

  Raises:
    UserError: an unknown name, or a platform that jax does not find; never a silent fallback.
  """
  if name is not None:
    _require(name)
  if jax.process_count() > 1 and jax.default_backend() == 'cpu':
    # A program that one process compiled for several CPUs hangs in another: Gloo waits for the wrong one (jax 0.10.2).
    jax.config.update('jax_enable_compilation_cache', False)


def _require(name: str) -> None:
  if name not in PLATFORMS:
    raise UserError(f'platform: unknown {name!r}; choose from {list(PLATFORMS)}')
  previous = _config.jax_platforms
  jax.config.update('jax_platforms', name)
  try:
    found, reason = jax.default_backend(), ''
  except RuntimeError as error:
    found, reason = None, f' ({error})'
  if found != name:
    jax.config.update('jax_platforms', previous)
    extra = {'gpu': "pip install -e '.[cuda]'", 'tpu': "pip install -e '.[tpu]'"}.get(name)
    fix = f'. Install jax for it with: {extra}' if extra else ''
    raise UserError(f'platform: expected {name!r}, but jax finds {found or "none"}{reason}{fix}')


def versions() -> dict[str, str]:
  """Return {package: version} of the packages that a run's numbers depend on."""
  installed = {name: importlib.metadata.version(name) for name in ('jax', 'jaxlib', 'flax', 'optax', 'numpy')}
  # The package itself is loaded, but not installed where a clone is used as it is.
  return dict(vit_jax=sys.modules['vit_jax'].__version__, **installed)


def prefer_cublas() -> bool:
  """Make XLA take products on NVIDIA GPUs from cuBLAS alone, unless XLA_FLAGS speaks of Triton's; before jax starts.

  By default XLA also compiles and times many forms of every product by Triton. On an H200 with 16 cores, B/16's first
  training step took more than 90 s with them and 33 s without (jax 0.11.2, experiments/benchmarks/gpu.md).

  Returns:
    Whether it was done: whether jax for CUDA is installed and the user has not decided.
  """
  given = os.environ.get('XLA_FLAGS', '')
  has_cuda = any(importlib.util.find_spec(f'jax_cuda{version}_plugin') for version in (12, 13))
  if not has_cuda or 'triton_gemm' in given:
    return False
  os.environ['XLA_FLAGS'] = f'{given} --xla_gpu_enable_triton_gemm=false'.lstrip()
  return True


def keep_freed_memory() -> bool:
  """Make malloc keep freed memory for the next step, if malloc is glibc's and no MALLOC_* variable is set.

  XLA:CPU takes a step's temporaries with one malloc and frees them after it. By default glibc returns them to the
  kernel, which then zeroes the same pages for every step. With this, steps on a CPU are 1.1 to 1.2 times as fast, but
  the process grows to two or three times its size (the heap fragments), so no command does it by default.

  Returns:
    Whether it was done.
  """
  tunables = os.environ.get('GLIBC_TUNABLES', '')
  if any(name.startswith('MALLOC_') for name in os.environ) or 'glibc.malloc' in tunables or not is_glibc():
    return False
  mallopt = ctypes.CDLL(None).mallopt
  # Never trim, never map. One arena: additional ones cannot hold more than 64 MiB and would map larger blocks.
  return all(mallopt(*option) for option in ((_M_TRIM_THRESHOLD, -1), (_M_MMAP_MAX, 0), (_M_ARENA_MAX, 1)))


def is_glibc() -> bool:
  """Return whether the C library is glibc, whose malloc has options."""
  return 'CS_GNU_LIBC_VERSION' in getattr(os, 'confstr_names', ()) and bool(os.confstr('CS_GNU_LIBC_VERSION'))


def cache_folder() -> pathlib.Path:
  """Return the folder of downloads and compiled programs: $VIT_JAX_CACHE, else ~/.cache/vit_jax."""
  return local(os.environ.get('VIT_JAX_CACHE') or '~/.cache/vit_jax')


def enable_compilation_cache() -> pathlib.Path | None:
  """Make jax keep compiled programs on disk, in `cache_folder()`/compilation/PROCESSOR.

  The user's settings win (JAX_COMPILATION_CACHE_DIR, JAX_ENABLE_COMPILATION_CACHE=false). Beyond CACHE_LIMIT bytes the
  least recently used programs are deleted. There is one folder per processor: programs for a CPU use instructions that
  another may not have, and home folders are shared. Several processes on CPUs cache nothing, see `require`.

  Returns:
    The folder; None if the user's settings win or it cannot be written.
  """
  if _config.jax_compilation_cache_dir or not _config.jax_enable_compilation_cache:
    return None
  folder = cache_folder() / 'compilation' / _processor()
  try:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # whoever can write there can run code here
    prune(folder, CACHE_LIMIT)
    (folder / '.writable').touch()
  except OSError as error:
    logging.warning('compiled programs are not cached: %s', error)
    return None
  _heal(folder)
  jax.config.update('jax_compilation_cache_dir', str(folder))
  if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)
  return folder


def _processor() -> str:
  """Return a name for processors with the same instructions, such as 'x86_64-5f3e9a1c'."""
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
    kinds = {line for line in lines if line.startswith(('flags', 'Features', 'model name', 'CPU part'))}
  except OSError:
    kinds = {python_platform.processor()}
  return f'{python_platform.machine()}-{hashlib.sha256(repr(sorted(kinds)).encode()).hexdigest()[:8]}'


def _heal(folder: pathlib.Path) -> None:
  """Delete programs that jax warns it cannot read: it compiles them then, but keeps the damaged files as they are."""
  show = warnings.showwarning

  def show_or_delete(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    found = _UNREADABLE.match(str(message))
    if found is None:
      return show(message, category, *where, **more)
    for path in folder.glob(f'{glob.escape(found[1])}-*-cache'):
      with contextlib.suppress(OSError):
        path.unlink()
    logging.warning('the compiled program %s in %s was damaged: it is deleted and compiled again', found[1], folder)

  warnings.showwarning = show_or_delete


def prune(folder: pathlib.Path, limit: int) -> None:
  """Delete the least recently used files of a folder until the rest has at most `limit` bytes."""
  found = []
  for path in folder.iterdir():
    try:
      found.append((max(path.stat().st_atime, path.stat().st_mtime), path.stat().st_size, path))
    except FileNotFoundError:  # another process prunes too
      continue
  total = sum(size for _, size, _ in found)
  for _, size, path in sorted(found):
    if total <= limit:
      return
    path.unlink(missing_ok=True)
    total -= size
