"""Out of device memory: how much was needed, and the settings that reduce it."""
from collections.abc import Callable, Iterator
import contextlib
import re
from typing import Any, NamedTuple

import jax

from vit_jax.base.errors import UserError

_UNITS = {'': 1, 'K': 1 << 10, 'M': 1 << 20, 'G': 1 << 30, 'T': 1 << 40}
_NUMBER = r'([\d.]+)\s?([KMGT]?)(?:i?B\b|\b)'
_PATTERNS = (  # two of the TPU compiler, one of allocators
    rf'\({_NUMBER}\) exceeds available HBM \({_NUMBER}\)',
    rf'Used {_NUMBER} of {_NUMBER} hbm',
    rf'(?:allocate|allocating) {_NUMBER}()()',
)


def is_out_of_memory(error: BaseException | str) -> bool:
  """Return whether an exception says that a device is out of memory, at compilation or at run time."""
  return 'RESOURCE_EXHAUSTED' in str(error)


def parse_sizes(error: BaseException | str) -> tuple[float | None, float | None]:
  """Return (bytes requested, bytes available) as an out-of-memory error gives them; each may be None."""
  for pattern in _PATTERNS:
    found = re.search(pattern, str(error))
    if found:
      requested, available = (float(number) * _UNITS[unit] if number else None
                              for number, unit in (found.groups()[:2], found.groups()[2:4]))
      return requested, available
  return None, None


def advice(config: Any) -> list[str]:
  """Return lines that name the settings that would reduce a device's memory use, the cheapest first.

  Args:
    config: a `run.config.RunConfig`; settings that it does not have, or that already have their best value, are left
      out.
  """
  return [f'--config.{setting.key}={setting.value}  {setting.effect}' for setting in SETTINGS
          if _has(config, setting.key) and setting.helps(config)]


def _has(config: Any, key: str) -> bool:
  section, name, *_ = key.split('.')  # 'optim.options.mu_dtype' needs `optim.options`
  return hasattr(getattr(config, section), name)


@contextlib.contextmanager
def explain_out_of_memory(config: Any) -> Iterator[None]:
  """Turn an out-of-memory error of jax inside the block into a UserError that says what helps; see `advice`."""
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if not is_out_of_memory(error):
      raise
    requested, available = parse_sizes(error)
    sizes = f': {requested / 1e9:.2f} GB requested' if requested else ''
    sizes += f', {available / 1e9:.2f} GB available' if available else ''
    lines = [f'a device is out of memory{sizes}. Use more devices, or try:', *advice(config),
             'python -m vit_jax.plan with the same --config prints what fits', f'(jax: {str(error).splitlines()[0]})']
    raise UserError('\n  '.join(lines)) from error


class Setting(NamedTuple):
  """A change to a config that reduces memory use.

  Attributes:
    key: config key.
    value: what to set it to.
    effect: what that does and costs.
    helps: `RunConfig` → whether the change would still help.
  """
  key: str
  value: str
  effect: str
  helps: Callable[[Any], bool]


SETTINGS = (
    Setting('model.dtype', 'bfloat16', 'activations take half the memory',
            lambda config: config.model.dtype == 'float32'),
    Setting('train.micro_batch', 'N', 'a device processes N of its images at a time', lambda config: True),
    Setting('model.remat', 'full', 'activations are recomputed for the gradient: a third more arithmetic',
            lambda config: config.model.remat in (None, 'dots')),
    Setting('model.remat', 'offload', "blocks' inputs are kept in host memory: they must be moved there and back",
            lambda config: config.model.remat == 'full' and not config.model.unroll),
    Setting('optim.options.mu_dtype', 'bfloat16', 'the first moment takes half the memory',
            lambda config: (config.optim.name in ('adam', 'adamw', 'lion')
                            and 'mu_dtype' not in config.optim.options)),
    Setting('train.ema_decay', 'None', 'no EMA of the parameters',
            lambda config: config.train.ema_decay is not None),
    Setting('parallel.fsdp', 'N --config.parallel.strategy=mesh', 'parameters and optimizer are sharded over N devices',
            lambda config: config.parallel.fsdp == 1),
    Setting('data.batch_size', 'N', 'fewer images per step; a different run: mind the learning rate',
            lambda config: True),
)
