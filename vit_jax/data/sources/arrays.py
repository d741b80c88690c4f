"""Arrays in memory, or in an .npz file: `images` with `labels`, or such a pair per split.

  train_images, train_labels, test_images, test_labels     splits `train` and `test`; MedMNIST's files use these names
  images, labels                                           one split, `all`, from which slices are taken: `all[:90%]`
"""
from collections.abc import Iterable, Mapping, Sequence
import io
import math
from typing import Any
import zipfile
import zlib

import numpy as np

from vit_jax.base import files
from vit_jax.base.errors import MissingFileError, UserError
from vit_jax.base.machine import host_memory
from vit_jax.base.text import count, listing
from vit_jax.data.images import change
from vit_jax.data.sources import splits as splits_lib
from vit_jax.data.sources.base import Source, make_fingerprint


def open_npz(path: str, split: str) -> Source:
  """Open a split of an .npz file, which is read into memory.

  Records keep their order: `train[:100]` are the first hundred. NumPy alone writes such a file:

    np.savez('cats.npz', train_images=images, train_labels=labels, class_names=['cat', 'no cat'])

  Args:
    path: the file, local or gs://. Pickled objects are not loaded.
    split: what comes before `_images` in an array's name, or `all`; slices and sums as in TFDS.

  Raises:
    MissingFileError: no such file.
    UserError: not an .npz file, no such split, arrays that are not images with labels, see `from_arrays`, or splits
      with different kinds of labels.
  """
  names, parts = split_names(path), splits_lib.parse(split)
  if unknown := sorted({part.name for part in parts} - set(names)):
    raise UserError(f'split {split!r}: no {unknown[0]!r} in {path}. Splits there: {", ".join(names)}. Parts and sums '
                    f'work too: {names[0]}[:90%], {names[0]}[100:].')
  with _open(path) as archive:
    known = _class_names(archive, path)
    # The labels of all splits: one split may not show all classes.
    labels_of = {name: _check_labels(_read(archive, _key(name, 'labels'), path), known, f'{path}, split {name!r}')
                 for name in names}
    _check_same_kind(labels_of, path)
    pairs = {part.name: (_read(archive, _key(part.name, 'images'), path), labels_of[part.name]) for part in parts}
    for name, pair in pairs.items():
      _check_images(*pair, f'{path}, split {name!r}')
    classes = known or _numbered_classes(labels_of.values())
    assert archive.zip is not None  # until it is closed
    checksums = {info.filename: info.CRC for info in archive.zip.infolist()}
  sizes = {name: len(images) for name, (images, _) in pairs.items()}
  chosen = [(part.name, splits_lib.bounds(part, sizes, split)) for part in parts]
  images = [image for name, indices in chosen for image in pairs[name][0][indices.start:indices.stop]]
  labels = [label for name, indices in chosen for label in pairs[name][1][indices.start:indices.stop]]
  multi_label = any(np.ndim(label) for label in labels[:1])
  arrays_of = lambda name: [checksums[f'{_key(name, kind)}.npy'] for kind in ('images', 'labels')]
  return Source(
      _Arrays(images, labels, multi_label), name=f'npz:{path}', split=split, class_names=classes,
      channels=_channels(images), multi_label=multi_label,
      names=[f'{name}/{i}' for name, indices in chosen for i in indices],
      split_fingerprints={name: make_fingerprint(arrays_of(name)) for name in pairs})


def from_arrays(images: np.ndarray, labels: np.ndarray, class_names: Sequence[str] | None = None, *,
                name: str = 'arrays', split: str = 'all') -> Source:
  """Return a source of arrays in memory, for programs of your own; a run reads arrays from a file, see `open_npz`.

  Args:
    images: (N, H, W) or (N, H, W, 1) grayscale, or (N, H, W, 3) color, uint8, 0..255; N > 0. Not copied.
    labels: (N,) or (N, 1) integers, 0 <= label < number of classes; or (N, number of classes > 1) of 0 and 1 if an
      image can have any number of classes.
    class_names: name of each class; None numbers them up to the largest label, at most a million.
    name, split: names of the dataset and the split for messages.

  Raises:
    UserError: anything else.

  >>> source = from_arrays(np.zeros((2, 8, 8), np.uint8), np.array([0, 1]), ['cat', 'dog'])
  >>> len(source), source.channels, source[1]['label']
  (2, 1, 1)
  """
  labels = _check_labels(labels, class_names, f'{name} {split}')
  _check_images(images, labels, f'{name} {split}')
  multi_label = labels.ndim == 2
  return Source(_Arrays(images, labels, multi_label), name=name, split=split,
                class_names=class_names or _numbered_classes([labels]), channels=_channels(images),
                multi_label=multi_label)


