"""The memory of this host: how much is free, and what asks for more than that."""
import pathlib

from vit_jax.base.errors import UserError

_CGROUP = pathlib.Path('/sys/fs/cgroup')


def available() -> int | None:
  """Return the bytes that this process may still take without swapping, within its container; None if unknown."""
  found = []
  try:
    fields = dict(line.split(':', 1) for line in pathlib.Path('/proc/meminfo').read_text().splitlines())
    found.append(int(fields['MemAvailable'].split()[0]) << 10)
  except (OSError, KeyError, ValueError):
    pass
  try:
    limit, used = ((_CGROUP / name).read_text() for name in ('memory.max', 'memory.current'))
    cache = dict(line.split() for line in (_CGROUP / 'memory.stat').read_text().splitlines()).get('inactive_file', 0)
    found.append(int(limit) - int(used) + int(cache))
  except (OSError, ValueError):  # no container, or one without a limit: 'max'
    pass
  return min(found, default=None)


def check_fits(size: int, what: str) -> None:
  """Refuse to read what does not fit into memory, before the system ends the process for it.

  Args:
    size: bytes.
    what: what asks for them, for the message.

  Raises:
    UserError: there are fewer.
  """
  free = available()
  if free is not None and size > free:
    raise UserError(f'{what}: {size / 2**30:,.1f} GiB of memory are needed, {free / 2**30:,.1f} GiB are free')
