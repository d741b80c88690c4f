"""The teacher of a distillation: loaded once, matched with the classes of the data, given to the objective."""
from collections.abc import Sequence
from typing import Any

from absl import logging
from flax import nnx

from vit_jax.base.errors import FileError, UserError
from vit_jax.base.preprocessing import Normalization
from vit_jax.data.sources.info import DatasetInfo
from vit_jax.objectives.base import Teacher
from vit_jax.pretrained.classes import imagenet
from vit_jax.pretrained.classes.names import find_order, permute_head
from vit_jax.pretrained.formats.weights import Weights, abstract_model
from vit_jax.pretrained.load import log_notes, read

Params = dict[str, Any]


def load(source: str, info: DatasetInfo, class_names: Sequence[str] | None) -> tuple[Teacher, Params]:
  """Return a teacher and its parameters, float32 NumPy arrays.

  Args:
    source: anything that `vit_jax.load` reads.
    info: of the training data.
    class_names: of the training data; None if it was not opened: then only their number is checked.

  Raises:
    UserError: it cannot be read, has no head, or is for other images or classes than the data has.
  """
  try:
    weights = read(source)
  except (UserError, FileError) as error:
    raise type(error)(f'objective.teacher: {error}. A run needs its teacher to start, to resume and to be evaluated: '
                      'checkpoints do not hold it. If it was moved, put a link to it where it was') from error
  log_notes(weights, source)
  weights = _matched(imagenet.with_names(weights, source), source, info, class_names)
  if weights.config.channels != info.channels:
    raise UserError(f'objective.teacher: {source} takes images of {weights.config.channels} channels, the data has '
                    f'{info.channels}. --config.data.channels={weights.config.channels} decodes it so')
  graphdef, _ = nnx.split(abstract_model(weights.config), nnx.Param)
  preprocessing = weights.preprocessing
  teacher = Teacher(lambda params: nnx.merge(graphdef, params), weights.config.image_size,
                    Normalization(preprocessing.mean, preprocessing.std), weights.loss)
  return teacher, weights.params


def _matched(weights: Weights, source: str, info: DatasetInfo, class_names: Sequence[str] | None) -> Weights:
  """Return weights whose logits are in the order of the data's classes."""
  classes, fix = weights.config.num_classes, 'choose a teacher that was trained on the classes of the data'
  if classes != info.num_classes:
    had = 'has no head' if classes is None else f'tells {classes:,} classes apart'
    raise UserError(f'objective.teacher: {source} {had}, the data has {info.num_classes:,} classes; {fix}')
  if class_names is None:
    return weights
  if weights.class_names is None:
    logging.warning('objective.teacher: %s does not name its classes; they are assumed to be those of the data, in the '
                    'same order', source)
    return weights
  order = find_order(weights.class_names, class_names)
  if order is None:
    theirs = sorted(set(weights.class_names) - set(class_names))[:5]
    ours = sorted(set(class_names) - set(weights.class_names))[:5]
    raise UserError(f'objective.teacher: the classes of {source} are not those of the data: only the teacher has '
                    f'{theirs}, only the data has {ours}; {fix}')
  weights.params.update(permute_head(weights.params, abstract_model(weights.config).head_paths, order))
  return weights
