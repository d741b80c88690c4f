"""The largest batch a device holds at once, for every setting that trades speed for memory."""
import itertools
import math

from vit_jax.run.config import as_dict, resolve
from vit_jax.planning.estimate import device_memory, estimate
from vit_jax.distributed import strategy as parallel

_FIRST = 8  # images a device in the first trial
_MOST = 4096  # and in the last: beyond it nobody trains, and compiling takes minutes


def search(config, facts, tpu=None, say=lambda text: None):
  """Tries settings and batches; what it finds is compiled, not extrapolated.

  Args:
    config, facts, tpu, say: as for `estimate.estimate`. The batch and the settings in `SETTINGS` are searched; images
      are not cut into micro-batches, so that the batch is what a device holds at once.

  Returns:
    The `estimate` of the largest batch with the cheapest settings for it, and with `search`, a list with one dict for
    each combination of settings: `settings`, `batch_per_device` (None if not even one image fits), `temp_gb`,
    `spare_gb`, `images_per_second`.

  Raises:
    ValueError: a device has no limit of memory, as on CPU; or nothing fits.
  """
  if device_memory(tpu) is None:
    raise ValueError('--search needs devices with memory of their own: give a --topology, such as v5e:2x4')
  best, rows = None, []
  tried = combinations(resolve(config).to_dict())
  for number, settings in enumerate(tried, 1):
    say(f'combination {number} of {len(tried)}: {settings or "as configured"}')
    found = _largest(config, settings, facts, tpu, say)
    row = {key: found and found[key] for key in ('batch_per_device', 'temp_gb', 'spare_gb', 'images_per_second')}
    rows.append(dict(settings=settings, **row))
    if found and (best is None or found['batch_per_device'] > best['batch_per_device']):
      best = dict(found, settings=settings)
  if best is None:
    raise ValueError('not even one image a device fits; take a larger chip, or spread the model over several')
  return dict(best, search=rows)


def combinations(sections):
  """Dicts {'section.key': value} of all settings that a resolved config (dict) has, cheapest first."""
  known = {knob: values for knob, values in SETTINGS.items() if knob.split('.')[1] in sections[knob.split('.')[0]]}
  return [dict(zip(known, values)) for values in itertools.product(*known.values())]


def changed(config, settings):
  """A config (dict or ConfigDict) with {'section.key': value} set, resolved."""
  config = as_dict(config)
  for knob, value in settings.items():
    section, key = knob.split('.')
    config[section] = {**config.get(section, {}), key: value}
  return resolve(config)


def _largest(config, settings, facts, tpu, say):
  """The estimate of the largest power of two of images a device that fits, or None."""
  strategy = parallel.build(list(tpu.devices) if tpu else None, **changed(config, settings).parallel.to_dict())
  tried = {}

  def fits(images):
    if images not in tried:
      say(f'{images} images a device')
      tried[images] = estimate(changed(config, {**settings, 'data.batch_size': images * strategy.shares}), facts, tpu, say)
    return tried[images]['fits']

  images = _FIRST
  if fits(images):
    images = min(max(images, _predicted(tried[images])), _MOST)
  while images >= 1 and not fits(images):
    images //= 2
  # Twice as many have failed, or are tried now.
  while 1 <= images < _MOST and fits(2 * images):
    images *= 2
  return tried.get(images)


def _predicted(report):
  """The power of two of images that would fill the memory, were all but parameters and optimizer the images'."""
  fixed = sum(report[name] for name in ('parameters_gb', 'optimizer_gb', 'average_gb', 'code_gb'))
  each = (report['needed_gb'] - fixed) / report['batch_per_device']
  # The compiler may need less than the sum of the parts: an image then takes a byte.
  return 1 << int(math.log2(max((report['hbm_gb'] - fixed) / max(each, 1e-9), 1)))


# Settings that cost time and save memory, cheapest first; a config without the key is searched without it.
SETTINGS = {
    'train.micro_batch': (None,),
    'model.remat': ('none', 'dots', 'full', 'offload'),
}
