"""Fixtures and settings for all tests: datasets on disk and in memory, fast compilation, checked shapes.

Imports no jax: worker processes of the loader read this file too.
"""
import gc
import io
import os
import sys

# Compiling takes most of the suite's time, here and in the processes it starts; results stay the same.
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
# Tests leave nothing in the user's cache; those of the cache turn it on.
os.environ.setdefault('JAX_ENABLE_COMPILATION_CACHE', 'false')

import pathlib

import jaxtyping

# Tests check shapes and types of these rooms' signatures at every call, except of ViTConfig, which replaces Nones by
# derived values.
CHECKED = [f'vit_jax.{room.replace("/", ".")}.{path.stem}' for room in ('models', 'objectives', 'objectives/masked', 'evaluators')
           for path in (pathlib.Path(__file__).parent.parent / 'vit_jax' / room).glob('*.py')]
jaxtyping.install_import_hook([name for name in CHECKED if name != 'vit_jax.models.config'], 'beartype.beartype')

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from vit_jax.data.sources import digits
from vit_jax.data.sources import registry as sources


def encode(image, encoding='PNG', **options):
  """Encode (H, W) or (H, W, 3) uint8, or a Pillow image, to bytes."""
  image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
  buffer = io.BytesIO()
  image.save(buffer, encoding, **options)
  return buffer.getvalue()


@pytest.fixture(autouse=True, scope='module')
def forget_programs():
  """Free what a file of tests compiled: thousands of programs in a process reach Linux's limit of 65,530 mappings.

  XLA's compiler then ends the process with a segmentation fault.
  """
  yield
  if jax := sys.modules.get('jax'):
    jax.clear_caches()
    gc.collect()


def fake_source(count=10, shape=(6, 5), channels=3, num_classes=4, records=None):
  """Return a Source in memory: random PNG images, label = index % num_classes."""
  if records is None:
    rng = np.random.default_rng(0)
    shape = (count, *shape, 3) if channels == 3 else (count, *shape)
    images = rng.integers(0, 256, shape, dtype=np.uint8)
    records = [{'image': encode(image), 'label': index % num_classes}
               for index, image in enumerate(images)]
  return sources.Source(records, name='fake', split='train', channels=channels,
                        class_names=[f'class {label}' for label in range(num_classes)])


class TinyShapes(tfds.core.GeneratorBasedBuilder):
  """A dataset like those of the TFDS catalog: color images of varying size, 7 for train, 3 for test."""

  VERSION = tfds.core.Version('1.0.0')
  code_path = None

  def _info(self):
    features = {'image': tfds.features.Image(), 'file_name': tfds.features.Text(),
                'label': tfds.features.ClassLabel(names=['circle', 'square'])}
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

  def _split_generators(self, dl_manager):
    return {'train': self._generate_examples(7), 'test': self._generate_examples(3)}

  def _generate_examples(self, count):
    for index in range(count):
      image = np.full((4 + index, 5, 3), index, np.uint8)
      yield index, {'image': io.BytesIO(encode(image)), 'file_name': f'{index}.png',
                    'label': index % 2}


class TinyNumbers(tfds.core.GeneratorBasedBuilder):
  """A dataset that is not image classification."""

  VERSION = tfds.core.Version('1.0.0')
  code_path = None

  def _info(self):
    features = {'image': tfds.features.Image(), 'label': tfds.features.Scalar(np.int64)}
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

  def _split_generators(self, dl_manager):
    return {'train': self._generate_examples()}

  def _generate_examples(self):
    yield 0, {'image': io.BytesIO(encode(np.zeros((2, 2), np.uint8))), 'label': 3}


class TinyScenes(TinyShapes):
  """Gray images with any number of classes: class k is present if row k is bright; in `unlabeled` none is."""

  VERSION = tfds.core.Version('1.0.0')
  code_path = None

  def _info(self):
    features = {'image': tfds.features.Image(shape=(8, 8, 1)),
                'labels': tfds.features.Sequence(tfds.features.ClassLabel(names=['top', 'middle', 'bottom']))}
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

  def _split_generators(self, dl_manager):
    return {'train': self._generate_examples(range(32)), 'test': self._generate_examples(range(16)),
            'unlabeled': self._generate_examples(range(0, 32, 8))}

  def _generate_examples(self, indices):
    for index in indices:
      image, labels = np.zeros((8, 8), np.uint8), [label for label in range(3) if index >> label & 1]
      image[[3 * label for label in labels]] = 200
      yield index, {'image': io.BytesIO(encode(image)), 'labels': labels}


@pytest.fixture(scope='session')
def data_dir(tmp_path_factory):
  """Return a TFDS folder with digits, tiny_shapes, tiny_numbers and tiny_scenes."""
  path = tmp_path_factory.mktemp('data')
  digits.prepare(str(path))
  for builder in (TinyShapes, TinyNumbers, TinyScenes):
    builder(data_dir=str(path), file_format='array_record').download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False))
  return str(path)
