"""Your own images: a folder of class folders, or one such folder for each split.

  PATH/train/ants/1.jpg  PATH/val/bees/2.png    splits `train` and `val`, as the folders are named
  PATH/ants/1.jpg        PATH/bees/2.png        one split, `all`, to be cut: `all[:90%]`, `all[90%:]`
"""

import hashlib
import os
from typing import NamedTuple, Sequence

from absl import logging
from etils import epath

from vit_jax.data.sources import splits as splits_lib
from vit_jax.data.images.decode import SUFFIXES
from vit_jax.data.sources.base import Source, fingerprint


class Listing(NamedTuple):
  """What a folder holds, sorted: its folders, its images by name, and what is neither or hidden."""
  folders: list[str]
  images: list[str]
  others: list[str]


def open_folder(path: str, split: str) -> Source:
  """Opens a split of a folder of images.

  Classes are the class folders of all splits, sorted, so that a label means the same in every
  split; a folder without images in its folders is no split. Images are the files with a suffix of
  `decode.SUFFIXES`, in small or large letters; what they hold is decided by their content, so a
  JPEG named .gif is fine. The order, which slices cut, is that of the SHA-256 of CLASS/FILE within
  a class, with the classes evenly interleaved: a slice holds every class in proportion, and does
  not depend on where the folder lies.

  Args:
    path: the folder, local or gs://.
    split: the name of a split folder, or `all` where there are none; slices and sums as in TFDS:
      `train[:90%]`, `train[100:]`, `train+val`.

  Returns:
    The source, in colour; files are read when asked for.

  Raises:
    FileNotFoundError: there is no such folder.
    ValueError: no class folders, an empty one, folders in a class folder, no images, or a bad split.
  """
  root = epath.Path(path).expanduser()
  parts = splits_lib.parse(split)
  splits = _class_folders(root, split, {part.name for part in parts})
  labels = {name: label for label, name in enumerate(sorted(set().union(*splits.values())))}
  orders = {part.name: _order(splits[part.name]) for part in parts}
  sizes = {name: len(order) for name, order in orders.items()}
  files = [orders[part.name][index] for part in parts for index in splits_lib.bounds(part, sizes, split)]
  paths = [os.fspath(path) for path, _ in files]
  names = _Names(paths, 2 if _is_flat(root, splits) else 3)
  # Of every name in a split, whichever part of it is asked for: a record may have come, gone or been renamed.
  fingerprints = {name: fingerprint(sorted(f'{cls}/{os.path.basename(path)}' for path, cls in order))
                  for name, order in orders.items()}
  return Source(_Files(paths, [labels[name] for _, name in files]), name=f'folder:{path}', split=split,
                class_names=tuple(labels), channels=3, upright=True, paths=paths, names=names,
                fingerprints=fingerprints)


def split_names(path: str) -> list[str]:
  """Names of the splits in a folder of images, sorted; raises as `open_folder` does."""
  return sorted(_class_folders(epath.Path(path).expanduser(), 'all', set()))


def list_folder(path: epath.Path) -> Listing:
  """Lists a folder without looking at each file, which would take one request each on gs://."""
  if '://' in os.fspath(path):
    _, folders, files = next(iter(path.walk()), (path, [], []))
  else:  # pathlib's own walk takes a link to a folder for a file.
    _, folders, files = next(os.walk(path, onerror=_raise))
  visible = lambda name: not name.startswith('.')
  images = {name for name in files if visible(name) and os.path.splitext(name)[1].lower() in SUFFIXES}
  return Listing(sorted(filter(visible, folders)), sorted(images), sorted(set(files) - images))


class _Names(Sequence):
  """Names of files below the root, cut out of their paths when asked for."""

  def __init__(self, paths: Sequence[str], depth: int):
    self._paths, self._depth = paths, depth

  def __len__(self):
    return len(self._paths)

  def __getitem__(self, index):
    return '/'.join(self._paths[index].rsplit('/', self._depth)[-self._depth:])


class _Files:
  """Records read from files when asked for."""

  def __init__(self, paths: Sequence[str], labels: Sequence[int]):
    self._paths, self._labels = paths, labels

  def __len__(self):
    return len(self._paths)

  def __getitem__(self, index):
    try:
      return {'image': epath.Path(self._paths[index]).read_bytes(), 'label': self._labels[index]}
    except OSError as error:
      raise OSError(f'Cannot read the image {self._paths[index]}: {error.strerror or error}. {_access(error)}, or leave '
                    'out what cannot be read with --config.data.corrupt=skip') from error


