"""TFDS datasets on disk, read without TensorFlow from files in ArrayRecord format."""
import difflib
import os
import re
from typing import Any

from etils import epath
import tensorflow_datasets as tfds
from tensorflow_datasets.core import constants, read_only_builder

from vit_jax.base import files
from vit_jax.base.errors import MissingFileError, UserError
from vit_jax.data.sources import derived, digits, shards
from vit_jax.data.sources.base import Source


def open_dataset(name: str, split: str, data_dir: str | None = None) -> Source:
  """Open a split of a prepared TFDS dataset; `digits` is prepared on first use.

  Args:
    name: NAME, NAME/CONFIG or NAME:VERSION; or one of `derived.LABELS`, which may have a version too.
    split: a split or a part of one, as TFDS writes it.
    data_dir: folder of datasets, local or gs://; None is TFDS's own default.

  Raises:
    UserError, MissingFileError: see `registry.open_source`.
  """
  stored, key = derived.parse(name)
  builder = _open_builder(stored, data_dir)
  features: Any = builder.info.features
  class_names, multi_label = _classes(name, features, key)
  _check_split(name, split, builder.info.splits)
  shards.check(name, builder, split, _build_command(stored, _root(data_dir)))
  names = shards.Names(builder, split)
  # TFDS decorates as_data_source with a wrapper that hides its parameters from type checkers.
  decoders = {image: tfds.decode.SkipDecoding() for image, feature in features.items()
              if isinstance(feature, tfds.features.Image)}
  stored_records = builder.as_data_source(split=split, decoders=decoders)  # type: ignore
  records = shards.ArrayRecords(stored_records, builder, split)
  return Source(derived.DerivedRecords(records, key) if key else records, name=name, split=split,
                class_names=class_names, multi_label=multi_label,
                channels=1 if features['image'].shape[-1] == 1 else 3, names=names,
                split_fingerprints=shards.split_fingerprints(builder, names.splits()))


def split_names(name: str, data_dir: str | None = None) -> list[str]:
  """Return the names of a dataset's splits that hold records, sorted."""
  splits = _open_builder(derived.parse(name)[0], data_dir).info.splits
  return sorted(split for split, info in splits.items() if info.num_examples)


def _root(data_dir: str | None) -> epath.Path:
  return files.expand(data_dir or constants.DATA_DIR)


def _open_builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
  """Return the builder of a dataset that is prepared in ArrayRecord format."""
  root = _root(data_dir)
  if name == 'digits':
    digits.prepare(os.fspath(root))
  shards.check_descriptions(root / re.split('[/:]', name)[0])
  builder = _find_builder(name, root)
  _check_prepared(name, builder, root)
  # A copy that was converted in place still has the old format in its description.
  builder.info.set_file_format('array_record', override=True, override_if_initialized=True)
  return builder


