"""Labels that are derived from other features of a TFDS dataset, by name: `clevr/count_all`.

The rules, thresholds and numbers of classes are those of VTAB (arXiv 1910.04867; google-research/task_adaptation, data/
clevr.py, dsprites.py, kitti.py, smallnorb.py). Adding a label is a row of LABELS.
"""
from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from vit_jax.base.errors import UserError
from vit_jax.data.images import change

Record = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class DerivedLabel:
  """A label that a dataset does not store.

  Attributes:
    features: the features that it is computed from.
    class_names: name of each class, in order; None are those of the feature, which is a sequence of classes.
    label: record → class, or the classes if an image can have any number of them.
    image: content of an image file → content of the image file to decode instead; None leaves it as it is.
  """
  features: tuple[str, ...]
  class_names: tuple[str, ...] | None
  label: Callable[[Record], int | Sequence[int]]
  image: Callable[[bytes], bytes] | None = None


def interval(value: float, thresholds: Sequence[float]) -> int:
  """Return the number of the interval that a value is in; a threshold belongs to the interval below it.

  Args:
    value: larger than the first threshold.
    thresholds: increasing; the last interval has no upper end.

  Raises:
    UserError: the value is not larger than the first threshold.

  >>> interval(8.0, (0.0, 8.0, 8.5)), interval(8.1, (0.0, 8.0, 8.5)), interval(99.0, (0.0, 8.0, 8.5))
  (0, 1, 2)
  """
  found = int(np.searchsorted(np.asarray(thresholds), value, side='left')) - 1
  if found < 0:
    raise UserError(f'derived label: expected a value above {thresholds[0]}, got {value}')
  return found


def _count_objects(record: Record) -> int:
  """Return the class of a CLEVR scene, which has 3 to 10 objects."""
  return len(record['objects']['size']) - 3


def _closest_object(record: Record) -> int:
  """Return the class of the distance, in CLEVR's units, of the object that is closest to the camera."""
  return interval(_third(record['objects']['pixel_coords']).min(), _CLEVR_DISTANCES)


def _closest_vehicle(record: Record) -> int:
  """Return the class of the distance, in meters, of the closest car, van or truck in a KITTI scene."""
  objects = record['objects']
  distances = _third(objects['location'])[np.asarray(objects['type'], np.int64) < _KITTI_VEHICLES]
  return interval(distances.min(initial=_KITTI_NO_VEHICLE), _KITTI_DISTANCES)


def _third(coordinates: Sequence[Any]) -> np.ndarray:
  """Return the third of three coordinates of each object, (objects,) float32: how far it is from the camera."""
  return np.asarray(coordinates, np.float32).reshape(-1, 3)[:, 2]


def _binned(feature: str, values: int, classes: int) -> Callable[[Record], int]:
  """Return a rule that groups neighboring values 0..values - 1 of a feature into fewer classes."""
  return lambda record: int(record[feature]) * classes // values


def _bin_names(values: int, classes: int) -> tuple[str, ...]:
  """Return the values in each class of `_binned`: '0-2', '3-4', …"""
  groups = [[value for value in range(values) if value * classes // values == label] for label in range(classes)]
  return tuple(f'{group[0]}-{group[-1]}' for group in groups)


def _visible(content: bytes) -> bytes:
  """Return an image of dSprites, whose pixels are stored as 0 and 1, with pixels 0 and 255."""
  return change.change(content, 1, lambda pixels: np.where(pixels > 0, np.uint8(255), np.uint8(0)))


_CLEVR_DISTANCES = (0.0, 8.0, 8.5, 9.0, 9.5, 10.0)
_KITTI_DISTANCES = (-100.0, 8.0, 20.0, 999.0)
_KITTI_VEHICLES = 3  # types 0, 1 and 2 are car, van and truck
_KITTI_NO_VEHICLE = 1000.0

LABELS = {
    'clevr/closest_object_distance': DerivedLabel(
        ('objects',), ('up to 8', '8 to 8.5', '8.5 to 9', '9 to 9.5', '9.5 to 10', 'over 10'), _closest_object),
    'clevr/count_all': DerivedLabel(('objects',), tuple(map(str, range(3, 11))), _count_objects),
    'dsprites/orientation': DerivedLabel(
        ('label_orientation',), _bin_names(40, 16), _binned('label_orientation', 40, 16), _visible),
    'dsprites/x_position': DerivedLabel(
        ('label_x_position',), _bin_names(32, 16), _binned('label_x_position', 32, 16), _visible),
    # The features are numbers of classes; in degrees by the dataset's page, cs.nyu.edu/~ylclab/data/norb-v1.0-small.
    'smallnorb/azimuth': DerivedLabel(
        ('label_azimuth',), tuple(f'{20 * n}°' for n in range(18)), lambda record: int(record['label_azimuth'])),
    'smallnorb/elevation': DerivedLabel(
        ('label_elevation',), tuple(f'{30 + 5 * n}°' for n in range(9)), lambda record: int(record['label_elevation'])),
    'kitti/closest_vehicle_distance': DerivedLabel(
        ('objects',), ('up to 8 m', '8 to 20 m', 'over 20 m', 'no vehicle'), _closest_vehicle),
    # ImageNet's validation images with the labels of "Are we done with ImageNet?" (arXiv 2006.07159), possibly none.
    'imagenet2012_real': DerivedLabel(('real_label',), None, lambda record: record['real_label']),
}


def parse(name: str) -> tuple[str, str | None]:
  """Return the (TFDS name, key of LABELS or None) that the name of a dataset stands for.

  >>> parse('clevr/count_all'), parse('kitti/closest_vehicle_distance:3.1.0'), parse('cifar10')
  (('clevr', 'clevr/count_all'), ('kitti:3.1.0', 'kitti/closest_vehicle_distance'), ('cifar10', None))
  """
  key, colon, version = name.partition(':')
  return (key.partition('/')[0] + colon + version, key) if key in LABELS else (name, None)


class DerivedRecords:
  """Records with derived labels. It can be pickled, as it finds its rule by name.

  Args:
    records: the stored records.
    key: of LABELS.
  """

  def __init__(self, records: Any, key: str):
    self._records, self._key = records, key

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> Record:
    return self._derive(self._records[index])

  def __getitems__(self, indices: Sequence[int]) -> list[Record]:
    """Return many records in one read."""
    return [self._derive(record) for record in self._records.__getitems__(indices)]

  def _derive(self, record: Record) -> Record:
    rule = LABELS[self._key]
    label = rule.label(record)
    image = rule.image(record['image']) if rule.image else record['image']
    return dict(record, image=image, **({'label': label} if rule.class_names else {'labels': label}))