def split_names(path: str) -> list[str]:
  """Return the names of the splits in an .npz file, sorted; errors as of `open_npz`."""
  with _open(path) as archive:
    keys = archive.files
  names = sorted('all' if key == 'images' else key.removesuffix('_images')
                 for key in keys if key == 'images' or key.endswith('_images'))
  if not names:
    raise UserError(f'{path}: expected arrays SPLIT_images and SPLIT_labels, such as train_images, or images and '
                    f'labels; found {listing(keys) or "nothing"}. Write it with np.savez({path!r}, train_images=…, '
                    'train_labels=…).')
  if unlabeled := [name for name in names if _key(name, 'labels') not in keys]:
    raise UserError(f'{path}: expected labels for every split; there is {_key(unlabeled[0], "images")}, but no '
                    f'{_key(unlabeled[0], "labels")}')
  return names


class _Arrays:
  """Records that are encoded when they are read."""

  def __init__(self, images: Sequence[np.ndarray] | np.ndarray, labels: Sequence[Any] | np.ndarray, multi_label: bool):
    self._images, self._labels, self._multi_label = images, labels, multi_label

  def __len__(self) -> int:
    return len(self._images)

  def __getitem__(self, index: int) -> dict[str, Any]:
    image = self._images[index]
    label = self._labels[index]
    labels = {'labels': np.flatnonzero(label).tolist()} if self._multi_label else {'label': int(label)}
    return {'image': change.to_bmp(image if image.ndim == 3 else image[:, :, None]), **labels}


def _open(path: str) -> np.lib.npyio.NpzFile:
  file = files.expand(path)
  if not file.exists():
    found = sorted(child.name for child in file.parent.glob('*.npz')) if file.parent.exists() else []
    raise MissingFileError(f'{path}: no such file. .npz files in {file.parent}: {listing(found) or "none"}.')
  try:
    archive = np.load(io.BytesIO(file.read_bytes()), allow_pickle=False)
    if not isinstance(archive, np.lib.npyio.NpzFile):
      raise ValueError('it holds one array')
    _check_sizes(archive, path)
    return archive
  except UserError:
    raise
  except (ValueError, EOFError, zipfile.BadZipFile, OSError) as error:
    raise UserError(f'{path}: cannot be read as an .npz file: {error}. Write it with np.savez.') from error


def _check_sizes(archive: np.lib.npyio.NpzFile, path: str) -> None:
  """Raise UserError for arrays that do not fit into memory, or whose headers claim another size than the archive."""
  assert archive.zip is not None
  entries = [entry for entry in archive.zip.infolist() if entry.filename.endswith('.npy')]
  for entry in entries:
    key = entry.filename.removesuffix('.npy')
    try:
      with archive.zip.open(entry) as file:
        shape, _, dtype = _READ_HEADER[np.lib.format.read_magic(file)](file, max_header_size=10_000)
        size = file.tell() + math.prod(shape) * dtype.itemsize
    except (KeyError, NotImplementedError, *_DAMAGES) as error:
      raise _damaged(path, key, error) from error
    if size != entry.file_size and not dtype.hasobject:
      raise _damaged(path, key, f'{dtype} of shape {shape} does not take {entry.file_size:,} bytes')
  # Twice: the array, and what NumPy unpacks it to or a split is cut into.
  largest = max((entry.file_size for entry in entries), default=0)
  host_memory.check_fits(sum(entry.file_size for entry in entries) + largest, path)


