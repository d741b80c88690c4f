"""Your own images: a folder of class folders, or one such folder for each split.

  PATH/train/ants/1.jpg  PATH/val/bees/2.png    splits `train` and `val`, as the folders are named
  PATH/ants/1.jpg        PATH/bees/2.png        one split, `all`, to be cut: `all[:90%]`, `all[90%:]`
"""

import hashlib
import os
import re
from typing import NamedTuple, Sequence

from absl import logging
from etils import epath

from vit_jax.data.decode import SUFFIXES
from vit_jax.data.source import Source


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
  parts = _parse(split)
  splits = _class_folders(root, split, {part.name for part in parts})
  labels = {name: label for label, name in enumerate(sorted(set().union(*splits.values())))}
  orders = {part.name: _order(splits[part.name]) for part in parts}
  files = [file for part in parts for file in orders[part.name][_bounds(part, orders, split)]]
  paths = [os.fspath(path) for path, _ in files]
  return Source(_Files(paths, [labels[name] for _, name in files]), name=f'folder:{path}', split=split,
                class_names=tuple(labels), channels=3, upright=True, paths=paths)


def list_folder(path: epath.Path) -> Listing:
  """Lists a folder without looking at each file, which would take one request each on gs://."""
  if '://' in os.fspath(path):
    _, folders, files = next(iter(path.walk()), (path, [], []))
  else:  # pathlib's own walk takes a link to a folder for a file.
    _, folders, files = next(os.walk(path, onerror=_raise))
  visible = lambda name: not name.startswith('.')
  images = {name for name in files if visible(name) and os.path.splitext(name)[1].lower() in SUFFIXES}
  return Listing(sorted(filter(visible, folders)), sorted(images), sorted(set(files) - images))


class _Files:
  """Records read from files when asked for."""

  def __init__(self, paths: Sequence[str], labels: Sequence[int]):
    self._paths, self._labels = paths, labels

  def __len__(self):
    return len(self._paths)

  def __getitem__(self, index):
    return {'image': epath.Path(self._paths[index]).read_bytes(), 'label': self._labels[index]}


class _Part(NamedTuple):
  """One term of a split string: `name[start:stop]`, the bounds as text, empty or None where there are none."""
  name: str
  start: str | None
  stop: str | None


def _parse(split):
  number = r'-?\d+(?:\.\d+(?=%))?%?'
  matches = [re.fullmatch(rf'\s*([^\[\]+]+?)\s*(?:\[\s*({number})?\s*:\s*({number})?\s*\])?\s*', term)
             for term in split.split('+')]
  if not all(matches):
    raise ValueError(f'Expected a split such as train, train[:90%], train[100:] or train+val, got {split!r}.')
  return [_Part(*match.groups()) for match in matches]


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


def _hold_images(path, folders):
  return any(list_folder(path / name).images for name in folders)


def _top(root):
  """Names of the folders in the root."""
  if not root.is_dir():
    there = next(parent for parent in root.absolute().parents if parent.is_dir())
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


def _bounds(part, orders, split):
  """The slice of a split's order that a part asks for."""
  size = len(orders[part.name])
  start, stop = _position(part.start or '0', size), _position(part.stop or f'{size}', size)
  if not 0 <= start < stop <= size:
    raise ValueError(f'Split {split!r}: {part.name} has {size} images, and records {start} to {stop} of them are '
                     f'none or too many. Expected bounds such as {part.name}[:90%] or {part.name}[:{size}].')
  return slice(start, stop)


def _position(bound, size):
  """A bound such as '-10' or '33.3%' as a number from the start; percent are rounded as TFDS rounds them."""
  position = round(float(bound[:-1]) * size / 100) if bound.endswith('%') else int(bound)
  return position + size if bound.startswith('-') else position


def _some(names):
  """The first few of some names, and how many more."""
  names = [os.fspath(name) for name in names]
  return (', '.join(names[:8]) + (f' and {len(names) - 8} more' if len(names) > 8 else '')) or 'nothing'


def _raise(error):
  raise error


_EXPECTED = 'Expected PATH/SPLIT/CLASS/IMAGE, as in train/ants/1.jpg, or PATH/CLASS/IMAGE with the split all.'
