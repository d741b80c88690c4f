"""The features of a run's splits, computed once per evaluation whatever number of evaluators reads them."""
from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple

from vit_jax.base.errors import UserError
from vit_jax.data.loading.dataset import Dataset
from vit_jax.data.loading.loader import Loader
from vit_jax.evaluators.frozen.features import FeaturePass, Features

Key = tuple[str | None, str | None, str | None, str | None]


class Split(NamedTuple):
  """A split that evaluators share.

  Attributes:
    key: what it was opened by.
    batches: one pass over it.
    num_examples: in it.
    num_classes: of its dataset.
  """
  key: Key
  batches: Loader
  num_examples: int
  num_classes: int


class FeatureStore:
  """Opens splits and remembers their features until `forget`.

  Args:
    feature_pass: computes features.
    data: of the run.
    batch_size: global batch.
    on_batch: called after every batch.
  """

  def __init__(self, feature_pass: FeaturePass, data: Dataset, batch_size: int, on_batch: Callable[[], None]):
    self._pass, self._data, self._batch_size, self._on_batch = feature_pass, data, batch_size, on_batch
    self._datasets: dict[Key, Dataset] = {}
    self._splits: dict[Key, Split] = {}
    self._found: dict[tuple[int, Key], tuple[Any, Features]] = {}

  def open(self, name: str | None, data_dir: str | None, train_split: str | None, test_split: str | None) -> Split:
    """Return a split of the run's dataset or of another one, whose images are prepared in the same way.

    Args:
      name: of the other dataset; None is the run's own.
      data_dir: of the other dataset.
      train_split: its training split; None is the run's own, or 'train'.
      test_split: the split to open; None opens the training split.

    Raises:
      UserError: no such dataset or split; images with any number of classes; a test split with other classes than the
        training split.
    """
    if name is None and (test_split is not None or train_split == self._data.config.train_split):
      train_split = None  # the run's own dataset has it
    key = (name, data_dir, train_split, test_split)
    if key not in self._splits:
      data = self._dataset(name, data_dir, train_split)
      if data.source.multi_label:
        raise UserError(f'evaluators: the dataset {data.source.name!r} has any number of classes per image; evaluators '
                        "on frozen features need exactly one. The kind 'average_precision' takes many")
      if test_split is None:
        source, batches = data.source, data.eval_train_split(self._batch_size)
      else:
        source, batches = data.eval_source(test_split), data.eval_batches(test_split, self._batch_size)
      self._splits[key] = Split(key, batches, len(source), source.num_classes)
    return self._splits[key]

  def features(self, params: Any, split: Split) -> Features:
    """Return the features of a split, computed the first time since `forget` that these parameters are given.

    Args:
      params: on the devices; the same object means the same values.
      split: from `open`.
    """
    key = (id(params), split.key)
    if key not in self._found:  # with the parameters, so that no other object can have their id
      self._found[key] = params, self._pass(params, split.batches, split.num_classes, lambda done: self._on_batch())
    return self._found[key][1]

  def forget(self) -> None:
    """Free all features; parameters are about to change."""
    self._found.clear()

  def _dataset(self, name: str | None, data_dir: str | None, train_split: str | None) -> Dataset:
    key = (name, data_dir, train_split, None)
    if (name, train_split) == (None, None):
      return self._data
    if key not in self._datasets:
      own = self._data.config
      changes = dict(train_split=train_split) if name is None else dict(
          name=name, data_dir=data_dir, train_split=train_split or 'train', exclude=None,
          channels=self._data.source.channels)
      self._datasets[key] = self._data.of(dataclasses.replace(own, **changes))
    return self._datasets[key]