def _read(archive: Mapping[str, np.ndarray], key: str, path: str) -> np.ndarray:
  try:
    return archive[key]
  except _DAMAGES as error:
    raise _damaged(path, key, error) from error


def _damaged(path: str, key: str, reason: object) -> UserError:
  return UserError(f'{path}: the array {key} is damaged, or holds objects: {reason}. Write or copy the file again.')


def _class_names(archive: Mapping[str, np.ndarray], path: str) -> list[str] | None:
  if 'class_names' not in archive:
    return None
  names = _read(archive, 'class_names', path)
  if names.dtype.kind not in 'Uiu' or names.ndim != 1 or not names.size:
    raise UserError(f'{path}: expected class_names to be a list of text, one name per class, got {names.dtype} of '
                    f'shape {names.shape}')
  return [str(name) for name in names.tolist()]


def _check_labels(labels: np.ndarray, class_names: Sequence[str] | None, where: str) -> np.ndarray:
  """Return labels of shape (N,) or (N, classes > 1); raise UserError for any other shape, type or value."""
  if labels.dtype.kind not in 'iu' + 'b' * (labels.ndim == 2) or labels.ndim not in (1, 2):
    raise UserError(f'{where}: expected labels to be integers of shape (N,), or 0 and 1 of shape (N, classes), got '
                    f'{labels.dtype} of shape {labels.shape}')
  labels = labels[:, 0] if labels.shape[1:] == (1,) else labels
  low, high = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
  if labels.ndim == 2:
    if low < 0 or high > 1:
      raise UserError(f'{where}: expected labels of shape {labels.shape} to be 0 or 1 for each image and class, got '
                      f'{low}..{high}')
    if class_names is not None and labels.shape[1] != len(class_names):
      raise UserError(f'{where}: expected labels to have one column for each of the {len(class_names)} class names, '
                      f'got shape {labels.shape}')
    return labels
  classes = _MAX_CLASSES if class_names is None else len(class_names)
  if low < 0 or high >= classes:
    given = f' for {classes} class names' if class_names is not None else ''
    raise UserError(f'{where}: expected labels to be in 0..{classes - 1}{given}, got {low}..{high}')
  return labels


def _check_same_kind(labels_of: Mapping[str, np.ndarray], path: str) -> None:
  first, *others = labels_of
  for other in others:
    if labels_of[other].shape[1:] != labels_of[first].shape[1:]:
      raise UserError(f'{path}: expected all splits to have integer labels, or the same number of columns of 0 and 1; '
                      f'got {_key(first, "labels")} of shape {labels_of[first].shape} and {_key(other, "labels")} of '
                      f'shape {labels_of[other].shape}')


def _check_images(images: np.ndarray, labels: np.ndarray, where: str) -> None:
  if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[3:] not in ((), (1,), (3,)):
    raise UserError(f'{where}: expected images to be uint8, 0..255, of shape (N, H, W), (N, H, W, 1) or (N, H, W, 3), '
                    f'got {images.dtype} of shape {images.shape}')
  if len(images) != len(labels) or not images.size:
    raise UserError(f'{where}: expected one label per image, and at least one image, got '
                    f'{count(len(images), "image")} of shape {images.shape[1:]} and {count(len(labels), "label")}')


def _numbered_classes(labels: Iterable[np.ndarray]) -> list[str]:
  """Return names of classes that have none: '0', '1', … for every column, or up to the largest label."""
  counts = [array.shape[1] if array.ndim == 2 else 1 + int(array.max(initial=0)) for array in labels]
  return [str(label) for label in range(max(counts))]


def _channels(images: Sequence[np.ndarray] | np.ndarray) -> int:
  return 3 if np.ndim(images[0]) == 3 and images[0].shape[-1] == 3 else 1


def _key(split: str, kind: str) -> str:
  return kind if split == 'all' else f'{split}_{kind}'


_READ_HEADER = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_DAMAGES = (zipfile.BadZipFile, zlib.error, ValueError, EOFError)  # ValueError: also a pickle

# From here on, labels without class names are probably something else, such as identifiers.
_MAX_CLASSES = 1_000_000
