"""Evaluate the checkpoint of a run, or any weights on any data, on any number of devices."""
from collections.abc import Mapping
import dataclasses
import re
import sys
from typing import Any

import jax

from vit_jax.base import files
from vit_jax.base import sections as sections_lib
from vit_jax.base.errors import UserError
from vit_jax.base.files import PathLike
from vit_jax.base.text import listing, printable
from vit_jax.data.loading.config import DataConfig
from vit_jax.data.sources import registry
from vit_jax.data.sources.base import Source
from vit_jax.distributed import strategy as strategy_lib
from vit_jax.distributed.strategy import ParallelConfig
from vit_jax.evaluators import tables
from vit_jax.evaluators.base import Evaluator
from vit_jax.evaluators.classification import Classification
from vit_jax.pretrained import load
from vit_jax.pretrained.adapt import Adaptation, adapt
from vit_jax.pretrained.classes import imagenet, names
from vit_jax.pretrained.formats.base import ImageSize
from vit_jax.pretrained.formats.weights import Weights, abstract_model
from vit_jax.run import config as config_lib
from vit_jax.run import loop, start
from vit_jax.run.build import Parts, build
from vit_jax.rundir.checkpoint import Checkpoints
from vit_jax.rundir.layout import RunDir
from vit_jax.rundir.restoring import pick_step


def evaluate(workdir: PathLike, step: int | None = None, data_dir: str | None = None,
             output: PathLike | None = None) -> tuple[int, dict[str, float], dict[str, Any]]:
  """Evaluate the checkpoint of a step.

  Args:
    workdir: of a run.
    step: of the checkpoint; None is the latest.
    data_dir: replaces config.data.data_dir unless None.
    output: directory for tables of what classifiers predicted, output/NAME/per_class.csv and more, see `tables.write`;
      None writes none.

  Returns:
    (step, {metric: value}, {metric: value} that the run recorded at that step).

  Raises:
    UserError: no run or no such checkpoint there.
    FileError: `output` cannot be written.
  """
  run_dir = RunDir(workdir)
  config = run_dir.read_config()
  if data_dir is not None:
    config['data']['data_dir'] = data_dir
  parts = build_on_any_devices(config)
  measure = _measure(parts, output)
  checkpoints = Checkpoints(run_dir.checkpoints_path, parts.config.checkpoint, read_only=True)
  try:
    at = start.restore(parts, checkpoints, pick_step(checkpoints.steps(), step, run_dir), any_class_order=True)
  finally:
    checkpoints.close()
  return at.step, loop.evaluate(parts, at.state, measure), run_dir.metrics_at(at.step)


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


# Keys of section `data` that only training reads.
_TRAINING_KEYS = ('train_split', 'train_transform', 'repeats', 'exclude')
_SPLITS = ('test', 'validation', 'val')
_IMAGES_PER_DEVICE = 32


def evaluate_weights(source: PathLike, sections: Mapping[str, Mapping[str, Any]], *, split: str | None = None,
                     ema: bool = False, step: int | None = None, trained_at: ImageSize = None,
                     class_names: tuple[str, ...] | None = None, output: PathLike | None = None) -> dict[str, float]:
  """Evaluate weights on a dataset, without a recipe; what is assumed is printed to standard error.

  Images are prepared as the weights say, and read with as many channels as the model takes. The classes of the model
  are matched with those of the data by name.

  Args:
    source: of the weights, see `load.read`.
    sections: {section: {key: value}} of 'data', 'normalization', 'evaluators' and 'parallel'. `data.name` must be
      given. No evaluators: one named like the split, of kind 'classification' or, where images have any number of
      classes and the model a softmax, 'real'.
    split: to evaluate; None: `test`, `validation` or `val`, the first that has labels.
    ema, step, trained_at, class_names: see `load.read`.
    output: see `evaluate`.

  Returns:
    {'NAME/METRIC': value} of all evaluators.

  Raises:
    UserError: weights that cannot be read or have no head, other classes than those of the data, no such dataset or
      split, or a bad key.
  """
  data = _data_keys(sections.get('data') or {})
  opened = _open_split(data, split)
  weights = load.read(source, trained_at=trained_at, image_size=data.get('image_size'), class_names=class_names,
                      ema=ema, step=step)
  weights = imagenet.with_names(weights, source)
  load.log_notes(weights, source)
  weights, lines = adapt(weights, Adaptation(data.get('image_size'), channels=data.get('channels')))
  weights, line = _match_classes(weights, opened, source)
  parts = build(_config(weights, opened, data, sections))
  measure = _measure(parts, output)
  _say([*lines, *([line] if line else []), _describe(parts, source)])
  params = parts.strategy.place(weights.params)
  return {f'{name}/{metric}': value for name, evaluator in parts.evaluators.items()
          for metric, value in measure(name, evaluator, params, {}).items()}


def _measure(parts: Parts, output: PathLike | None) -> loop.Measure:
  """Return what measures and, unless `output` is None, writes what classifiers predicted, in the same pass."""
  if output is None:
    return loop.call_evaluator
  tables.make_directory(output)

  def measure(name: str, evaluator: Evaluator, params: Any, averages: Any) -> dict[str, float]:
    if not isinstance(evaluator, Classification):
      return evaluator(params, averages)
    tally = evaluator.tally(params, confusion=True)
    if jax.process_index() == 0:
      tables.write(tally, parts.data.source.class_names, files.expand(output) / name)
    return evaluator.select(tally)

  return measure


