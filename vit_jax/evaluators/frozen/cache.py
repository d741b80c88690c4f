"""Features on disk: a file per model, split and way to prepare images, named after a fingerprint of all of them."""
from collections.abc import Callable, Mapping
import dataclasses
import hashlib
import pathlib
from typing import Any
import zipfile

from absl import logging
import jax
import numpy as np

from vit_jax.base import files, platform
from vit_jax.base.preprocessing import Preprocessing
from vit_jax.data.sources.base import Source, make_fingerprint
from vit_jax.distributed import hosts
from vit_jax.evaluators.frozen.features import Features
from vit_jax.models.base import flatten

LIMIT = 4 << 30  # bytes in the default folder; beyond, the features that were not used for the longest time are deleted
_FORMAT = 1  # raised when the meaning of a stored array changes


@dataclasses.dataclass(frozen=True)
class FeatureCache:
  """A folder of features.

  Attributes:
    folder: made when the first features are written.
    limit: bytes that the files may take; None: no limit.
  """
  folder: pathlib.Path
  limit: int | None = None

  @classmethod
  def default(cls) -> 'FeatureCache':
    """Return the cache in `platform.cache_folder()`/features."""
    return cls(platform.cache_folder() / 'features', LIMIT)

  def get(self, fingerprint: str, source: Source, compute: Callable[[], Features]) -> tuple[Features, bool]:
    """Return (features, whether they were on disk); computed and written if they were not on all processes' disks.

    Args:
      fingerprint: see `fingerprint`.
      source: the split.
      compute: () → features; called by all processes or by none.

    Raises:
      FileError: the folder cannot be written.
    """
    path = self.folder / f'{fingerprint}.npz'
    found = self._read(path, source)
    if all(hosts.exchange(found is not None)) and found is not None:
      return found, True
    features = compute()
    if jax.process_index() == 0:
      with files.replacing(path, 'the features') as aside, aside.open('wb') as file:
        np.savez(file, features=features.features, labels=features.labels)
      if self.limit is not None:
        platform.prune(self.folder, self.limit)
    return features, False

  def _read(self, path: pathlib.Path, source: Source) -> Features | None:
    """Return the features in a file, or None if there are none, or half of them."""
    try:
      with path.open('rb') as file, np.load(file, allow_pickle=False) as arrays:
        features, labels = arrays['features'], arrays['labels']
    except FileNotFoundError:
      return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
      logging.warning('%s: cannot be read and is computed again: %s', path, error)
      return None
    if features.ndim != 2 or features.dtype != np.float32 or labels.shape != (len(source),) or len(features) != len(
        source):
      logging.warning('%s: does not hold features of these images and is computed again', path)
      return None
    return Features(features, labels.astype(np.int32), source.num_classes)


def fingerprint(config: Any, params: Mapping[str, Any], preprocessing: Preprocessing, source: Source,
                data_dir: str | None) -> str:
  """Return 32 hexadecimal digits that change with whatever the features of a split depend on.

  Of files of their own, size and time of the last change count, not the content.

  Args:
    config: of the model; its image size and dtype are among the fields.
    params: of the model, NumPy arrays.
    preprocessing: of the images.
    source: the split.
    data_dir: of the dataset.
  """
  digest = hashlib.sha256()
  for path, leaf in sorted(flatten(params).items()):
    array = np.ascontiguousarray(leaf)
    digest.update(f'{path} {array.dtype} {array.shape}\0'.encode())
    digest.update(array.view(np.uint8).data if array.ndim else array.tobytes())
  model = sorted((field.name, getattr(config, field.name)) for field in dataclasses.fields(config))
  data = [source.name, data_dir, source.split, source.fingerprint, source.class_names, source.channels, source.upright,
          hashlib.sha256(repr(source.file_stamps()).encode()).hexdigest()]
  digest.update(make_fingerprint([_FORMAT, model, preprocessing, *data, jax.default_backend()]).encode())
  return digest.hexdigest()[:32]
