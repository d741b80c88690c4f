"""Train a model from Python: `train.run(config, workdir)`."""
from collections.abc import Callable, Mapping
import contextlib
from typing import Any

import jax

from vit_jax.base.files import PathLike
from vit_jax.base.machine import memory
from vit_jax.distributed import hosts
from vit_jax.guards.signals import StopRequest
from vit_jax.guards.watchdog import Watchdog
from vit_jax.pretrained import transfer
from vit_jax.pretrained.formats.weights import Weights
from vit_jax.run import claim, start
from vit_jax.run import config as config_lib
from vit_jax.run.build import Parts, build
from vit_jax.run.config import Recipe
from vit_jax.run.loop import Loop, describe
from vit_jax.run.recovery import Recovery
from vit_jax.run.writer import Writer
from vit_jax.rundir.checkpoint import Checkpoints
from vit_jax.rundir.layout import RunDir


def run(config: Recipe, workdir: PathLike) -> dict[str, float]:
  """Train what a config describes, or resume the run in `workdir`.

  Args:
    config: a recipe, see `configs/` and `vit_jax.recipe`.
    workdir: local or gs:// directory for config, metrics and checkpoints; made if missing.

  Returns:
    {metric: value} of the last evaluation, such as {'test/accuracy': 0.98}.

  Raises:
    UserError: a bad config, or a workdir that another run is using or that holds another config's run.
    FileError: a workdir that cannot be made or written.
  """
  run_dir = RunDir(workdir)
  recipe, weights = transfer.fill_model(config_lib.as_dict(config), run_dir)
  parts = build(recipe)
  hosts.check_processes_match(start.shared_properties(parts), _differences)
  with claim.claim(run_dir, parts.config) as check_lock:
    return _train(parts, run_dir, weights, check_lock)


def _train(parts: Parts, run_dir: RunDir, weights: Weights | None, check_lock: Callable[[], None]) -> dict[str, float]:
  """Train in a run directory that is ours, see `run`; before a save `check_lock()` says whether it still is."""
  checkpoints = Checkpoints(run_dir.checkpoints_path, parts.config.checkpoint, parts.pace,
                            better=parts.metrics.get(parts.config.checkpoint.best, 'max'), check_lock=check_lock)
  at = start.restore(parts, checkpoints)
  hosts.check_equal(at.step, 'latest checkpoints (step)')  # a network file system may be behind on one of them
  writer = Writer(run_dir, parts.num_steps, at.step, active=jax.process_index() == 0)
  minutes = parts.config.train.hang_timeout.minutes or 0.0
  with (StopRequest() as stop, Watchdog(60 * minutes, stop, writer.log_descriptor) as watchdog,
        contextlib.closing(checkpoints), writer):
    if at.step == parts.num_steps and not at.record.evaluation_due:
      writer.say(f'The run in {run_dir} is finished: step {at.step}, {describe(at.record.metrics)}. Nothing to do.')
      return at.record.metrics
    start.check_same_records(parts, at)
    writer.say(start.greeting(parts, run_dir, at))
    if warning := start.ema_warning(parts.config.train, parts.num_steps):
      writer.say(warning)
    if at.step == 0 and parts.config.init:
      start.from_weights(parts, at, weights, writer)
    writer.say(parts.overview)
    recovery = Recovery(parts, checkpoints, writer, run_dir, lambda step: start.restore(parts, checkpoints, step))
    with memory.explain_out_of_memory(parts.config):
      return Loop(parts, checkpoints, writer, stop, recovery, watchdog).run(at).record.metrics


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
  may_differ = [f'config.{key}' for key in config_lib.MAY_DIFFER_BETWEEN_PROCESSES]
  return config_lib.difference(theirs, ours, may_differ)
