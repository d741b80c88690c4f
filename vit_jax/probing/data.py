"""The data of a probe: splits that need not be named, images prepared as the model says."""
from collections.abc import Mapping
import dataclasses
from typing import Any, NamedTuple

from vit_jax.base import sections
from vit_jax.base.errors import UserError
from vit_jax.base.text import listing
from vit_jax.data.loading.config import DataConfig
from vit_jax.data.sources import registry

# Keys of section `data` that a probe does not read.
_UNUSED = ('batch_size', 'train_transform', 'repeats', 'cache')
_TEST_SPLITS = ('test', 'validation', 'val')


class Splits(NamedTuple):
  """The splits of a probe.

  Attributes:
    train: split string to learn from.
    test: split string to be tested on.
    note: what was chosen, if it is not evident.
  """
  train: str
  test: str
  note: str | None = None


def read_keys(given: Mapping[str, Any]) -> dict[str, Any]:
  """Return the keys of section `data` that the user gave.

  Raises:
    UserError: no name, or a key that is unknown or that a probe does not read.
  """
  sections.reject_unknown(given, {field.name for field in dataclasses.fields(DataConfig)} - {*_UNUSED}, 'data')
  if not given.get('name'):
    raise UserError('data.name: missing; name the images: --config.data.name=folder:PATH, or a TFDS dataset')
  return dict(given)


def choose_splits(data: Mapping[str, Any], test_split: str | None) -> Splits:
  """Return the splits to use: those that were named, else `train` and `test`, `validation` or `val`.

  A dataset without a test split is cut at 80 %: a folder holds the classes in proportion in every slice.

  Args:
    data: section `data`, at least its name.
    test_split: what the user named.

  Raises:
    UserError: no such dataset, or no split to choose.
  """
  name, data_dir, train_split = data['name'], data.get('data_dir'), data.get('train_split')
  there = registry.split_names(name, data_dir)
  labeled = [split for split in _TEST_SPLITS if split in there and _is_labeled(name, split, data_dir)]
  if test_split is None and labeled:
    test_split = labeled[0]
  if train_split is None:
    others = [split for split in there if split != test_split]
    train_split = 'train' if 'train' in there else others[0] if len(others) == 1 else None
  if train_split is None:
    raise UserError(f'data.train_split: missing; {name} has the splits {listing(there)}; name one')
  if test_split is not None:
    return Splits(train_split, test_split)
  if data.get('train_split') is not None:
    raise UserError(f'--test_split: missing; {name} has the splits {listing(there)}; name one, or a slice such as '
                    f'{there[0]}[80%:]')
  return Splits(f'{train_split}[:80%]', f'{train_split}[80%:]',
                f'{name} has no test split: {train_split}[80%:] is held out, and {train_split}[:80%] learned from')


def _is_labeled(name: str, split: str, data_dir: str | None) -> bool:
  """Return whether a split has labels; TFDS marks those without, such as ImageNet's test split, by -1."""
  return registry.open_source(name, split, data_dir)[0]['label'] != -1
