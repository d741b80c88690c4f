"""Reads the model of a training run: the parameters of a checkpoint and what its run record says."""
import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from vit_jax.base.errors import UserError
from vit_jax.base.files import PathLike
from vit_jax.base.preprocessing import Preprocessing
from vit_jax.models.registry import MODELS
from vit_jax.objectives.base import EMA
from vit_jax.pretrained.formats.weights import Params, Weights, read_config
from vit_jax.rundir import migration
from vit_jax.rundir.checks.integrity import check_claims, check_digests, read_record, reading, with_retries
from vit_jax.rundir.layout import RunDir
from vit_jax.rundir.record import RunRecord
from vit_jax.rundir.restoring import open_to_read, pick_step
from vit_jax.training.state import model_params


def read(path: PathLike, *, step: int | None = None, ema: bool = False) -> Weights:
  """Read the weights of a run's checkpoint, of this version or an older one.

  Args:
    path: run directory, local or remote.
    step: of the checkpoint; None is the latest.
    ema: whether to read the EMA of the parameters instead of the parameters: that of `train.ema_decay`, or an
      objective's teacher.

  Raises:
    UserError: there is no such checkpoint, it is damaged, or there is no EMA in it.
  """
  run_dir = RunDir(path)
  with open_to_read(run_dir.checkpoints_path) as manager:
    steps = sorted(manager.all_steps())
    step = pick_step(steps, step, run_dir)
    where = run_dir.checkpoints_path / str(step)

    def read_once() -> tuple[RunRecord, tuple[str, ...], Any]:
      with reading(where, steps):
        record = read_record(manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))['run'], where)
        check_claims(where, manager.item_metadata(step)['state'].tree)
        names = _ema_names(manager, step, run_dir) if ema else ('params',)
        return record, names, _restore_tree(manager, step, names)

    record, names, params = with_retries(read_once, where)
  check_digests(record, _nest(params, names), f'{run_dir}, step {step}')
  return _to_weights(record, params, f'{run_dir}, step {step}' + (', EMA of the parameters' if ema else ''))


def _ema_names(manager: ocp.CheckpointManager, step: int, run_dir: RunDir) -> tuple[str, ...]:
  """Return where in the state the EMA of the parameters is."""
  state = manager.item_metadata(step)['state'].tree
  if state.get('ema'):
    return ('ema',)
  if EMA in (state.get('averages') or {}):
    return ('averages', EMA)
  raise UserError(f'{run_dir}: trained without train.ema_decay, so it has no EMA of the parameters; leave out ema=True '
                  '(--ema)')


def _restore_tree(manager: ocp.CheckpointManager, step: int, names: tuple[str, ...]) -> Params:
  """Return the model's part of one tree of the state as NumPy arrays; the rest of the state is not read."""
  pick = lambda tree: functools.reduce(lambda tree, name: tree[name], names, tree)
  metadata = pick(manager.item_metadata(step)['state'].tree)
  item = _nest(jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), metadata), names)
  arguments = jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray), item)
  state = ocp.args.PyTreeRestore(item=item, restore_args=arguments, partial_restore=True)
  restored = pick(manager.restore(step, args=ocp.args.Composite(state=state))['state'])
  return model_params(migration.rename(restored, migration.new_names(migration.old_names(metadata))))


def _nest(tree: Any, names: tuple[str, ...]) -> Any:
  """Return a tree that has `tree` at names[0]/names[1]/…."""
  for name in reversed(names):
    tree = {name: tree}
  return tree


def _to_weights(record: RunRecord, params: Params, note: str) -> Weights:
  try:
    return _read_weights(record, params, note)
  except UserError:
    raise
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise UserError(f'{note}: the config in the run record is not one of a run: {error!r}') from error


def _read_weights(record: RunRecord, params: Params, note: str) -> Weights:
  config: dict[str, Any] = record.config
  model = read_config(dict(config['model'], image_size=record.image_size, channels=record.channels))
  # An objective that reads no labels trains no head.
  class_names = record.class_names if any(path in params for path in MODELS[model.kind].head_paths) else ()
  model = dataclasses.replace(model, num_classes=len(class_names) or None)
  to_tuple = lambda value: tuple(value) if isinstance(value, list) else value
  preprocessing = Preprocessing(config['data']['eval_transform'],
                                **{name: to_tuple(config['normalization'][name]) for name in ('mean', 'std')})
  return Weights(model, params, preprocessing, class_names or None, loss=config['objective'].get('loss', 'softmax'),
                 notes=(note,))
