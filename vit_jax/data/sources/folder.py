"""Your own images: a folder of class folders, or one such folder per split.

  PATH/train/ants/1.jpg  PATH/val/bees/2.png    splits `train` and `val`, named after the folders
  PATH/ants/1.jpg        PATH/bees/2.png        one split, `all`, from which slices are taken: `all[:90%]`, `all[90%:]`
"""
from collections.abc import Iterable, Mapping, Sequence
import hashlib
import os
from typing import Any, NamedTuple, NoReturn

from absl import logging
from etils import epath

from vit_jax.base import files, text
from vit_jax.base.errors import FileError, MissingFileError, UserError
from vit_jax.data.images.decode import SUFFIXES
from vit_jax.data.sources import splits as splits_lib
from vit_jax.data.sources.base import Source, make_fingerprint

Folders = dict[str, epath.Path]  # the folder of each class


class Listing(NamedTuple):
  """The content of a folder, sorted by name: folders and images that are not hidden, and all other files."""
  folders: list[str]
  images: list[str]
  others: list[str]


def open_folder(path: str, split: str) -> Source:
  """Open a split of a folder of images.

  Classes are the class folders of all splits, sorted, so that a label means the same in every split; a folder whose
  folders hold no images is not a split. Images are the files with a suffix of `decode.SUFFIXES`, in lower or upper
  case; they are decoded by their content, so a JPEG named .gif is fine. The order, from which slices are taken, is that
  of the SHA-256 of CLASS/FILE within a class, with the classes evenly interleaved: a slice holds every class in
  proportion and does not depend on where the folder is.

  Args:
    path: the folder, local or gs://.
    split: name of a split folder, or `all` if there are none; slices and sums as in TFDS: `train[:90%]`, `train[100:]`,
      `train+val`.

  Returns:
    The source, in color; files are read when their records are.

  Raises:
    MissingFileError: no such folder.
    UserError: no class folders, an empty one, folders in a class folder, no images, or a bad split.
  """
  root = files.expand(path)
  parts = splits_lib.parse(split)
  splits, nested = _class_folders(root, split, {part.name for part in parts})
  labels = {name: label for label, name in enumerate(sorted(set().union(*splits.values())))}
  orders = {part.name: _order(splits[part.name]) for part in parts}
  sizes = {name: len(order) for name, order in orders.items()}
  images = [orders[part.name][index] for part in parts for index in splits_lib.bounds(part, sizes, split)]
  paths = [os.fspath(path) for path, _ in images]
  # Of all names in a split, whichever slice is opened: a record may have been added, removed or renamed.
  fingerprints = {name: make_fingerprint(sorted(f'{cls}/{os.path.basename(path)}' for path, cls in order))
                  for name, order in orders.items()}
  return Source(_Files(paths, [labels[name] for _, name in images]), name=f'folder:{path}', split=split,
                class_names=tuple(labels), channels=3, upright=True, paths=paths,
                names=_Names(paths, 3 if nested else 2), split_fingerprints=fingerprints)


def split_names(path: str) -> list[str]:
  """Return the names of the splits in a folder of images, sorted; errors as of `open_folder`."""
  return sorted(_class_folders(files.expand(path), 'all', set())[0])


def list_folder(path: epath.Path) -> Listing:
  """List a folder without a look at each file, which would take one request per file on gs://."""
  if files.is_remote(path):
    _, folders, names = next(iter(path.walk()), (path, [], []))
  else:  # pathlib's own walk takes a link to a folder for a file.
    _, folders, names = next(os.walk(path, onerror=_raise_unlisted))
  visible = lambda name: not name.startswith('.')
  images = {name for name in names if visible(name) and os.path.splitext(name)[1].lower() in SUFFIXES}
  return Listing(sorted(filter(visible, folders)), sorted(images), sorted(set(names) - images))


class _Names:
  """Names of files relative to the root, cut out of their paths."""

  def __init__(self, paths: Sequence[str], depth: int):
    self._paths, self._depth = paths, depth

  def __getitem__(self, index: int) -> str:
    return '/'.join(self._paths[index].rsplit('/', self._depth)[-self._depth:])


class _Files:
  """Records that are read from their files on demand."""

  def __init__(self, paths: Sequence[str], labels: Sequence[int]):
    self._paths, self._labels = paths, labels

  def __len__(self) -> int:
    return len(self._paths)

  def __getitem__(self, index: int) -> dict[str, Any]:
    try:
      return {'image': epath.Path(self._paths[index]).read_bytes(), 'label': self._labels[index]}
    except OSError as error:
      raise FileError(f'{self._paths[index]}: cannot read the image: {error.strerror or error}. {_hint(error)}, '
                      'then start the same command again; a new run leaves out unreadable images with '
                      '--config.data.corrupt=skip') from error


