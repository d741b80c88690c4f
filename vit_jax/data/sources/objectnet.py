"""ObjectNet (Barbu et al., NeurIPS 2019) for classifiers of ImageNet-1k: the images of the 113 classes that both have.

  PATH/images/alarm_clock/0a1b2c3d4e5f678.png      the download, unpacked: objectnet-1.0
  PATH/mappings/objectnet_to_imagenet_1k.json      which classes of ImageNet an object stands for, and three more files

An image can have several right answers: an alarm clock is an analog or a digital clock.
"""
from collections.abc import Mapping, Sequence
import json
import os
from typing import Any

from etils import epath

from vit_jax.base import files
from vit_jax.base.errors import MissingFileError, UserError
from vit_jax.data.images import change
from vit_jax.data.sources import folder
from vit_jax.data.sources.base import Source

# The red frame that marks the images, as the authors' loader crops it (abarbu/objectnet-template-pytorch).
_FRAME = 2


def open_objectnet(path: str, split: str) -> Source:
  """Open ObjectNet's images with the classes of ImageNet-1k as labels, without their red frame.

  Args:
    path: the folder with `images` and `mappings`, local or gs://.
    split: `all`, or a part of it such as `all[:10%]`.

  Returns:
    A source of color images that can have several of the 1,000 classes, which are in the order of their WordNet ids and
    named as in the mapping.

  Raises:
    MissingFileError: no such folder or file.
    UserError: no images, a bad split, or damaged mappings.
  """
  root = files.expand(path)
  class_names, classes = read_mapping(root / 'mappings')
  images = folder.open_folder(os.fspath(root / 'images'), split)
  kept = [index for index in range(len(images)) if images.record_name(index).partition('/')[0] in classes]
  if not kept:
    raise UserError(f'dataset objectnet:{path}: none of the folders in {root / "images"} has classes of ImageNet')
  names = [images.record_name(index) for index in kept]
  labels = [classes[name.partition('/')[0]] for name in names]
  return Source(_Unframed(images.keep(kept), labels), name=f'objectnet:{path}', split=split, class_names=class_names,
                channels=3, multi_label=True, names=names, paths=[os.fspath(root / 'images' / name) for name in names],
                split_fingerprints=images.split_fingerprints)


def split_names(path: str) -> list[str]:
  """Return ['all']; errors as of `open_objectnet`."""
  return folder.split_names(os.fspath(files.expand(path) / 'images'))


def read_mapping(path: epath.Path) -> tuple[tuple[str, ...], dict[str, list[int]]]:
  """Return (names of ImageNet's classes by WordNet id, {folder of images: classes that its object stands for}).

  Args:
    path: the folder `mappings` of the download.

  Raises:
    MissingFileError: a file is missing.
    UserError: a file does not have the published form.
  """
  contents = [_read(path / name) for name in _FILES]
  try:
    to_imagenet, objects, lines, places = json.loads(contents[0]), json.loads(contents[1]), contents[2], contents[3]
    lines, places = [line.strip() for line in lines.splitlines()], json.loads(places)
    # Lines are in the order of the challenge of 2012; `places` has the line of each class, in that of WordNet ids.
    class_names = tuple(lines[int(places[str(label)])] for label in range(len(lines)))
    labels = {name: label for label, name in enumerate(class_names)}
    folders = {name: folder_name for folder_name, name in objects.items()}
    return class_names, {folders[name]: [labels[imagenet] for imagenet in names.split('; ')]
                         for name, names in to_imagenet.items()}
  except (RecursionError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
    raise UserError(f'{path}: expected the mappings that come with ObjectNet, {", ".join(_FILES)}: {error!r}; unpack '
                    'them again') from error


_FILES = ('objectnet_to_imagenet_1k.json', 'folder_to_objectnet_label.json', 'imagenet_to_label_2012_v2',
          'pytorch_to_imagenet_2012_id.json')


def _read(path: epath.Path) -> str:
  try:
    return path.read_text()
  except FileNotFoundError as error:
    raise MissingFileError(f'{path}: not found; it comes with ObjectNet, https://objectnet.dev. Expected '
                           'objectnet:PATH with PATH/images and PATH/mappings') from error


class _Unframed:
  """The records of a source, with other labels and without the frame of their images."""

  def __init__(self, images: Source, labels: Sequence[Sequence[int]]):
    self._images, self._labels = images, labels

  def __len__(self) -> int:
    return len(self._labels)

  def __getitem__(self, index: int) -> Mapping[str, Any]:
    image = change.change(self._images[index]['image'], 3, lambda pixels: pixels[_FRAME:-_FRAME, _FRAME:-_FRAME])
    return dict(image=image, labels=self._labels[index])
