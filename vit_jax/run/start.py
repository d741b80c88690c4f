"""Where a run starts: at a checkpoint, at weights of another run or format, or at random numbers."""
import dataclasses
import sys
from typing import Any

from absl import logging
import jax

from vit_jax.base import platform
from vit_jax.base.errors import UserError
from vit_jax.data.loading import replaced
from vit_jax.distributed import hosts
from vit_jax.pretrained import transfer
from vit_jax.pretrained.classes.names import find_order, permute_head
from vit_jax.pretrained.formats.weights import Weights
from vit_jax.run.build import Parts
from vit_jax.run.config import TrainConfig
from vit_jax.run.recovery import LoopState
from vit_jax.run.writer import Writer
from vit_jax.rundir.checkpoint import Checkpoints
from vit_jax.rundir.record import RunRecord
from vit_jax.training.state import TrainState, join_params, model_params, own_params

_TOLERATED_START = 0.3  # share of the initial parameters in the EMA at the end of a run


def restore(parts: Parts, checkpoints: Checkpoints, step: int | None = None, *,
            any_class_order: bool = False) -> LoopState:
  """Return the state to resume from.

  Args:
    parts: of the run.
    checkpoints: of the run.
    step: which checkpoint; None is the latest that is whole, or a new state if there is none.
    any_class_order: whether the data may have the same classes in another order, so that the head's rows are moved; for
      an evaluation, as the optimizer's state stays as it is.

  Raises:
    UserError: the checkpoint cannot be read, or is of another model, or of other classes than the data has.
  """
  abstract = parts.strategy.abstract(jax.eval_shape(parts.create))
  found = (checkpoints.restore_latest(abstract, hosts.exchange) if step is None
           else (step, *checkpoints.restore(step, abstract)))
  if found is None:
    state = parts.strategy.create(parts.create)
    # Not made by the program that makes the rest, which would hold the teacher's parameters as its own constants.
    state = state if parts.constants is None else _place(parts, state)
    return LoopState(0, state, None, make_record(parts))
  step, state, record = found
  names, order = parts.data.source.class_names, None
  changed = record.class_names != names and parts.objective.reads_labels
  if changed and any_class_order and getattr(parts.config.objective, 'class_weights', None) is None:
    order = find_order(record.class_names, names)
  if changed and order is None:
    raise UserError(f'data.name: the classes of {parts.config.data.name} have changed since step {step}: they were '
                    f'{list(record.class_names)}, they are {list(names)}; labels would be mixed up')
  _check_shapes(state, abstract, step)
  if order is not None:
    return LoopState(step, _place(parts, _reorder(state, parts, order)), record.position, record)
  return LoopState(step, _place(parts, state), record.position, make_record(parts, record))


def _check_shapes(state: TrainState, abstract: TrainState, step: int) -> None:
  """Raise UserError if the parameters of a checkpoint are those of another model than the config's."""
  expected = dict(jax.tree_util.tree_leaves_with_path(abstract.params))
  for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
    if path in expected and leaf.shape != expected[path].shape:
      raise UserError(f'model: the config is not that of the checkpoint of step {step}: '
                      f'{jax.tree_util.keystr(path, simple=True, separator="/")} has the shape {leaf.shape}, the '
                      f'config means {expected[path].shape}. Write the value of "config" in run/metadata of the '
                      'checkpoint to config.json')


def _place(parts: Parts, state: TrainState) -> TrainState:
  """Return a state on the devices, with the constants that its objective reads."""
  return parts.strategy.place(dataclasses.replace(state, constants=parts.constants))


def _reorder(state: TrainState, parts: Parts, order: list[int]) -> TrainState:
  """Return a state whose model, and its EMA, gives the logits in another order of the classes."""
  permute = jax.jit(lambda params: permute_head(params, parts.model.head_paths, order))
  permuted = lambda params: join_params(permute(model_params(params)), own_params(params))
  return dataclasses.replace(state, params=permuted(state.params),
                             ema=None if state.ema is None else permuted(state.ema))


def make_record(parts: Parts, before: RunRecord | None = None) -> RunRecord:
  """Return the record of a run as it is now.

  Args:
    parts: of the run.
    before: the record of the checkpoint that the run resumes from, which keeps all but the config: how often to log,
      evaluate and save may have changed.
  """
  source = parts.data.source
  config = parts.config.to_dict()
  if before is not None:
    return dataclasses.replace(before, config=config, examples=before.examples or len(source),
                               fingerprint=before.fingerprint or source.fingerprint)
  return RunRecord(config=config, class_names=source.class_names, channels=source.channels, examples=len(source),
                   fingerprint=source.fingerprint, image_size=parts.data.image_size, versions=platform.versions())


