"""Steps of objectives that hide patches on eight devices: `python -m tests.masked_on_devices KIND…`.

Prints {kind: {strategy: lines and sums of `train`}} as JSON.
"""
import dataclasses
import json
import sys

import jax
import jax.numpy as jnp

from tests import tiny
from tests.positions_on_devices import STRATEGIES, batches
from vit_jax.data.sources.info import DatasetInfo
from vit_jax.distributed.strategy import ParallelConfig
from vit_jax.models.base import flatten
from vit_jax.objectives.base import mean_of
from vit_jax.run import config as config_lib
from vit_jax.run.build import build_program, make_strategy

OBJECTIVES = {
    'mae': (dict(kind='mae', decoder_width=16, decoder_depth=2, decoder_heads=2), dict(unroll=True)),
    'masked_patches': (dict(kind='masked_patches', target='small_patch'), dict(position_at='every')),
    'simmim': (dict(kind='simmim', unit=2), dict(relative_position='table', position='none', remat='dots')),
}
ALL = {**{name: (*strategy, None) for name, strategy in STRATEGIES.items()},
       'two': (ParallelConfig(), 2, None), 'micro-batches': (ParallelConfig(), 2, 2)}


def train(kind, parallel, devices, micro_batch):
  """Return loss and metrics of three steps, and the sum of squares of each parameter after them."""
  objective, model = OBJECTIVES[kind]
  recipe = tiny.config('', **{'data.image_size': 16, 'data.batch_size': 16, 'objective': objective,
                              'train.micro_batch': micro_batch, 'train.ema_decay': None})
  recipe.model.update(model)
  config = dataclasses.replace(config_lib.read(recipe), parallel=parallel)
  strategy = make_strategy(config, jax.devices()[:devices])
  program = build_program(config, strategy, DatasetInfo(num_examples=300, num_classes=10, channels=1))
  state = program.strategy.create(program.create)
  step = program.strategy.compile(program.step, donate=True)
  lines = []
  for batch in batches(3, 16):
    state, metrics = jax.block_until_ready(step(state, program.strategy.put(batch)))
    lines.append({name: float(mean_of(value)) for name, value in metrics.items()})
  params = flatten(program.strategy.fetch(state).params)
  # Softmax cancels the key bias: its true gradient is zero, and Adam turns rounding errors into steps.
  sums = {path: float(jnp.sum(jnp.square(leaf))) for path, leaf in params.items() if not path.endswith('key/bias')}
  return dict(lines=lines, sums=sums)


def main(kinds):
  """Print the results of the given kinds."""
  print(json.dumps({kind: {name: train(kind, *strategy) for name, strategy in ALL.items()} for kind in kinds}))


if __name__ == '__main__':
  main(sys.argv[1:])