def _find_builder(name: str, root: epath.Path) -> tfds.core.DatasetBuilder:
  data_dir = os.fspath(root)
  try:
    return tfds.builder(name, data_dir=data_dir)
  except tfds.core.DatasetNotFoundError as error:
    raise UserError(_unknown(name, root)) from error
  except ImportError as error:
    # The code that prepared the dataset imports TensorFlow; the files describe themselves.
    try:
      return read_only_builder.builder_from_files(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
      raise MissingFileError(_unprepared(name, root)) from error
  except (ValueError, AssertionError) as error:  # An unknown configuration, version or spelling.
    raise UserError(f'dataset {name!r}: cannot be opened in {data_dir}; expected NAME, NAME/CONFIG or NAME:VERSION. '
                    f'{_on_disk(name, root)}{_derived_from(name)} TFDS reports: {error}') from error


def _check_prepared(name: str, builder: tfds.core.DatasetBuilder, root: epath.Path) -> None:
  if not builder.is_prepared():
    raise MissingFileError(_unprepared(name, root, epath.Path(builder.data_path)))
  # If TFDS has the code that prepared the dataset, its own list lacks the formats that a copy was converted to.
  info = files.read_json(epath.Path(builder.data_path) / 'dataset_info.json')
  formats = sorted({info.get('fileFormat', 'tfrecord'), *info.get('alternativeFileFormats', [])})
  if 'array_record' not in formats:
    raise UserError(
        f'dataset {name!r}: expected array_record format, which can be read in any order; {builder.data_path} has only '
        f'{", ".join(formats)}. Convert it in place with\n  {_INSTALL} && tfds convert_format '
        f'--dataset_version_dir={builder.data_path} --out_file_format=array_record')


def _classes(name: str, features: Any, key: str | None) -> tuple[tuple[str, ...], bool]:
  """Return the names of the classes, and whether an image can have any number of them.

  Args:
    name: of the dataset.
    features: of the dataset.
    key: of `derived.LABELS`; None: the label is the feature `label`, or `labels`, a sequence of classes.
  """
  found, rule = dict(features.items()), derived.LABELS[key] if key else None
  needed = rule.features if rule else ('label', 'labels')
  if isinstance(found.get('image'), tfds.features.Image) and any(feature in found for feature in needed):
    if rule and rule.class_names:
      return rule.class_names, False
    single, several = (None, needed[0]) if rule else needed
    if isinstance(label := found.get(single), tfds.features.ClassLabel):
      return tuple(label.names), False
    if isinstance(label := getattr(found.get(several), 'feature', None), tfds.features.ClassLabel):
      return tuple(label.names), True
  got = ', '.join(f'{feature}: {type(value).__name__}' for feature, value in found.items())
  expected = ', '.join(needed) if rule else 'label: ClassLabel (or labels: a sequence of them)'
  raise UserError(f'dataset {name!r}: expected the features image: Image and {expected}, got {got}. Only image '
                  f'classification is supported.{_derived_from(name)}')


def _derived_from(name: str) -> str:
  """Return a sentence with the labels that can be derived from a dataset, '' if there are none."""
  base = re.split('[/:]', name)[0]
  labels = [key for key in derived.LABELS if key.startswith(f'{base}/')]
  return f' Labels derived from its features: {", ".join(labels)}.' if labels else ''


def _check_split(name: str, split: str, splits: tfds.core.SplitDict) -> None:
  sizes = {key: splits[key].num_examples for key in splits}
  choices = (f'Splits: {", ".join(f"{key} ({n} records)" for key, n in sizes.items())}. Parts and sums work too: '
             'train[:90%], train[90%:], train[1000:2000], train+test.')
  try:
    size = splits[split].num_examples
  except (ValueError, KeyError, TypeError, AssertionError) as error:
    raise UserError(f'split {split!r} of dataset {name!r}: no such split, or part of one. {choices}') from error
  if not size:
    raise UserError(f'split {split!r} of dataset {name!r}: empty. {choices}')


def _unknown(name: str, root: epath.Path) -> str:
  near = difflib.get_close_matches(name, tfds.list_builders(with_community_datasets=False))
  hint = f' Did you mean {" or ".join(map(repr, near))}?' if near else ''
  return (f'dataset {name!r}: unknown.{hint} Ready to use: {", ".join(_prepared_names(root))} (built in, or in '
          f'{root}). Any other is given by its TFDS name, NAME, NAME/CONFIG or NAME:VERSION, from '
          'https://www.tensorflow.org/datasets/catalog; a folder of your own images by folder:PATH, arrays by '
          'npz:PATH.')


def _unprepared(name: str, root: epath.Path, path: epath.Path | None = None) -> str:
  return (f'dataset {name!r}: not prepared; no dataset_info.json in {path or root / name.replace(":", "/")}. '
          f'{_on_disk(name, root)} Prepare it with\n  {_INSTALL} && {_build_command(name, root)}')


def _build_command(name: str, root: epath.Path) -> str:
  return f'tfds build {name} --file_format=array_record --data_dir={root}'


def _on_disk(name: str, root: epath.Path) -> str:
  """Return a sentence that lists the versions of the dataset in `root`, as a user names them."""
  base = name.partition(':')[0].partition('/')[0]
  found = sorted({os.fspath(path.relative_to(root)) for path in _prepared_paths(root)
                  if path.relative_to(root).parts[0] == base})
  if found:
    return f'In {root} under other names: {", ".join(":".join(path.rsplit("/", 1)) for path in found)}.'
  if not root.exists():
    return f'The folder {root} does not exist.'
  unfinished = sorted(os.fspath(path) for pattern in (f'{base}/incomplete.*', f'{base}/*/incomplete.*')
                      for path in root.glob(pattern))
  if unfinished:
    return f'{unfinished[0]} was not finished: remove it.'
  return f'Datasets there: {", ".join(_prepared_names(root))}.'


def _prepared_names(root: epath.Path) -> list[str]:
  return sorted({'digits'} | {path.relative_to(root).parts[0] for path in _prepared_paths(root)})


def _prepared_paths(root: epath.Path) -> list[epath.Path]:
  """Return the version folders, NAME/VERSION or NAME/CONFIG/VERSION, without unfinished ones."""
  infos = [*root.glob('*/*/dataset_info.json'), *root.glob('*/*/*/dataset_info.json')]
  return [info.parent for info in infos if not info.parent.name.startswith('incomplete.')]


# From a clone, as in the README: a package index may have another project of this name. The extra is in setup.py.
_INSTALL = "pip install -e '.[prepare]'"
