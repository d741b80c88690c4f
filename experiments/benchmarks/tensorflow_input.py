"""The input pipeline as TensorFlow's users write it, for `input_throughput` to run beside ours.

Each builder returns an endless iterator whose items are numbers of images made.
"""
import importlib.util
import os
import pathlib

import numpy as np

from vit_jax.data.images import decode
from vit_jax.data.transforms.spec import parse

SIZE = (224, 224)


def decode_whole(paths, **_):
  """Every pixel."""
  tf = _tensorflow()
  return _in_order(_one_thread(tf, tf.data.Dataset.from_tensor_slices(_read(paths)).repeat().map(
      lambda data: tf.io.decode_jpeg(data, channels=3), num_parallel_calls=1)))


def decode_crops(paths, **_):
  """Crops like ours, the same every time."""
  tf = _tensorflow()
  encoded, boxes = _read(paths), []
  for index, data in enumerate(encoded):
    rows, columns, _ = decode.open_image(data, 3).shape
    boxes.append(crop_box(rows, columns, np.random.Generator(np.random.Philox(key=index))))

  def crop(data, box):
    return tf.cast(tf.image.resize(tf.image.decode_and_crop_jpeg(data, box, channels=3), SIZE), tf.uint8)

  data = tf.data.Dataset.from_tensor_slices((encoded, np.array(boxes, np.int32))).repeat()
  return _in_order(_one_thread(tf, data.map(crop, num_parallel_calls=1)))


def full_pipeline(paths, batch, **_):
  """Read, shuffle, decode, crop, flip, batch, as wide as it chooses."""
  tf = _tensorflow()

  def example(path):
    data = tf.io.read_file(path)
    begin, size, _ = tf.image.sample_distorted_bounding_box(
        tf.image.extract_jpeg_shape(data), tf.zeros([0, 0, 4]), min_object_covered=0, area_range=(0.05, 1.0),
        aspect_ratio_range=(3 / 4, 4 / 3), max_attempts=100, use_image_if_no_bounding_boxes=True)
    box = tf.concat([begin[:2], size[:2]], axis=0)
    image = tf.cast(tf.image.resize(tf.image.decode_and_crop_jpeg(data, box, channels=3), SIZE), tf.uint8)
    return tf.image.random_flip_left_right(image), 0

  data = tf.data.Dataset.from_tensor_slices(paths).shuffle(len(paths)).repeat()
  data = data.map(example, num_parallel_calls=tf.data.AUTOTUNE).batch(batch, drop_remainder=True).prefetch(2)
  for images, _ in data.as_numpy_iterator():
    yield len(images)


def crop_box(rows, columns, rng):
  """(top, left, rows, columns) of the crop that our transform takes with `rng`."""
  seen = []

  class Shape:
    """Stands in for a picture, and notes which part is asked for."""
    shape = (rows, columns, 3)

    def __getitem__(self, part):
      seen.extend([part[0].start, part[1].start, part[0].stop - part[0].start, part[1].stop - part[1].start])
      return np.zeros((1, 1, 3), np.uint8)

  parse('inception_crop', SIZE)(Shape(), rng)
  return seen


def _read(paths):
  return [pathlib.Path(path).read_bytes() for path in paths]


def _one_thread(tf, data):
  options = tf.data.Options()
  options.threading.private_threadpool_size = options.threading.max_intra_op_parallelism = 1
  options.autotune.enabled = False
  return data.with_options(options)


def _in_order(data):
  for _ in data:
    yield 1


def is_there():
  """Whether TensorFlow is installed."""
  return importlib.util.find_spec('tensorflow') is not None


def _tensorflow():
  os.environ.update(TF_CPP_MIN_LOG_LEVEL='3', CUDA_VISIBLE_DEVICES='')
  import tensorflow
  return tensorflow
