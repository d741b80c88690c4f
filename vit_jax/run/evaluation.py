"""Evaluate the checkpoint of a run, on any number of devices."""
from collections.abc import Mapping
from typing import Any

from vit_jax.base.errors import UserError
from vit_jax.base.files import PathLike
from vit_jax.distributed import strategy as strategy_lib
from vit_jax.distributed.strategy import ParallelConfig
from vit_jax.run import config as config_lib
from vit_jax.run import loop, start
from vit_jax.run.build import Parts, build
from vit_jax.rundir.checkpoint import Checkpoints, pick_step
from vit_jax.rundir.layout import RunDir


def evaluate(workdir: PathLike, step: int | None = None,
             data_dir: str | None = None) -> tuple[int, dict[str, float], dict[str, Any]]:
  """Evaluate the checkpoint of a step.

  Args:
    workdir: of a run.
    step: of the checkpoint; None is the latest.
    data_dir: replaces config.data.data_dir unless None.

  Returns:
    (step, {metric: value}, {metric: value} that the run recorded at that step).

  Raises:
    UserError: no run or no such checkpoint there.
  """
  run_dir = RunDir(workdir)
  config = run_dir.read_config()
  if data_dir is not None:
    config['data']['data_dir'] = data_dir
  parts = build_on_any_devices(config)
  checkpoints = Checkpoints(run_dir.checkpoints_path, parts.config.checkpoint, read_only=True)
  try:
    at = start.restore(parts, checkpoints, pick_step(checkpoints.steps(), step, run_dir), any_class_order=True)
  finally:
    checkpoints.close()
  return at.step, loop.evaluate(parts, at.state), run_dir.metrics_at(at.step)


def build_on_any_devices(config: Mapping[str, Any]) -> Parts:
  """Build the run; if its mesh or batch does not fit these devices, fall back to one that gives the same metrics."""
  try:
    return build(config)
  except UserError as error:
    reason = error
  own = config_lib.read(config).parallel
  for parallel in (own, *strategy_lib.FOR_EVALUATION):
    try:
      return build(_fitted(config, parallel))
    except UserError as error:  # the last fallback always fits: any number of devices can hold whole models
      reason = error
  raise reason


def _fitted(config: Mapping[str, Any], parallel: ParallelConfig) -> dict[str, Any]:
  """Return the config without what asks for a number of devices. A device holds as many images as before, or fewer."""
  data, micro_batch = config['data'], config['train'].get('micro_batch')
  num_shards = strategy_lib.build(parallel).num_shards
  images = -(-data['batch_size'] // num_shards)
  images = images if micro_batch is None else min(images, micro_batch)
  return dict(config, data=dict(data, batch_size=images * num_shards, repeats=1),
              train=dict(config['train'], micro_batch=None), mix={}, parallel=vars(parallel))
