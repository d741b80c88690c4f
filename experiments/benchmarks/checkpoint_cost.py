"""What a checkpoint costs a run: `python -m experiments.benchmarks.checkpoint_cost --output=DIR`.

Saves a training state of a published ViT several times, as a run does. Prints how long each save blocks the training
loop, as seconds and as a share of a two-minute interval; how long the whole save takes; and how long a restore takes.
Needs disk space for three checkpoints, and memory for about three copies of the state.
"""
from collections.abc import Sequence
import shutil
import statistics
import time
from typing import Any

from absl import app, flags, logging
import jax
import numpy as np

from vit_jax import recipe
from vit_jax.base import files
from vit_jax.planning import planner
from vit_jax.run import build
from vit_jax.run import config as config_lib
from vit_jax.rundir.checkpoint import CheckpointConfig, Checkpoints
from vit_jax.rundir.record import RunRecord

_INTERVAL = 120.0  # seconds between two saves

_RECIPE = flags.DEFINE_string('recipe', 'vit:l16,imagenet', 'Whose state is saved.')
_OUTPUT = flags.DEFINE_string('output', 'runs/checkpoint_cost', 'Folder to write to; removed at the end.')
_SAVES = flags.DEFINE_integer('saves', 3, 'Number of saves.')


def abstract_state(name: str) -> Any:
  """Return the shapes of a recipe's training state, on no device."""
  config = config_lib.read(recipe(name))
  program = build.build_program(config, build.make_strategy(config), planner.dataset_info(config))
  return program.abstract_state().to_save()


def random_leaf(rng: np.random.Generator, x: jax.ShapeDtypeStruct) -> np.ndarray:
  """Return numbers that do not compress well, as those of a trained model."""
  if np.issubdtype(x.dtype, np.integer):
    return np.zeros(x.shape, x.dtype)
  return rng.standard_normal(x.shape, np.float32).astype(x.dtype)


def main(argv: Sequence[str]) -> None:
  """Measure and print."""
  del argv
  logging.set_verbosity(logging.WARNING)  # Orbax logs 50 lines per checkpoint
  folder = files.expand(_OUTPUT.value)
  abstract = abstract_state(_RECIPE.value)
  rng = np.random.default_rng(0)
  state = jax.tree.map(lambda x: random_leaf(rng, x), abstract)
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  record = RunRecord(config={}, class_names=(), channels=3, image_size=(224, 224), versions={})
  checkpoints = Checkpoints(folder / 'checkpoints', CheckpointConfig())
  held, whole = [], []
  for step in range(1, _SAVES.value + 1):
    start = time.monotonic()
    checkpoints.save(step, state, record)
    held.append(time.monotonic() - start)
    checkpoints.wait()
    whole.append(time.monotonic() - start)
    print(f'save {step}: blocks the loop for {held[-1]:.2f} s, done after {whole[-1]:.1f} s', flush=True)
  start = time.monotonic()
  checkpoints.restore(_SAVES.value, abstract)
  restored = time.monotonic() - start
  checkpoints.close()
  shutil.rmtree(folder)
  wait = statistics.median(held)
  print(f'{_RECIPE.value}: {size / 1e9:.2f} GB; a save blocks the loop for {wait:.2f} s (median), '
        f'{wait / _INTERVAL:.1%} of {_INTERVAL:.0f} s; a whole save takes '
        f'{statistics.median(whole):.1f} s, a restore with all checks {restored:.1f} s')


if __name__ == '__main__':
  app.run(main)