def _class_folders(root, split, asked):
  """Returns {split: {class: folder}} of all splits; raises where `asked`, names of splits, are not among them."""
  inner = {name: list_folder(root / name) for name in _top(root)}
  # A workdir or the like that lies beside the splits must not change the classes.
  nested = {name: listing.folders for name, listing in inner.items()
            if (name in asked and listing.folders) or _hold_images(root / name, listing.folders)}
  flat = [name for name, listing in inner.items() if listing.images and name not in nested]
  if not nested and not flat:
    raise ValueError(f'There are no images in the folders of {root}: {_some(inner)}. {_EXPECTED}')
  if nested and flat and asked == {'all'}:
    deep = ', '.join(f'{root / name} holds {_some(folders)}' for name, folders in nested.items())
    raise ValueError(f'Expected the class folders in {root} to hold no folders, but {deep}. {_EXPECTED}')
  if nested:
    splits = {name: {cls: root / name / cls for cls in folders} for name, folders in nested.items()}
  else:
    splits = {'all': {name: root / name for name in inner}}
  if not asked <= set(splits):
    raise ValueError(
        f'Expected a split of {root}, got {split!r}. Splits there: '
        + ', '.join(f'{name} (classes {_some(classes)})' for name, classes in splits.items())
        + f'. Parts and sums work too: {min(splits)}[:90%], {min(splits)}[100:]. {_EXPECTED}')
  return splits


def _is_flat(root, splits):
  return all(os.fspath(path) == os.fspath(root / name) for classes in splits.values() for name, path in classes.items())


def _hold_images(path, folders):
  return any(list_folder(path / name).images for name in folders)


def _top(root):
  """Names of the folders in the root."""
  if not root.is_dir():
    above = root.parents if '://' in os.fspath(root) else root.absolute().parents
    there = next((parent for parent in above if parent.is_dir()), None)
    if there is None:
      raise FileNotFoundError(f'There is no folder {root}, nor any above it.')
    listing = list_folder(there)
    raise FileNotFoundError(
        f'There is no folder {root}. In {there}: {_some([*listing.folders, *listing.images, *listing.others])}.')
  listing = list_folder(root)
  if not listing.folders:
    found = _some([*listing.images, *listing.others])
    raise ValueError(f'Expected class folders in {root}, found {found}. {_EXPECTED}')
  return listing.folders


def _order(classes):
  """[(path, class)] of a split's images, every class shuffled by hash and spread evenly over the whole."""
  listings = {name: list_folder(folder) for name, folder in classes.items()}
  _check_classes(classes, listings)
  others = [os.fspath(classes[name] / file) for name, listing in listings.items() for file in listing.others]
  if others:
    logging.warning('ignored %d files that are no images: %s', len(others), _some(others))
  keyed = []
  for name, listing in listings.items():
    hashed = sorted((hashlib.sha256(f'{name}/{file}'.encode(errors='surrogateescape')).digest(), file)
                    for file in listing.images)
    keyed += [((rank + 0.5) / len(hashed), key, file, name) for rank, (key, file) in enumerate(hashed)]
  return [(classes[name] / file, name) for _, _, file, name in sorted(keyed)]


def _check_classes(classes, listings):
  for name, listing in listings.items():
    if listing.folders:
      raise ValueError(f'Expected the class folder {classes[name]} to hold images only, found the folders '
                       f'{_some(listing.folders)}. {_EXPECTED}')
    if not listing.images:
      raise ValueError(f'The class folder {classes[name]} holds no images; found {_some(listing.others)}. '
                       f'Images end in {", ".join(sorted(SUFFIXES))}. Fill the folder or remove it.')


def _some(names):
  """The first few of some names, and how many more."""
  names = [os.fspath(name) for name in names]
  return (', '.join(names[:8]) + (f' and {len(names) - 8} more' if len(names) > 8 else '')) or 'nothing'


def _raise(error):
  raise OSError(f'Cannot list the folder {error.filename}: {error.strerror}. {_access(error)}.') from error


def _access(error):
  """What may help against an OSError of a file or folder."""
  if isinstance(error, PermissionError):
    return f"Give yourself the right to read it: chmod -R u+rX '{error.filename}'"
  return 'Copy it again, or mount what it lies on'


_EXPECTED = 'Expected PATH/SPLIT/CLASS/IMAGE, as in train/ants/1.jpg, or PATH/CLASS/IMAGE with the split all.'
