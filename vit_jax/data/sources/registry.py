"""Where records come from: random access to the encoded images of a TFDS data set, a folder or an .npz file."""

import difflib
import json
import os
from typing import Callable, NamedTuple

from etils import epath
import tensorflow_datasets as tfds
from tensorflow_datasets.core import constants
from tensorflow_datasets.core import read_only_builder

from vit_jax.data.sources import arrays
from vit_jax.data.sources import digits
from vit_jax.data.sources import folder
from vit_jax.data.sources import shards
from vit_jax.data.sources.base import Source


def open_source(name: str, split: str, data_dir: str | None = None) -> Source:
  """Opens a split of a TFDS data set that lies on disk in ArrayRecord format, of a folder of images, or of arrays.

  `digits` is built in and prepared on first use. Any other data set is prepared beforehand with
  the `tfds` command, which needs TensorFlow; reading does not.

  Args:
    name: `digits`, `folder:PATH` (see `folder.open_folder`), `npz:PATH` (see `arrays.open_npz`), or a TFDS name:
      NAME, NAME/CONFIG or NAME:VERSION.
    split: a split or a part of one: `test`, `train[:90%]`, `train[1000:]`, `train+validation`.
    data_dir: the folder of data sets, local or gs://; None means $TFDS_DATA_DIR, or
      ~/tensorflow_datasets without it. A relative PATH starts here, if given.

  Raises:
    ValueError: an unknown data set, configuration, version or split, an empty split, a copy in
      another format or with files missing, or a data set that is not images with class labels.
    FileNotFoundError: the data set is known but not prepared under `data_dir`.
  """
  if kind := _own(name):
    return _OWN[kind].open(_path(name, kind, data_dir), split)
  builder = _builder(name, data_dir)
  features = builder.info.features
  classes = _classes(name, features)
  _check_split(name, split, builder.info.splits)
  shards.check(name, builder, split, _build(name, _root(data_dir)))
  names = shards.Names(builder, split)
  records = builder.as_data_source(split=split, decoders={'image': tfds.decode.SkipDecoding()})
  return Source(records, name=name, split=split, class_names=classes.names,
                many_labels=not ('label' in features and features['label'] is classes),
                channels=1 if features['image'].shape[-1] == 1 else 3, names=names,
                fingerprints=shards.fingerprints(builder, names.splits()))


def split_names(name: str, data_dir: str | None = None) -> list[str]:
  """Names of a data set's stored splits that hold records, sorted; arguments and errors as of `open_source`."""
  if kind := _own(name):
    return _OWN[kind].split_names(_path(name, kind, data_dir))
  splits = _builder(name, data_dir).info.splits
  return sorted(split for split, info in splits.items() if info.num_examples)


def data_dir_of(name: str, data_dir: str | None) -> str | None:
  """The data_dir that a run records: a relative PATH starts in the folder it was started in, wherever it is read."""
  relative = (kind := _own(name)) and not _is_absolute(name.removeprefix(kind))
  return os.getcwd() if relative and data_dir is None else data_dir


def _own(name: str) -> str | None:
  """The prefix of a name that is no TFDS name."""
  return next((kind for kind in _OWN if name.startswith(kind)), None)


def _is_absolute(path: str) -> bool:
  return '://' in path or epath.Path(path).expanduser().is_absolute()


def _path(name: str, kind: str, data_dir: str | None) -> str:
  path = name.removeprefix(kind)
  if not path:
    raise ValueError(f'Expected {kind}PATH, such as {_OWN[kind].example}, got {name!r}.')
  if data_dir is None or _is_absolute(path):
    return path
  return os.fspath(epath.Path(data_dir) / path)


def _root(data_dir: str | None) -> epath.Path:
  return epath.Path(data_dir or constants.DATA_DIR).expanduser()


def _builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
  """The builder of a data set that is prepared, in the format we read."""
  root = _root(data_dir)
  if name == 'digits':
    digits.prepare(os.fspath(root))
  builder = _find_builder(name, root)
  _check_prepared(name, builder, root)
  # A copy that was converted where it lay still says that it is what it was.
  builder.info.set_file_format('array_record', override=True, override_if_initialized=True)
  return builder


