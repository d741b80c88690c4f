"""What all evaluators on frozen features share: their data, and one feature pass per split and evaluation."""
from collections.abc import Iterable, Mapping
import dataclasses
from typing import Any

import numpy as np

from vit_jax.base import sections
from vit_jax.base.errors import UserError
from vit_jax.base.text import listing
from vit_jax.data.sources import registry
from vit_jax.evaluators.base import Direction, EvalContext
from vit_jax.evaluators.frozen.features import Features


@dataclasses.dataclass(frozen=True)
class FrozenData:
  """Section `evaluators.NAME.data`: where the features come from.

  Attributes:
    name: a dataset as in `data.name`; None is the run's own. Its images are prepared as those of the run's evaluation.
    train_split: split string to learn from; None is the run's own, without what training leaves out, or with another
      dataset 'train'.
    test_split: split string to evaluate.
    data_dir: of another dataset, as in `data.data_dir`.
  """
  name: str | None = None
  train_split: str | None = None
  test_split: str = 'test'
  data_dir: str | None = None

  def __post_init__(self):
    if self.name is None and self.data_dir is not None:
      raise UserError("data.data_dir: needs the data.name of another dataset; the run's own is in config.data.data_dir")
    if self.name is not None:  # a relative path must mean the same wherever the config is read
      object.__setattr__(self, 'data_dir', registry.data_dir_of(self.name, self.data_dir))


def data_section() -> Any:
  """Return the field `data` of a section."""
  return sections.section(FrozenData)


class FrozenEvaluator:
  """An evaluator that learns from the features of a training split and is tested on those of another split.

  Args:
    data: where the features come from.
    context: of the run.

  Attributes:
    metrics: {metric: which is better}.

  Raises:
    UserError: a split that does not exist, or images with any number of classes.
  """

  needs_train = True  # whether `measure` reads the training split
  metrics: Mapping[str, Direction]

  def __init__(self, data: FrozenData, context: EvalContext):
    learned = data.train_split or (context.data.config.train_split if data.name is None else 'train')
    if self.needs_train and data.test_split == learned:
      raise UserError(f'evaluators: data.test_split {data.test_split!r} is also the training split; name another')
    self._store = context.features
    self._test = self._store.open(data.name, data.data_dir, data.train_split, data.test_split)
    self._train = self._store.open(data.name, data.data_dir, data.train_split, None) if self.needs_train else None

  def __call__(self, params: Any, averages: Any) -> dict[str, float]:
    """Return the metrics for parameters on the devices; passes over splits are shared within an evaluation."""
    del averages
    test = self._store.features(params, self._test)
    return self.measure(test if self._train is None else self._store.features(params, self._train), test)

  def measure(self, train: Features, test: Features) -> dict[str, float]:
    """Return {metric: value}; `train` is only to be read if `needs_train`."""
    raise NotImplementedError


def check_counts(kind: str, name: str, numbers: Iterable[object], least: int = 1) -> None:
  """Raise UserError unless `numbers`, the value of a key, are some different whole numbers of at least `least`."""
  found = tuple(numbers)
  if not found or len(set(found)) < len(found) or not all(type(n) is int and n >= least for n in found):
    raise UserError(f'{kind}.{name}: expected different whole numbers of at least {least}, got '
                    f'{listing(found) or "none"}')


def check_classes(train: Features) -> None:
  """Raise UserError unless a training split has images of two classes."""
  if len(present := np.unique(train.labels)) < 2:
    raise UserError(f'train_split: expected images of at least two classes, got {len(train.labels)} of class '
                    f'{present[0]} only')
