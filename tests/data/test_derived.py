"""Labels derived from features: VTAB's rules against their published form, on made data in TFDS's own format."""
import io
import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.conftest import encode
from tests.tiny import ROOT
from vit_jax.base.errors import UserError
from vit_jax.configs import common
from vit_jax.data.images import decode
from vit_jax.data.sources import derived, registry


def published(value, thresholds):
  """Return the label as google-research/task_adaptation writes it: the last threshold that the value exceeds."""
  return max(np.flatnonzero((np.array(thresholds, np.float32) - np.float32(value)) < 0))


@pytest.mark.parametrize('distance', [0.1, 7.99, 8.0, 8.01, 8.5, 8.7, 9.0, 9.49, 9.5, 9.51, 10.0, 10.01, 42.0])
def test_closest_object_of_clevr(distance):
  rule = derived.LABELS['clevr/closest_object_distance']
  coordinates = [np.array([100.0, 3.0, distance + far], np.float32) for far in (5.0, 0.0, 0.5)]
  label = rule.label({'objects': {'pixel_coords': coordinates}})
  assert label == published(distance, [0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0]) and 0 <= label < len(rule.class_names) == 6


def test_objects_of_clevr_are_counted_from_three():
  rule = derived.LABELS['clevr/count_all']
  labels = [rule.label({'objects': {'size': np.zeros(count)}}) for count in range(3, 11)]
  assert labels == list(range(8)) and rule.class_names == ('3', '4', '5', '6', '7', '8', '9', '10')


@pytest.mark.parametrize('objects', [
    [], [(3, 1.0)], [(0, 8.0)], [(1, 8.1), (3, 2.0)], [(2, 20.0), (0, 30.0)], [(2, 20.1)], [(0, 500.0), (7, 0.5)],
    [(0, -3.0)]])
def test_closest_vehicle_of_kitti(objects):
  rule = derived.LABELS['kitti/closest_vehicle_distance']
  vehicles = [z for kind, z in objects if kind < 3] + [1000.0]
  record = {'objects': {'type': [kind for kind, _ in objects], 'location': [np.array([9.0, 9.0, z]) for _, z in objects]}}
  assert rule.label(record) == published(min(vehicles), [-100.0, 8.0, 20.0, 999.0])
  assert len(rule.class_names) == 4


@pytest.mark.parametrize('task, feature, values', [('orientation', 'label_orientation', 40),
                                                   ('x_position', 'label_x_position', 32)])
def test_values_of_dsprites_are_grouped_into_sixteen(task, feature, values):
  rule = derived.LABELS[f'dsprites/{task}']
  labels = [rule.label({feature: value}) for value in range(values)]
  assert labels == [int(np.floor(np.float32(value) / (values / 16))) for value in range(values)]
  assert len(rule.class_names) == 16
  for value, label in enumerate(labels):
    low, high = rule.class_names[label].split('-')
    assert int(low) <= value <= int(high)


def test_a_distance_that_no_class_holds_is_an_error():
  with pytest.raises(UserError, match='expected a value above 0.0, got -1.0'):
    derived.interval(-1.0, (0.0, 8.0))


def png(shape, seed, high=256):
  return io.BytesIO(encode(np.random.default_rng(seed).integers(0, high, shape, np.uint8)))


def example(name, n):
  """Return what matters of the n-th example of a dataset."""
  point = lambda z: [1.0, 2.0, z]
  if name == 'clevr':
    return {'image': png((6, 9, 3), n), 'objects': [{'pixel_coords': point(7.75 + n / 2 + k)} for k in range(3 + n % 8)]}
  if name == 'kitti':
    return {'image': png((5, 12, 3), n),
            'objects': [{'type': k + n % 4, 'location': point(5.0 + 3 * n + k)} for k in range(n % 3)]}
  if name == 'dsprites':
    return {'image': png((64, 64), n, 2), 'label_orientation': 4 * n, 'label_x_position': 3 * n}
  if name == 'smallnorb':
    return {'image': png((96, 96), n), 'image2': png((96, 96), n + 100), 'label_azimuth': n, 'label_elevation': n % 9}
  return {'image': png((7, 7, 3), n), 'real_label': list(range(n % 3))}