def _find_builder(name: str, root: epath.Path) -> tfds.core.DatasetBuilder:
  data_dir = os.fspath(root)
  try:
    return tfds.builder(name, data_dir=data_dir)
  except tfds.core.DatasetNotFoundError as error:
    raise ValueError(_unknown(name, root)) from error
  except ImportError as error:
    # The code that made the data set imports TensorFlow; the files describe themselves.
    try:
      return read_only_builder.builder_from_files(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
      raise FileNotFoundError(_unprepared(name, root)) from error
  except (ValueError, AssertionError) as error:  # An unknown configuration, version or spelling.
    raise ValueError(
        f'Cannot open data set {name!r} under {data_dir}: expected NAME, NAME/CONFIG or '
        f'NAME:VERSION. {_on_disk(name, root)} TFDS says: {error}') from error


def _check_prepared(name: str, builder: tfds.core.DatasetBuilder, root: epath.Path) -> None:
  if not builder.is_prepared():
    raise FileNotFoundError(_unprepared(name, root, builder.data_path))
  # TFDS's own list leaves out those that a copy was converted to, where it has the code that made the data set.
  info = json.loads((epath.Path(builder.data_path) / 'dataset_info.json').read_text())
  formats = sorted({info.get('fileFormat', 'tfrecord'), *info.get('alternativeFileFormats', [])})
  if 'array_record' not in formats:
    raise ValueError(
        f'Expected data set {name!r} in array_record format, which can be read in any order; '
        f'{builder.data_path} holds {", ".join(formats)} only. Convert it where it lies with\n'
        f'  {_INSTALL} && tfds convert_format '
        f'--dataset_version_dir={builder.data_path} --out_file_format=array_record')


def _classes(name: str, features: tfds.features.FeaturesDict) -> tfds.features.ClassLabel:
  """The classes of feature `label`, or of those in `labels` where an image has any number."""
  found = dict(features.items())
  choices = [found.get('label'), getattr(found.get('labels'), 'feature', None)]
  choices = [choice for choice in choices if isinstance(choice, tfds.features.ClassLabel)]
  if not isinstance(found.get('image'), tfds.features.Image) or not choices:
    got = ', '.join(f'{key}: {type(value).__name__}' for key, value in found.items())
    raise ValueError(
        f'Expected data set {name!r} to have the features image: Image and label: ClassLabel (or '
        f'labels: a sequence of them), got {got}. Only image classification can be trained on.')
  return choices[0]


def _check_split(name: str, split: str, splits: tfds.core.SplitDict) -> None:
  sizes = {key: splits[key].num_examples for key in splits}
  choices = (f'Splits of {name!r}: ' + ', '.join(f'{key} ({n} records)' for key, n in sizes.items())
             + '. Parts and sums work too: train[:90%], train[90%:], train[1000:2000], train+test.')
  try:
    size = splits[split].num_examples
  except (ValueError, KeyError, TypeError, AssertionError) as error:
    raise ValueError(f'Expected a split of data set {name!r}, got {split!r}: {error} '
                     f'{choices}') from error
  if not size:
    raise ValueError(f'Split {split!r} of data set {name!r} is empty. {choices}')


def _unknown(name: str, root: epath.Path) -> str:
  near = difflib.get_close_matches(name, tfds.list_builders(with_community_datasets=False))
  hint = f' Did you mean {" or ".join(map(repr, near))}?' if near else ''
  return (f'Unknown data set {name!r}.{hint} Ready to use: {", ".join(_prepared_names(root))} '
          f'(built in, and what lies under {root}). Any other is given by its TFDS name, NAME, '
          'NAME/CONFIG or NAME:VERSION, from https://www.tensorflow.org/datasets/catalog; a folder of '
          'your own images by folder:PATH, arrays by npz:PATH.')


def _unprepared(name: str, root: epath.Path, path: epath.Path | None = None) -> str:
  return (f'Data set {name!r} is not prepared: no dataset_info.json in '
          f'{path or root / name.replace(":", "/")}. {_on_disk(name, root)} Prepare it with\n'
          f'  {_INSTALL} && {_build(name, root)}')


def _build(name: str, root: epath.Path) -> str:
  return f'tfds build {name} --file_format=array_record --data_dir={root}'


def _on_disk(name: str, root: epath.Path) -> str:
  """Says which versions of the data set lie under `root`, and how to ask for them."""
  base = name.partition(':')[0].partition('/')[0]
  found = sorted({os.fspath(path.relative_to(root)) for path in _prepared_paths(root)
                  if path.relative_to(root).parts[0] == base})
  if found:
    names = ', '.join(':'.join(path.rsplit('/', 1)) for path in found)
    return f'There under {root}, under another name: {names}.'
  if not root.exists():
    return f'The folder {root} does not exist.'
  if half := sorted(os.fspath(path) for path in [*root.glob(f'{base}/incomplete.*'), *root.glob(f'{base}/*/incomplete.*')]):
    return f'There is {half[0]}, which was not finished: remove it.'
  return f'Data sets there: {", ".join(_prepared_names(root))}.'


def _prepared_names(root: epath.Path) -> list[str]:
  return sorted({'digits'} | {path.relative_to(root).parts[0] for path in _prepared_paths(root)})


def _prepared_paths(root: epath.Path) -> list[epath.Path]:
  """Lists the version folders, NAME/VERSION or NAME/CONFIG/VERSION, complete ones only."""
  files = [*root.glob('*/*/dataset_info.json'), *root.glob('*/*/*/dataset_info.json')]
  return [file.parent for file in files if not file.parent.name.startswith('incomplete.')]


# From a clone, as the README says: a package index may know another project by this name. The extra is in setup.py.
_INSTALL = "pip install -e '.[prepare]'"


class _Own(NamedTuple):
  """How a data set of one's own is opened: open(path, split), split_names(path)."""
  open: Callable[[str, str], Source]
  split_names: Callable[[str], list[str]]
  example: str


_OWN = {
    'folder:': _Own(folder.open_folder, folder.split_names, 'folder:/data/flowers'),
    'npz:': _Own(arrays.open_npz, arrays.split_names, 'npz:/data/cats.npz'),
}
