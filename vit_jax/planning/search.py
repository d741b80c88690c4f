"""The largest batch that a device holds at once, for every setting that trades speed for memory."""
from collections.abc import Mapping, Sequence
import dataclasses
import itertools
import math
from typing import Any

from vit_jax.base.errors import UserError
from vit_jax.data.sources.info import DatasetInfo
from vit_jax.distributed import strategy as strategy_lib
from vit_jax.planning.estimate import Log, device_memory, estimate, no_log
from vit_jax.planning.plan import Plan, Trial
from vit_jax.planning.topology import Slice
from vit_jax.run import config as config_lib

_FIRST = 8  # images per device in the first trial
_MOST = 4096  # and in the last: larger batches are not used for training, and compiling them takes minutes


def search(recipe: config_lib.Recipe, info: DatasetInfo, tpu: Slice | None = None, log: Log = no_log) -> Plan:
  """Try settings and batch sizes; every result is compiled, not extrapolated.

  Args:
    recipe: of the run. The batch size and the settings in `SETTINGS` are searched; the batch is not split into
      micro-batches, so that it is what a device holds at once.
    info: numbers of the training data.
    tpu: slice to compile for; None takes the devices that jax finds.
    log: called with lines of progress.

  Returns:
    The plan of the largest batch with the cheapest settings for it, with `settings` and `trials`.

  Raises:
    UserError: a device has no memory limit, like a CPU; or nothing fits.
  """
  if device_memory(tpu) is None:
    raise UserError('--search: needs devices with memory of their own. Give a --topology, such as v5e:2x4')
  best, trials = None, []
  candidates = combinations(config_lib.read(recipe))
  for number, settings in enumerate(candidates, 1):
    log(f'combination {number} of {len(candidates)}: {settings or "as configured"}')
    plan = _largest(recipe, settings, info, tpu, log)
    trials.append(_trial(settings, plan))
    if plan and (best is None or plan.setup.batch_per_device > best.setup.batch_per_device):
      best = dataclasses.replace(plan, settings=settings)
  if best is None:
    raise UserError('--search: not even one image per device fits. Take a larger chip, or shard the model over several '
                    'with --config.parallel.strategy=mesh')
  return dataclasses.replace(best, trials=tuple(trials))


def combinations(config: config_lib.RunConfig) -> list[dict[str, Any]]:
  """Return all combinations {'SECTION.KEY': value} of the settings that a config has, the cheapest first."""
  known = {key: values for key, values in SETTINGS.items() if _has(config, key)}
  return [dict(zip(known, values, strict=True)) for values in itertools.product(*known.values())]


def changed(recipe: config_lib.Recipe, settings: Mapping[str, Any]) -> config_lib.RunConfig:
  """Return the config of a recipe with {'SECTION.KEY': value} set."""
  values = config_lib.as_dict(recipe)
  for key, value in settings.items():
    section, name = key.split('.')
    values[section] = {**values.get(section, {}), name: value}
  return config_lib.read(values)


def _has(config: config_lib.RunConfig, key: str) -> bool:
  section, name = key.split('.')
  return hasattr(getattr(config, section), name)


def _trial(settings: Mapping[str, Any], plan: Plan | None) -> Trial:
  if plan is None:
    return Trial(settings)
  return Trial(settings, plan.setup.batch_per_device, plan.memory.temporaries, plan.memory.spare,
               plan.time.images_per_second)


def _largest(recipe: config_lib.Recipe, settings: Mapping[str, Any], info: DatasetInfo, tpu: Slice | None, log: Log
             ) -> Plan | None:
  """Return the plan of the largest power of two of images per device that fits, or None."""
  devices = list(tpu.devices) if tpu else None
  strategy = strategy_lib.build(changed(recipe, settings).parallel, devices)
  plans: dict[int, Plan] = {}

  def fits(images: int) -> bool:
    if images not in plans:
      log(f'{images} images per device')
      batch = {'data.batch_size': images * strategy.num_shards}
      plans[images] = estimate(changed(recipe, {**settings, **batch}), info, tpu, log)
    return bool(plans[images].memory.fits)

  images = _FIRST
  if fits(images):
    images = min(max(images, _predicted(plans[images])), _MOST)
  while images >= 1 and not fits(images):
    images //= 2
  # Twice as many have failed, or are tried now.
  while 1 <= images < _MOST and fits(2 * images):
    images *= 2
  return plans.get(images)


def _predicted(plan: Plan) -> int:
  """Return the power of two of images that would fill the memory if all but state and program grew with the images."""
  memory = plan.memory
  assert memory.needed is not None and memory.available is not None
  fixed = memory.parameters + memory.optimizer + memory.ema + (memory.code or 0)
  per_image = (memory.needed - fixed) / plan.setup.batch_per_device
  # The compiler may need less than the sum of the parts: an image then takes a byte.
  return 1 << int(math.log2(max((memory.available - fixed) / max(per_image, 1), 1)))


# Settings that cost time and save memory, the cheapest first; a config without the key is searched without it.
SETTINGS: dict[str, Sequence[Any]] = {
    'train.micro_batch': (None,),
    'model.remat': ('none', 'dots', 'full', 'offload'),
}
