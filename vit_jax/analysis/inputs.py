"""The images of an analysis: which of a folder, their classes, and batches of them as models see them."""
from collections.abc import Iterator, Sequence
from concurrent import futures
import dataclasses
import os
import pathlib
from typing import Any

import numpy as np

from vit_jax.base import files
from vit_jax.base.errors import UserError
from vit_jax.inference import images as images_lib
from vit_jax.inference import predict

_THREADS = 4


def choose_images(folder: str, count: int) -> list[str]:
  """Return the paths of `count` images, evenly spread over those of a folder and its subfolders, sorted; or of all.

  Raises:
    UserError: no folder, a folder without images, or a number below 1.
  """
  if count < 1:
    raise UserError(f'--count: must be at least 1, got {count}')
  path = files.expand(folder)
  if not path.is_dir():
    raise UserError(f'--images: expected a folder, got {folder}')
  found = images_lib.find_images(os.fspath(path))
  return [found[int(k)] for k in np.linspace(0, len(found) - 1, min(count, len(found)))]


def class_names(paths: Sequence[str]) -> list[str]:
  """Return the class of each image: the name of the folder that it is in."""
  return [pathlib.PurePath(path).parent.name for path in paths]


@dataclasses.dataclass
class Batch:
  """Images that could be read.

  Attributes:
    paths: of the images.
    pixels: for each model (images, rows, columns, channels) uint8, prepared as in its evaluation, not normalized.
  """
  paths: list[str]
  pixels: list[np.ndarray]


class Images:
  """Images of a folder, read again at each use; those that cannot be read are left out and remembered.

  Args:
    paths: of the images.
    models: that the images are prepared for; loaded ones.

  Attributes:
    unreadable: {path: reason} of the images that could not be read so far.
  """

  def __init__(self, paths: Sequence[str], models: Sequence[Any]):
    self._paths = list(paths)
    self._readers = [predict.make_reader(model) for model in models]
    self.unreadable: dict[str, str] = {}

  def batches(self, size: int) -> Iterator[Batch]:
    """Yield batches of `size` readable images; the last one may have fewer."""
    waiting: list[tuple[str, list[np.ndarray]]] = []
    with futures.ThreadPoolExecutor(_THREADS) as pool:
      for start in range(0, len(self._paths), size):
        chunk = self._paths[start:start + size]
        for path, pixels in zip(chunk, pool.map(self._read, chunk), strict=True):
          if pixels is not None:
            waiting.append((path, pixels))
        if len(waiting) >= size:
          yield _batch(waiting[:size])
          waiting = waiting[size:]
    if waiting:
      yield _batch(waiting)

  def _read(self, path: str) -> list[np.ndarray] | None:
    """Return the image as each model sees it, or None if it cannot be read."""
    try:
      return [read(path) for read in self._readers]
    except (OSError, ValueError) as error:
      self.unreadable[path] = str(error)
      return None


def _batch(examples: Sequence[tuple[str, list[np.ndarray]]]) -> Batch:
  paths, pixels = zip(*examples, strict=True)
  return Batch(list(paths), [np.stack(of_model) for of_model in zip(*pixels, strict=True)])