def _class_folders(root: epath.Path, split: str, asked: set[str]) -> tuple[dict[str, Folders], bool]:
  """Return ({split: {class: folder}}, whether splits have folders of their own).

  Args:
    root: the folder.
    split: the split as the user named it, for messages.
    asked: names of the splits that must be there.
  """
  inner = {name: list_folder(root / name) for name in _list_root(root)}
  # A run directory or the like beside the splits must not change the classes.
  nested = {name: listing.folders for name, listing in inner.items()
            if (name in asked and listing.folders) or _hold_images(root / name, listing.folders)}
  flat = [name for name, listing in inner.items() if listing.images and name not in nested]
  if not nested and not flat:
    raise UserError(f'{root}: no images in its folders, {_some(inner)}. {_EXPECTED}')
  if nested and flat and asked == {'all'}:
    deep = ', '.join(f'{root / name} has {_some(folders)}' for name, folders in nested.items())
    raise UserError(f'{root}: expected class folders without folders in them, but {deep}. {_EXPECTED}')
  if nested:
    splits = {name: {cls: root / name / cls for cls in folders} for name, folders in nested.items()}
  else:
    splits = {'all': {name: root / name for name in inner}}
  if not asked <= set(splits):
    found = ', '.join(f'{name} (classes {_some(classes)})' for name, classes in splits.items())
    raise UserError(f'split {split!r}: not in {root}. Splits there: {found}. Parts and sums work too: '
                    f'{min(splits)}[:90%], {min(splits)}[100:]. {_EXPECTED}')
  return splits, bool(nested)


def _hold_images(path: epath.Path, folders: Iterable[str]) -> bool:
  return any(list_folder(path / name).images for name in folders)


def _list_root(root: epath.Path) -> list[str]:
  """Return the names of the folders in the root."""
  if not root.is_dir():
    above = next((parent for parent in root.parents if parent.is_dir()), None)
    if above is None:
      raise MissingFileError(f'{root}: no such folder, nor any above it')
    listing = list_folder(above)
    raise MissingFileError(f'{root}: no such folder. {above} has '
                           f'{_some([*listing.folders, *listing.images, *listing.others])}.')
  listing = list_folder(root)
  if not listing.folders:
    raise UserError(f'{root}: expected class folders, found {_some([*listing.images, *listing.others])}. {_EXPECTED}')
  return listing.folders


def _order(classes: Folders) -> list[tuple[epath.Path, str]]:
  """Return [(path, class)] of a split's images: every class shuffled by hash and spread evenly over the whole."""
  listings = {name: list_folder(folder) for name, folder in classes.items()}
  _check_classes(classes, listings)
  others = [os.fspath(classes[name] / file) for name, listing in listings.items() for file in listing.others]
  if others:
    logging.warning('ignored %s: %s', text.count(len(others), 'file that is not an image', 'files that are not images'),
                    _some(others))
  keyed = []
  for name, listing in listings.items():
    hashed = sorted((hashlib.sha256(f'{name}/{file}'.encode(errors='surrogateescape')).digest(), file)
                    for file in listing.images)
    keyed += [((rank + 0.5) / len(hashed), key, file, name) for rank, (key, file) in enumerate(hashed)]
  return [(classes[name] / file, name) for _, _, file, name in sorted(keyed)]


def _check_classes(classes: Folders, listings: Mapping[str, Listing]) -> None:
  for name, listing in listings.items():
    if listing.folders:
      raise UserError(f'{classes[name]}: expected a class folder of images, found the folders '
                      f'{_some(listing.folders)}. {_EXPECTED}')
    if not listing.images:
      raise UserError(f'{classes[name]}: no images in this class folder; found {_some(listing.others)}. Images end in '
                      f'{", ".join(sorted(SUFFIXES))}. Add images or remove the folder.')


def _some(names: Iterable[object]) -> str:
  return text.listing(names) or 'nothing'


def _raise_unlisted(error: OSError) -> NoReturn:
  raise FileError(f'{error.filename}: cannot list the folder: {error.strerror}. {_hint(error)}.') from error


def _hint(error: OSError) -> str:
  """Return what may help if a file or folder cannot be read."""
  if isinstance(error, PermissionError):
    return f"Make it readable: chmod -R u+rX '{error.filename}'"
  return 'Copy it again, or mount its file system'


_EXPECTED = 'Expected PATH/SPLIT/CLASS/IMAGE, such as train/ants/1.jpg, or PATH/CLASS/IMAGE with the split all.'
