"""The machine: which accelerators jax finds, and which versions of what is installed."""
import importlib.metadata

import jax

PLATFORMS = ('cpu', 'gpu', 'tpu')


def require(name):
  """Makes jax use the platform `name`, or whatever is there for None.

  Raises:
    ValueError: an unknown name, or a platform that is not there; never a silent fall-back.
  """
  if name is None:
    return
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
