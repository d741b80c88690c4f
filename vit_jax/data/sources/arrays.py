"""Arrays in memory, or in an .npz file: `images` with `labels`, or such a pair for each split.

  train_images, train_labels, test_images, test_labels     splits `train` and `test`, the names MedMNIST's files have
  images, labels                                           one split, `all`, to be cut: `all[:90%]`, `all[90%:]`
"""

import io
from typing import Any, Iterable, Mapping, Sequence
import zipfile
import zlib

from etils import epath
import numpy as np
from PIL import Image

from vit_jax.data.sources import splits as splits_lib
from vit_jax.data.sources.base import Source, fingerprint


def open_npz(path: str, split: str) -> Source:
  """Opens a split of an .npz file, which is read into memory.

  Records keep their order; `train[:100]` are the first hundred. Written with NumPy alone:

    np.savez('cats.npz', train_images=images, train_labels=labels, class_names=['cat', 'no cat'])

  Args:
    path: the file, local or gs://. No pickled objects are loaded.
    split: the part of an array's name before `_images`, or `all`; slices and sums as in TFDS.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: no .npz file, no such split, arrays that are no images with labels, see `from_arrays`, or splits whose
      labels differ in form.
  """
  names, parts = split_names(path), splits_lib.parse(split)
  if unknown := sorted({part.name for part in parts} - set(names)):
    raise ValueError(f'Expected a split of {path}, got {unknown[0]!r} in {split!r}. Splits there: {", ".join(names)}. '
                     f'Parts and sums work too: {names[0]}[:90%], {names[0]}[100:].')
  with _open(path) as archive:
    known = _class_names(archive, path)
    # All splits' labels: they share a numbering that one split's may not show.
    labels_of = {name: _labels(_read(archive, _key(name, 'labels'), path), known, f'{path}, split {name!r}')
                 for name in names}
    _check_alike(labels_of, path)
    pairs = {part.name: (_read(archive, _key(part.name, 'images'), path), labels_of[part.name]) for part in parts}
    for name, pair in pairs.items():
      _check_images(*pair, f'{path}, split {name!r}')
    classes = known or _numbers(labels_of.values())
    sums = {info.filename: info.CRC for info in archive.zip.infolist()}
  sizes = {name: len(images) for name, (images, _) in pairs.items()}
  chosen = [(part.name, splits_lib.bounds(part, sizes, split)) for part in parts]
  images = [image for name, indices in chosen for image in pairs[name][0][indices.start:indices.stop]]
  labels = [label for name, indices in chosen for label in pairs[name][1][indices.start:indices.stop]]
  many = any(np.ndim(label) for label in labels[:1])
  return Source(
      _Arrays(images, labels, many), name=f'npz:{path}', split=split, class_names=classes,
      channels=_channels(images), many_labels=many, names=[f'{name}/{i}' for name, indices in chosen for i in indices],
      fingerprints={name: fingerprint([sums[f'{_key(name, "images")}.npy'], sums[f'{_key(name, "labels")}.npy']])
                    for name in pairs})


def from_arrays(images: np.ndarray, labels: np.ndarray, class_names: Sequence[str] | None = None, *,
                name: str = 'arrays', split: str = 'all') -> Source:
  """A source of arrays in memory, for `loader.train_batches` and the like; a run reads them from a file, `open_npz`.

  Args:
    images: (N, H, W) or (N, H, W, 1) greyscale, or (N, H, W, 3) colour, uint8, 0..255; N > 0. Not copied.
    labels: (N,) or (N, 1) integers, 0 <= label < number of classes; or (N, number of classes > 1) of 0 and 1, where
      an image may have any number of classes.
    class_names: a name for each label; None numbers them up to the largest, a million at most.
    name, split: what messages call the data set.

  Raises:
    ValueError: anything else.
  """
  labels = _labels(labels, class_names, f'{name} {split}')
  _check_images(images, labels, f'{name} {split}')
  many = labels.ndim == 2
  return Source(_Arrays(images, labels, many), name=name, split=split, class_names=class_names or _numbers([labels]),
                channels=_channels(images), many_labels=many)


def split_names(path: str) -> list[str]:
  """Names of the splits in an .npz file, sorted; raises as `open_npz` does."""
  with _open(path) as archive:
    keys = archive.files
  names = sorted('all' if key == 'images' else key.removesuffix('_images')
                 for key in keys if key == 'images' or key.endswith('_images'))
  if not names:
    raise ValueError(f'Expected arrays SPLIT_images and SPLIT_labels, such as train_images, or images and labels, in '
                     f'{path}; found {", ".join(keys) or "nothing"}. Write it with np.savez({path!r}, '
                     'train_images=…, train_labels=…).')
  if lonely := [name for name in names if _key(name, 'labels') not in keys]:
    raise ValueError(f'Expected labels for every split in {path}: there is {_key(lonely[0], "images")}, but no '
                     f'{_key(lonely[0], "labels")}.')
  return names


