"""When a device's memory is not enough: how much was needed, and the knobs that help."""
import contextlib
import re

import jax

_UNITS = {'': 1, 'K': 1 << 10, 'M': 1 << 20, 'G': 1 << 30, 'T': 1 << 40}
_NUMBER = r'([\d.]+)\s?([KMGT]?)(?:i?B\b|\b)'
_PATTERNS = (  # of the TPU compiler, two forms; of allocators
    rf'\({_NUMBER}\) exceeds available HBM \({_NUMBER}\)',
    rf'Used {_NUMBER} of {_NUMBER} hbm',
    rf'(?:allocate|allocating) {_NUMBER}()()',
)


def is_exhausted(error):
  """Whether an exception says that a device has not enough memory, at compilation or at run time."""
  return 'RESOURCE_EXHAUSTED' in str(error)


def figures(error):
  """(bytes asked for, bytes there), as far as such an exception says; each may be None."""
  for pattern in _PATTERNS:
    found = re.search(pattern, str(error))
    if found:
      needed, there = (float(number) * _UNITS[unit] if number else None
                       for number, unit in (found.groups()[:2], found.groups()[2:4]))
      return needed, there
  return None, None


def advice(config):
  """Lines that name the knobs that would lower what a device needs, the cheapest first.

  Args:
    config: resolved, as a dict; knobs that it does not have, or that are already turned, are left out.
  """
  return [f'--config.{knob}={value}  {what}' for knob, value, what, helps in KNOBS
          if knob.split('.')[1] in config[knob.split('.')[0]] and helps(config)]


@contextlib.contextmanager
def explained(config):
  """Where jax runs out of a device's memory inside, raises a ValueError that says what helps; see `advice`."""
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if not is_exhausted(error):
      raise
    needed, there = figures(error)
    size = f': {needed / 1e9:.2f} GB asked for' if needed else ''
    size += f', {there / 1e9:.2f} GB there' if there else ''
    lines = [f'a device has not enough memory{size}. What helps, besides more devices:', *advice(config),
             'python -m vit_jax.plan with the same --config says what fits', f'(jax: {str(error).splitlines()[0]})']
    raise ValueError('\n  '.join(lines)) from error


# (knob, what to set it to, why, whether a config leaves something to gain).
KNOBS = (
    ('model.dtype', 'bfloat16', 'activations of half the size', lambda config: config['model']['dtype'] == 'float32'),
    ('train.micro_batch', 'N', 'a device holds N of its images at once', lambda config: True),
    ('model.remat', 'full', 'activations are computed again for the gradient: a third more arithmetic',
     lambda config: config['model']['remat'] in ('none', 'dots')),
    ('model.remat', 'offload', "blocks' inputs wait in the host's memory: they must be moved there and back",
     lambda config: config['model']['remat'] == 'full' and not config['model']['unroll']),
    ('optim.options.mu_dtype', 'bfloat16', 'the first moment at half the size',
     lambda config: (config['optim']['name'] in ('adam', 'adamw', 'lion')
                     and 'mu_dtype' not in config['optim']['options'])),
    ('train.ema_decay', 'None', 'no averaged copy of the parameters',
     lambda config: config['train']['ema_decay'] is not None),
    ('parallel.fsdp', 'N --config.parallel.strategy=mesh', 'parameters and optimizer are spread over N devices',
     lambda config: config['parallel']['fsdp'] == 1),
    ('data.batch_size', 'N', 'fewer images a step; another run: mind the learning rate', lambda config: True),
)