def complete(feature, value):
  """Return a value of a feature with zeros for all that it lacks."""
  if isinstance(feature, tfds.features.FeaturesDict):
    return {key: complete(child, (value or {}).get(key)) for key, child in feature.items()}
  if isinstance(feature, tfds.features.Sequence):
    return [complete(feature.feature, item) for item in value or []]
  if value is not None:
    return value
  if isinstance(feature, tfds.features.BBoxFeature):
    return tfds.features.BBox(0.0, 0.0, 1.0, 1.0)
  return '' if isinstance(feature, tfds.features.Text) else np.zeros(feature.shape, feature.np_dtype)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Return a folder with ten records of each dataset: all features of TFDS's own builders, which also read them."""
  path = tmp_path_factory.mktemp('derived')
  for name in ('clevr', 'dsprites', 'kitti', 'smallnorb', 'imagenet2012_real'):
    published = tfds.builder(name, data_dir=str(path))

    def examples(self, published=published):
      yield from ((n, complete(published.info.features, example(self.name, n))) for n in range(10))

    with tfds.core.registered.skip_registration():
      made = type(published.name, (tfds.core.GeneratorBasedBuilder,), dict(
          VERSION=published.version, code_path=None, name=name, _generate_examples=examples,
          _info=lambda self, published=published: tfds.core.DatasetInfo(builder=self, features=published.info.features),
          _split_generators=lambda self, manager: {'train': self._generate_examples()}))
    made(data_dir=str(path), file_format='array_record').download_and_prepare()
  return str(path)


# The rules by hand, on the numbers of `example`.
EXPECTED = {
    'clevr/count_all': [n % 8 for n in range(10)],
    'clevr/closest_object_distance': [published(7.75 + n / 2, [0, 8, 8.5, 9, 9.5, 10, 100]) for n in range(10)],
    # No object, one, two of types n % 4 and n % 4 + 1: the first is the closest vehicle unless its type is 3.
    'kitti/closest_vehicle_distance': [
        3 if n % 3 == 0 or n % 4 == 3 else published(5 + 3 * n, [-100, 8, 20, 999]) for n in range(10)],
    'dsprites/orientation': [int(4 * n / 2.5) for n in range(10)],
    'dsprites/x_position': [int(3 * n / 2) for n in range(10)],
    'smallnorb/azimuth': list(range(10)),
    'smallnorb/elevation': [n % 9 for n in range(10)],
    'imagenet2012_real': [list(range(n % 3)) for n in range(10)],
}


@pytest.mark.parametrize('name', derived.LABELS)
def test_datasets_are_read_with_their_derived_labels(name, folder):
  source = registry.open_source(name, 'train', folder)
  stored = name.partition('/')[0]
  channels = 1 if stored in ('dsprites', 'smallnorb') else 3
  assert (len(source), source.channels, source.multi_label) == (10, channels, name == 'imagenet2012_real')
  assert source.num_classes == (1000 if source.multi_label else len(derived.LABELS[name].class_names))
  found = {}
  for index, record in enumerate(source.read(range(10))):  # TFDS shuffles records as it writes them
    pixels = decode.decode(record['image'], channels)
    n = next(n for n in range(10) if np.array_equal(
        np.where(decode.decode(example(stored, n)['image'].getvalue(), channels) > 0, 255, 0) if stored == 'dsprites'
        else decode.decode(example(stored, n)['image'].getvalue(), channels), pixels))
    found[n] = record['label']
    assert source[index] == record
  assert [found[n] for n in range(10)] == EXPECTED[name]


