"""The panel of a step on one device and on many: `python -m tests.health_on_devices` prints {strategy: values} as JSON."""
import dataclasses
import json

import jax

from tests import tiny
from tests.positions_on_devices import batches
from vit_jax.data.sources.info import DatasetInfo
from vit_jax.distributed.strategy import ParallelConfig
from vit_jax.run import config as config_lib
from vit_jax.run.build import build_program, make_strategy
from vit_jax.training.health import make_panel

STRATEGIES = {
    'one': (ParallelConfig(), 1),
    'pmap': (ParallelConfig(), 8),
    'mesh': (ParallelConfig('mesh', data=2, fsdp=2, tensor=2), 8),
    'fsdp': (ParallelConfig('mesh', data=1, fsdp=8), 8),
}


def batch():
  """Return a batch of 64 images."""
  return batches(1, 64)[0]


def program(strategy, **changes):
  """Return the program of a tiny recipe."""
  recipe = tiny.config('', **{'data.image_size': 16, 'optim.warmup': '0 steps', **changes})
  parallel, devices = STRATEGIES[strategy]
  config = dataclasses.replace(config_lib.read(recipe), parallel=parallel)
  return build_program(config, make_strategy(config, jax.devices()[:devices]),
                       DatasetInfo(num_examples=300, num_classes=10, channels=1))


def measure(strategy):
  """Return the panel of the second step of a run."""
  made = program(strategy, **{'train.micro_batch': 4, 'model.heads': 4})
  state, data = made.strategy.create(made.create), made.strategy.put(batch())
  state, _ = jax.block_until_ready(made.strategy.compile(made.step, donate=True)(state, data))
  panel = make_panel(made.model, made.merge, made.gradients, made.optimizer.transform, made.config.normalization,
                     made.strategy)
  values = jax.device_get(made.strategy.compile(panel, donate=False)(state, data))
  return {name: float(value) for name, value in values.items()}


if __name__ == '__main__':
  print(json.dumps({strategy: measure(strategy) for strategy in STRATEGIES}))
