"""Opens datasets by name: the kind of source is the prefix of the name, and TFDS is the default.

Adding a kind of source is a file that makes `base.Source`s, and a row of KINDS.
"""
from collections.abc import Callable
import dataclasses
import os

from etils import epath

from vit_jax.base import files
from vit_jax.base.errors import UserError
from vit_jax.base.machine import retry
from vit_jax.data.sources import arrays, folder, objectnet, tfds
from vit_jax.data.sources.base import Source


@dataclasses.dataclass(frozen=True)
class SourceKind:
  """A kind of source whose datasets are named PREFIX:PATH.

  Attributes:
    open: (path, split) -> source.
    split_names: path -> sorted names of its splits that hold records.
    example: name of a dataset, for messages.
  """
  open: Callable[[str, str], Source]
  split_names: Callable[[str], list[str]]
  example: str


KINDS = {
    'folder:': SourceKind(folder.open_folder, folder.split_names, 'folder:/data/flowers'),
    'npz:': SourceKind(arrays.open_npz, arrays.split_names, 'npz:/data/cats.npz'),
    'objectnet:': SourceKind(objectnet.open_objectnet, objectnet.split_names, 'objectnet:/data/objectnet-1.0'),
}


def open_source(name: str, split: str, data_dir: str | None = None) -> Source:
  """Open a split of a TFDS dataset in ArrayRecord format, of a folder of images, or of arrays.

  `digits` is built in and prepared on first use. Any other TFDS dataset is prepared beforehand with the `tfds` command,
  which needs TensorFlow; reading does not.

  Args:
    name: `digits`, `folder:PATH` (see `folder.open_folder`), `npz:PATH` (see `arrays.open_npz`), `objectnet:PATH`
      (see `objectnet.open_objectnet`), or a TFDS name: NAME, NAME/CONFIG or NAME:VERSION; NAME/LABEL for a label that
      is derived from other features (see `derived.LABELS`).
    split: a split or a part of one: `test`, `train[:90%]`, `train[1000:]`, `train+validation`.
    data_dir: folder of datasets, local or gs://; None is $TFDS_DATA_DIR, or ~/tensorflow_datasets if that is not set.
      If given, a relative PATH starts here.

  Raises:
    UserError: an unknown dataset, configuration, version or split, an empty split, a copy in another format or with
      files missing, or a dataset that is not images with class labels.
    MissingFileError: the dataset is known, but not there or not prepared.
    RetryError: the disk or the server failed for about a minute.
  """
  if prefix := _prefix(name):
    path, open_split = _path(name, prefix, data_dir), KINDS[prefix].open
    return retry.call(lambda: open_split(path, split), f'opening {name} {split}')
  return retry.call(lambda: tfds.open_dataset(name, split, data_dir), f'opening {name} {split}')


def split_names(name: str, data_dir: str | None = None) -> list[str]:
  """Return the names of a dataset's stored splits that hold records, sorted; arguments as of `open_source`."""
  if prefix := _prefix(name):
    return KINDS[prefix].split_names(_path(name, prefix, data_dir))
  return tfds.split_names(name, data_dir)


def data_dir_of(name: str, data_dir: str | None) -> str | None:
  """Return the data_dir that a run records: a relative PATH must mean the same wherever the record is read.

  >>> data_dir_of('folder:flowers', None) == os.getcwd()
  True
  >>> data_dir_of('folder:/data/flowers', None), data_dir_of('digits', None)
  (None, None)
  """
  relative = (prefix := _prefix(name)) and not _is_absolute(name.removeprefix(prefix))
  return os.getcwd() if relative and data_dir is None else data_dir


def _prefix(name: str) -> str | None:
  """Return the key of KINDS that a name starts with, or None for a TFDS name."""
  return next((prefix for prefix in KINDS if name.startswith(prefix)), None)


def _is_absolute(path: str) -> bool:
  return files.is_remote(path) or os.path.isabs(os.path.expanduser(path))


def _path(name: str, prefix: str, data_dir: str | None) -> str:
  path = name.removeprefix(prefix)
  if not path:
    raise UserError(f'dataset {name!r}: expected {prefix}PATH, such as {KINDS[prefix].example}')
  if data_dir is None or _is_absolute(path):
    return path
  return os.fspath(epath.Path(data_dir) / path)
