"""Finds images in folders."""
from collections.abc import Iterator
import os

from etils import epath

from vit_jax.base.errors import UserError
from vit_jax.data.sources.folder import list_folder


def find_images(argument: str) -> list[str]:
  """Return the images in a folder and its subfolders, sorted, without hidden ones; any other path counts as an image.

  Raises:
    UserError: a folder without images.
  """
  path = epath.Path(argument).expanduser()
  if not path.is_dir():
    return [argument]
  found = [os.fspath(image) for image in _images_below(path)]
  if not found:
    raise UserError(f'{argument}: there are no images in this folder')
  return found


def _images_below(folder: epath.Path) -> Iterator[epath.Path]:
  listing = list_folder(folder)
  yield from (folder / image for image in listing.images)
  for name in listing.folders:
    if not os.path.islink(folder / name):  # a link may lead back up
      yield from _images_below(folder / name)
