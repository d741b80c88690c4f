"""Steps of models with every kind of positions and attention on eight devices: `python -m tests.positions_on_devices OPTION…`.

Prints {option: {strategy: lines and sums of `train`}} as JSON.
"""
import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

from tests import tiny
from vit_jax.data.sources.info import DatasetInfo
from vit_jax.distributed.strategy import ParallelConfig
from vit_jax.models.base import flatten
from vit_jax.objectives.base import mean_of
from vit_jax.run import config as config_lib
from vit_jax.run.build import build_program, make_strategy

OPTIONS = {
    'table': dict(relative_position='table', position_at='every', layer_scale=0.5),
    'keys1d': dict(relative_position='keys1d', relative_position_shared=True, position_at='shared', unroll=True),
    'mlp': dict(relative_position='mlp', position=None, pool='gap', class_token=True),
    'axial': dict(attention_kind='axial', position='learned2d', pool='gap', stochastic_depth=0.1),
    'local': dict(attention_kind='local', attention_window=1, registers=1),
}
STRATEGIES = {
    'one': (ParallelConfig(), 1),
    'pmap': (ParallelConfig(), 8),
    'mesh': (ParallelConfig('mesh', data=2, fsdp=2, tensor=2), 8),
}


def batches(count, size):
  """Return random batches of 16×16 grey images."""
  rng = np.random.default_rng(0)
  return [dict(image=rng.integers(0, 256, (size, 16, 16, 1), dtype=np.uint8),
               label=rng.integers(0, 10, size).astype(np.int32), id=(np.arange(size) + i * size).astype(np.int32),
               rng=rng.integers(0, 2**32, size, dtype=np.uint32)) for i in range(count)]


def train(option, parallel, devices):
  """Return loss and gradient norm of three steps, and the sum of squares of each parameter after them."""
  recipe = tiny.config('', **{'data.image_size': 16, 'data.batch_size': 16})
  recipe.model.update(OPTIONS[option])
  recipe.train.ema_decay = None
  config = dataclasses.replace(config_lib.read(recipe), parallel=parallel)
  strategy = make_strategy(config, jax.devices()[:devices])
  program = build_program(config, strategy, DatasetInfo(num_examples=300, num_classes=10, channels=1))
  state = program.strategy.create(program.create)
  step = program.strategy.compile(program.step, donate=True)
  lines = []
  for batch in batches(3, 16):
    state, metrics = jax.block_until_ready(step(state, program.strategy.put(batch)))
    lines.append([float(mean_of(metrics[name])) for name in ('loss', 'grad_norm')])
  params = flatten(program.strategy.fetch(state).params)
  # Softmax cancels the key bias: its true gradient is zero, and Adam turns rounding errors into steps.
  sums = {path: float(jnp.sum(jnp.square(leaf))) for path, leaf in params.items() if not path.endswith('key/bias')}
  return dict(lines=lines, sums=sums)


def main(options):
  """Print the results of the given options."""
  print(json.dumps({option: {name: train(option, *strategy) for name, strategy in STRATEGIES.items()}
                    for option in options}))


if __name__ == '__main__':
  main(sys.argv[1:])
