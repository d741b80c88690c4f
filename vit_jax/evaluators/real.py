"""Accuracy where an image can have any number of right answers, such as ImageNet-ReaL (arXiv 2006.07159)."""
from collections.abc import Mapping
import dataclasses
import json
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.base import files
from vit_jax.base.errors import FileError, MissingFileError, UserError
from vit_jax.data.sources.base import Source
from vit_jax.evaluators.base import Direction, EvalContext
from vit_jax.pretrained.classes import imagenet
from vit_jax.pretrained.classes.names import find_order
from vit_jax.training.state import model_params

_FIX = 'it is at https://github.com/google-research/reassessed-imagenet'


@dataclasses.dataclass(frozen=True)
class RealConfig:
  """Section `evaluators.NAME` of kind 'real'.

  Attributes:
    kind: a row of `evaluators.EVALUATORS`.
    split: split string to evaluate.
    labels: the file real.json, local or gs://, whose labels replace those of ImageNet's validation images; None: the
      data itself has any number of classes per image, such as `imagenet2012_real` and `objectnet:PATH`.
  """
  kind: str = 'real'
  split: str = 'validation'
  labels: str | None = None

  def __post_init__(self) -> None:
    if self.labels is not None and not files.is_remote(self.labels):  # so that a run resumes from another directory
      object.__setattr__(self, 'labels', os.fspath(files.expand(self.labels)))


class Real:
  """Counts a prediction as right if it is one of the image's labels; images without labels do not count.

  Args:
    config: options.
    context: of the run.

  Raises:
    UserError: no head, no file of labels, data of other classes than ImageNet-1k's or of other images.
  """

  Config = RealConfig

  def __init__(self, config: RealConfig, context: EvalContext):
    top = min(5, context.require_head(config.kind))

    def step(params: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
      logits, labels = context.logits(model_params(params), batch['image']), batch['label']
      found = jnp.take_along_axis(labels, jax.lax.top_k(logits, top)[1], axis=1) > 0
      return context.strategy.gather(dict(
          accuracy=found[:, 0], top_5_accuracy=found.any(axis=1), counts=batch['mask'] & (labels > 0).any(axis=1)))

    self.metrics: Mapping[str, Direction] = {'accuracy': 'max', **({'top_5_accuracy': 'max'} if top == 5 else {})}
    self._step = context.strategy.compile(step, donate=False)
    self._context = context
    source = context.data.eval_source(config.split)
    if config.labels is not None:
      source = relabel(source, config.labels)
    elif not source.multi_label:
      raise UserError(f"evaluators: kind 'real' needs labels=PATH of real.json, as {source.name} {source.split} has "
                      f'one class per image; {_FIX}')
    self._batches = context.data.batches_of(source, context.batch_size)

  def __call__(self, params: Any, averages: Any) -> dict[str, float]:
    """Return {'accuracy': 0..1, 'top_5_accuracy': 0..1}, the latter with at least 5 classes; NaN without labels."""
    del averages
    right, counted = dict.fromkeys(self.metrics, 0), 0
    for batch in self._batches:
      found = jax.device_get(self._step(params, self._context.put(batch)))
      counted += int(found['counts'].sum())
      right = {name: count + int((found[name] & found['counts']).sum()) for name, count in right.items()}
    return {name: count / counted if counted else float('nan') for name, count in right.items()}


def relabel(source: Source, path: files.PathLike) -> Source:
  """Return ImageNet's validation images with the labels of real.json, matched by file name.

  Args:
    source: records with a feature `file_name`, or files, named ILSVRC2012_val_00000001.JPEG and so on.
    path: see `read_labels`.

  Raises:
    UserError: other classes than those of ImageNet-1k, in any order, or other file names.
  """
  labels = read_labels(path)
  order = find_order(source.class_names, imagenet.ids())
  if order is None:
    raise UserError(f'evaluators: the labels in {path} are classes of ImageNet-1k, which {source.name} does not have: '
                    f'{source.num_classes:,} classes, such as {source.class_names[0]!r}')
  places = np.asarray(order)
  relabeled = source.with_labels({name: places[classes].tolist() for name, classes in labels.items()})
  _ = relabeled[0]  # an error here, not after compilation
  return relabeled


def read_labels(path: files.PathLike) -> dict[str, list[int]]:
  """Return {file name: classes}, 0..999, of real.json, whose item i is that of ILSVRC2012_val_{i + 1:08d}.JPEG.

  Raises:
    UserError: not a list of lists of classes.
    FileError: it cannot be read.
  """
  try:
    items = json.loads(files.expand(path).read_bytes())
  except FileNotFoundError as error:
    raise MissingFileError(f'evaluators: {path}: not found; {_FIX}') from error
  except OSError as error:
    raise FileError(f'evaluators: {path}: cannot read it: {error.strerror or error}') from error
  except ValueError as error:
    raise UserError(f'evaluators: {path}: not JSON: {error}; download it again: {_FIX}') from error
  is_class = lambda value: type(value) is int and 0 <= value < imagenet.NUM_CLASSES
  if not isinstance(items, list) or not all(isinstance(item, list) and all(map(is_class, item)) for item in items):
    raise UserError(f'evaluators: {path}: expected a list with a list of classes 0..999 for every image; {_FIX}')
  return {f'ILSVRC2012_val_{number:08d}.JPEG': item for number, item in enumerate(items, 1)}