class _Arrays:
  """Records encoded when asked for: as BMP, which is the pixels behind a header, so little is lost."""

  def __init__(self, images: Sequence[np.ndarray], labels: Sequence[Any], many: bool):
    self._images, self._labels, self._many = images, labels, many

  def __len__(self):
    return len(self._images)

  def __getitem__(self, index):
    image = self._images[index]
    buffer = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.ndim == 3 and image.shape[-1] == 1 else image).save(buffer, 'BMP')
    label = self._labels[index]
    labels = {'labels': np.flatnonzero(label).tolist()} if self._many else {'label': int(label)}
    return {'image': buffer.getvalue(), **labels}


def _open(path: str) -> np.lib.npyio.NpzFile:
  file = epath.Path(path).expanduser()
  if not file.exists():
    there = sorted(child.name for child in file.parent.glob('*.npz')) if file.parent.exists() else []
    raise FileNotFoundError(f'There is no file {path}. .npz files in {file.parent}: {", ".join(there) or "none"}.')
  try:
    archive = np.load(io.BytesIO(file.read_bytes()), allow_pickle=False)
    if not isinstance(archive, np.lib.npyio.NpzFile):
      raise ValueError('it holds one array')
    return archive
  except (ValueError, EOFError, zipfile.BadZipFile, OSError) as error:
    raise ValueError(f'Cannot read {path} as an .npz file: {error}. Write it with np.savez.') from error


def _read(archive: Mapping[str, np.ndarray], key: str, path: str) -> np.ndarray:
  try:
    return archive[key]
  except (zipfile.BadZipFile, zlib.error, ValueError) as error:  # The last is a pickle.
    raise ValueError(f'{path} is damaged, or holds objects, in {key}: {error}. Write or copy it again.') from error


def _class_names(archive: Mapping[str, np.ndarray], path: str) -> list[str] | None:
  if 'class_names' not in archive:
    return None
  names = _read(archive, 'class_names', path)
  if names.dtype.kind not in 'Uiu' or names.ndim != 1 or not names.size:
    raise ValueError(f'Expected class_names of {path} to be a list of text, a name for each class, got {names.dtype} '
                     f'of shape {names.shape}.')
  return [str(name) for name in names.tolist()]


def _labels(labels: np.ndarray, class_names: Sequence[str] | None, where: str) -> np.ndarray:
  """Labels of shape (N,) or (N, classes > 1); raises where form or values are none."""
  if labels.dtype.kind not in 'iu' + 'b' * (labels.ndim == 2) or labels.ndim not in (1, 2):
    raise ValueError(f'Expected labels of {where} to be integers of shape (N,), or 0 and 1 of shape (N, classes), '
                     f'got {labels.dtype} of shape {labels.shape}.')
  labels = labels[:, 0] if labels.shape[1:] == (1,) else labels
  low, high = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
  if labels.ndim == 2:
    if low < 0 or high > 1:
      raise ValueError(f'Expected labels of {where}, of shape {labels.shape}, to be 0 and 1 for each image and class, '
                       f'got {low}..{high}.')
    if class_names is not None and labels.shape[1] != len(class_names):
      raise ValueError(f'Expected labels of {where} to have a column for each of the {len(class_names)} class names, '
                       f'got shape {labels.shape}.')
    return labels
  classes = _MOST_CLASSES if class_names is None else len(class_names)
  if low < 0 or high >= classes:
    given = ', the number of class names less one' if class_names is not None else ''
    raise ValueError(f'Expected labels of {where} to lie in 0..{classes - 1}{given}, got {low}..{high}.')
  return labels


def _check_alike(labels_of: Mapping[str, np.ndarray], path: str) -> None:
  first, *others = labels_of
  for other in others:
    if labels_of[other].shape[1:] != labels_of[first].shape[1:]:
      raise ValueError(f'Expected labels of one form in all splits of {path}, integers or as many columns of 0 and 1, '
                       f'got {_key(first, "labels")} of shape {labels_of[first].shape} and {_key(other, "labels")} of '
                       f'shape {labels_of[other].shape}.')


def _check_images(images: np.ndarray, labels: np.ndarray, where: str) -> None:
  if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[3:] not in ((), (1,), (3,)):
    raise ValueError(f'Expected images of {where} to be uint8, 0..255, of shape (N, H, W), (N, H, W, 1) or '
                     f'(N, H, W, 3), got {images.dtype} of shape {images.shape}.')
  if len(images) != len(labels) or not images.size:
    raise ValueError(f'Expected a label for each image of {where}, and at least one, got {len(images)} images '
                     f'of shape {images.shape[1:]} and {len(labels)} labels.')


def _numbers(labels: Iterable[np.ndarray]) -> list[str]:
  """Classes without names: as many as columns, or up to the largest label."""
  counts = [array.shape[1] if array.ndim == 2 else 1 + int(array.max(initial=0)) for array in labels]
  return [str(label) for label in range(max(counts))]


def _channels(images: Sequence[np.ndarray]) -> int:
  return 3 if np.ndim(images[0]) == 3 and images[0].shape[-1] == 3 else 1


def _key(split: str, kind: str) -> str:
  return kind if split == 'all' else f'{split}_{kind}'


# Labels without names are taken for something else, such as identifiers, from here on.
_MOST_CLASSES = 1_000_000