def check_same_records(parts: Parts, at: LoopState) -> None:
  """Raise UserError if the data position would mean other examples than when it was saved, or other images.

  The record gets what the images are now.
  """
  source, exclude = parts.data.source, parts.config.data.exclude
  if at.record.fingerprint == source.fingerprint:
    if jax.process_index() == 0:
      _check_same_images(parts, at)
    return
  before, now = at.record.examples or 0, len(source)
  changed = f'there were {before:,}, there are {now:,}' if before != now else f'there are still {now:,}, but others'
  kept = 'the files' + (f' and the exclusion list {exclude}' if exclude else '')
  raise UserError(f'data.name: the training records of {source.name} {source.split} have changed since step {at.step}: '
                  f'{changed}. Resuming would leave out some of an epoch and repeat others. Bring back {kept} as they '
                  'were, or train on what is there now in another --workdir; --config.init=WORKDIR starts it from the '
                  'weights of this one')


def _check_same_images(parts: Parts, at: LoopState) -> None:
  """Raise UserError if images were replaced under the same names; warn if only their times differ."""
  source, data = parts.data.source, parts.config.data
  now = replaced.stamps(source, data.fingerprint, data.threads)
  what = replaced.difference(at.record.stamps, now)
  if what == 'times':
    logging.warning('data.name: files of %s %s were changed or copied since step %d: they have other times of the '
                    'last change, but the same sizes. From the first start with --config.data.fingerprint=content on, '
                    'what is in them is compared', source.name, source.split, at.step)
  elif what is not None:
    raise UserError(f'data.name: images of {source.name} {source.split} were replaced under the same names since step '
                    f'{at.step}: their {what} have changed. Bring back the old ones; or go on with the new ones by '
                    '--config.data.fingerprint=names, or train on them in another --workdir')
  at.record = dataclasses.replace(at.record, stamps=now)


def from_weights(parts: Parts, at: LoopState, weights: Weights | None, writer: Writer) -> None:
  """Replace the parameters of a new run by those that `config.init` names, as far as they fit.

  Args:
    parts: of the run.
    at: step 0.
    weights: what was read already; None: read it now.
    writer: where to say what was resized, reset or left out.
  """
  config = parts.config
  weights = weights or transfer.read_init(config.init or '', config.transfer)
  fresh = model_params(at.state.params)
  params, lines = transfer.fit(weights, fresh, config.model, parts.data.source.class_names, config.transfer)
  own_loss = getattr(config.objective, 'loss', weights.loss)
  reset = weights.config.num_classes is None or any(line.startswith('head: reset') for line in lines)
  if own_loss != weights.loss and not reset:
    lines.append(f'head: trained with the loss {weights.loss!r}, this run uses {own_loss!r}: '
                 f'--config.objective.loss={weights.loss}')
  writer.say('\n'.join([f'Starting from {config.init}:', *(f'  {line}' for line in lines or ['everything as it is'])]))
  params = join_params(params, own_params(at.state.params))
  ema = None if at.state.ema is None else jax.tree.map(lambda x: x.copy(), params)
  averages = None if at.state.averages is None else parts.init_objective(model_params(params))[1]
  at.state = parts.strategy.place(dataclasses.replace(at.state, params=params, ema=ema, averages=averages))


def ema_warning(config: TrainConfig, num_steps: int) -> str | None:
  """Return a warning if the EMA at the end of a run is still largely what the run started from, or None."""
  if config.ema_decay is None or config.ema_warmup:
    return None
  kept = config.ema_decay**num_steps
  if kept <= _TOLERATED_START:
    return None
  shorter = max(0.5, 1.0 - 10.0 / num_steps)  # keeps at most exp(-10) of them, if the run has 20 steps or more
  return (f'warning: train.ema_decay: after all {num_steps:,} steps the EMA is still {kept:.0%} initial parameters, '
          f'because {config.ema_decay:g} averages over about {1 / (1 - config.ema_decay):,.0f} steps. '
          f'Set train.ema_warmup=True, or train.ema_decay={shorter:.4g}')


def shared_properties(parts: Parts) -> dict[str, Any]:
  """Return what must be the same on all processes of a run."""
  source = parts.data.source
  return dict(config=parts.config.to_dict(), versions=dict(platform.versions(), python=sys.version.split()[0]),
              examples=len(source), fingerprint=source.fingerprint, class_names=source.class_names)


def greeting(parts: Parts, run_dir: object, at: LoopState) -> str:
  """Return the lines that a run starts with."""
  devices, config = jax.devices(), parts.config
  per_device = config.data.batch_size // parts.strategy.num_shards
  return '\n'.join([
      f'devices     {len(devices)} × {devices[0].device_kind} ({devices[0].platform}), '
      f'{jax.process_count()} process(es)',
      f'strategy    {parts.strategy}',
      f'batch       {config.data.batch_size} global, {per_device} per device, in {parts.num_micro_batches} '
      'micro-batch(es)',
      f'data        {config.data.name} {config.data.train_split}: {len(parts.data.source):,} examples, '
      f'{parts.data.source.num_classes} classes',
      f'input       {parts.data.describe_loading()}',
      f'parameters  {parts.num_params:,}',
      f'steps       {parts.num_steps:,}' + (f', resuming after step {at.step:,}' if at.step else ''),
      f'workdir     {run_dir}'])