def _data_keys(given: Mapping[str, Any]) -> dict[str, Any]:
  """Return section `data` if an evaluation can use all its keys."""
  data = dict(given)
  sections_lib.reject_unknown(data, {field.name for field in dataclasses.fields(DataConfig)} - {*_TRAINING_KEYS},
                              'data')
  if not data.get('name'):
    raise UserError('data.name: missing; name the data to evaluate on, such as --config.data.name=folder:flowers')
  return data


def _open_split(data: Mapping[str, Any], split: str | None) -> Source:
  """Open the split that is asked for, or the first of the usual ones that has labels."""
  name, data_dir = data['name'], data.get('data_dir')
  if split is not None:
    return registry.open_source(name, split, data_dir)
  there = registry.split_names(name, data_dir)
  for candidate in _SPLITS if len(there) > 1 else there:
    if candidate in there:
      source = registry.open_source(name, candidate, data_dir)
      if source[0]['label'] != -1:  # TFDS's mark of a split without labels, such as ImageNet's test split
        return source
  raise UserError(f'--split: missing; {name} has no labeled split called {" or ".join(_SPLITS)}; choose from {there}')


def _match_classes(weights: Weights, data: Source, source: PathLike) -> tuple[Weights, str | None]:
  """Return weights whose logits are in the order of the data's classes, and a message about it."""
  theirs, ours = weights.class_names, data.class_names
  where = f'{data.name} {data.split}'
  if weights.config.num_classes is None:
    raise UserError(f'model: {source} has no head, so it predicts no classes. To measure its features: '
                    f'python -m vit_jax.probe --model={source} --config.data.name={data.name}')
  if weights.config.num_classes != len(ours):
    raise UserError(f'model: {source} has {weights.config.num_classes:,} classes, {where} has {len(ours):,}: '
                    f'{listing(ours, 5, "; ")}. Fine-tune it first (configs/finetune.py), or evaluate it on data with '
                    'its classes')
  if theirs is None:
    return weights, (f'warning: the weights have no class names; logit i is taken for class i of the data '
                     f'({listing(ours, 5, "; ")}). To match them by name: --classes=FILE')
  order = names.find_order(theirs, ours)
  if order == list(range(len(ours))):
    return weights, None
  if order is not None:
    params = names.permute_head(weights.params, abstract_model(weights.config).head_paths, order)
    moved = sum(old != new for new, old in enumerate(order))
    return (dataclasses.replace(weights, params=params, class_names=ours),
            f'the data has the classes of the model in another order; {moved:,} of {len(ours):,} matched by name')
  fix = 'Name the classes of the weights as the data does: --classes=FILE'
  if common := set(theirs) & set(ours):
    raise UserError(f'model: {source} has other classes than {where}: {len(common):,} of {len(ours):,} names are the '
                    f'same; only there: {listing(sorted(set(theirs) - common), 5, "; ")}; only here: '
                    f'{listing(sorted(set(ours) - common), 5, "; ")}. {fix}')
  return weights, (f'warning: the classes of the model have other names: {listing(theirs, 5, "; ")}; those of the '
                   f'data: {listing(ours, 5, "; ")}. Logit i is taken for class i. {fix}')


def _config(weights: Weights, source: Source, data: Mapping[str, Any],
            sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """Return the config of a run that these weights could be of, for `build`; nothing of it is trained."""
  preprocessing = weights.preprocessing
  parallel = sections_lib.read(ParallelConfig, sections.get('parallel'), 'parallel')
  defaults = dict(batch_size=_IMAGES_PER_DEVICE * strategy_lib.build(parallel).num_shards,
                  eval_transform=preprocessing.transform, channels=weights.config.channels)
  name = re.split(r'\W', source.split)[0]
  evaluators = sections.get('evaluators') or {name: {}}
  # A softmax says which class an image has, not how many: it is right with any of them.
  kind = 'real' if source.multi_label and weights.loss == 'softmax' else 'classification'
  return dict(
      data={**defaults, **data, 'image_size': weights.config.image_size, 'train_split': source.split},
      model=sections_lib.to_dict(weights.config), parallel=vars(parallel),
      normalization={'mean': preprocessing.mean, 'std': preprocessing.std, **(sections.get('normalization') or {})},
      objective=dict(kind='classification', loss='sigmoid' if source.multi_label else weights.loss),
      train=dict(duration='1 steps'),
      evaluators={name: {'kind': kind, 'split': source.split, **keys} for name, keys in evaluators.items()})


def _describe(parts: Parts, source: PathLike) -> str:
  """Return what is evaluated and how images are prepared, in a line."""
  data, normalization, size = parts.config.data, parts.config.normalization, parts.data.image_size
  color = 'in gray' if parts.data.source.channels == 1 else 'in color'
  return (f'{source} on {data.name}: {parts.num_params:,} parameters; images {size[0]} × {size[1]}, {color}, prepared '
          f'by {data.eval_transform!r}, mean {normalization.mean}, std {normalization.std}')


def _say(lines: list[str]) -> None:
  """Print to standard error, once however many processes evaluate."""
  if jax.process_index() == 0:
    print(printable('\n'.join(lines)), file=sys.stderr, flush=True)