def test_a_version_may_follow_and_splits_are_those_of_the_dataset(folder):
  source = registry.open_source('kitti/closest_vehicle_distance:3.3.0', 'train[2:7]', folder)
  assert len(source) == 5 and source.record_name(0) == 'train/2'
  assert registry.split_names('clevr/count_all', folder) == ['train']


def test_derived_records_go_to_worker_processes():
  records = derived.DerivedRecords([{'image': b'x', 'label_azimuth': 7}], 'smallnorb/azimuth')
  assert pickle.loads(pickle.dumps(records))[0]['label'] == 7


def test_datasets_without_a_label_list_those_that_can_be_derived(folder):
  for name in ('clevr', 'clevr/count'):
    with pytest.raises(UserError, match='derived from its features: clevr/closest_object_distance, clevr/count_all'):
      registry.open_source(name, 'train', folder)


# The 19 tasks: classes, and the sizes of TFDS's splits that the split strings count in (google-research/
# task_adaptation: percentages of the training split where there is no validation or test split).
TASKS = {
    'caltech101': (102, dict(train=3060), 90), 'cifar100': (100, dict(train=50_000), 90),
    'dtd': (47, {}, None), 'oxford_flowers102': (102, {}, None), 'oxford_iiit_pet': (37, dict(train=3680), 80),
    'sun397': (397, {}, None), 'svhn_cropped': (10, dict(train=73_257), 90),
    'diabetic_retinopathy_detection': (5, {}, None), 'eurosat': (10, dict(train=27_000), 60),
    'patch_camelyon': (2, {}, None), 'resisc45': (45, dict(train=31_500), 60), 'clevr_count': (8, dict(train=70_000), 90),
    'clevr_distance': (6, dict(train=70_000), 90), 'dmlab': (6, {}, None),
    'dsprites_location': (16, dict(train=737_280), 80), 'dsprites_orientation': (16, dict(train=737_280), 80),
    'kitti_distance': (4, {}, None), 'smallnorb_azimuth': (18, dict(test=24_300), 0),
    'smallnorb_elevation': (9, dict(test=24_300), 0),
}


def test_splits_are_the_first_of_those_of_task_adaptation():
  """The first 800 of its training split, the first 200 of its validation split."""
  assert list(TASKS) == list(common.VTAB)
  for task, (classes, sizes, percent) in TASKS.items():
    name, train, test, _, _ = common.VTAB[task]
    if percent is None:
      assert (train, test) == ('train[:800]+validation[:200]', 'test'), task
    else:
      split, size = next(iter(sizes.items()))
      first = size * percent // 100
      assert train == f'train[:800]+{split}[{first}:{first + 200}]'.replace('[0:', '[:'), task
    if name in derived.LABELS:
      assert len(derived.LABELS[name].class_names) == classes
  assert common.VTAB['eurosat'][2] == f'train[{27_000 * 80 // 100}:]'
  assert common.VTAB['resisc45'][2] == f'train[{31_500 * 80 // 100}:]'
  assert common.VTAB['dsprites_location'][2] == common.VTAB['dsprites_orientation'][2] == f'train[{737_280 * 90 // 100}:]'
  assert {common.VTAB[f'clevr_{kind}'][2] for kind in ('count', 'distance')} == {'validation'}
  assert {common.VTAB[f'smallnorb_{kind}'][2] for kind in ('azimuth', 'elevation')} == {'test[50%:]'}


def test_the_table_in_the_documentation_is_that_of_the_recipes():
  text = (ROOT / 'docs' / 'data.md').read_text().partition('<!-- vtab')[2].partition('<!-- end of vtab')[0]
  rows = [[cell.strip().strip('`') for cell in line.strip('|').split('|')] for line in text.splitlines()[3:]]
  changes = lambda crop, flip: ', '.join(['crop'] * crop + ['flip'] * flip) or 'none'
  assert rows == [[f'vtab_{task}', name, str(TASKS[task][0]), train, test, changes(crop, flip)]
                  for task, (name, train, test, crop, flip) in common.VTAB.items()]
