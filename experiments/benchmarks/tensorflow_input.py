"""The input pipeline as TensorFlow's users write it, for `input_throughput` to compare with ours.

Each builder returns an endless iterator whose items are numbers of images made.
"""
from collections.abc import Iterator, Sequence
import importlib.util
import os
import pathlib
from typing import Any

import numpy as np

from vit_jax.data.images import decode
from vit_jax.data.transforms.spec import parse

SIZE = (224, 224)


def decode_whole(paths: Sequence[str], **_: Any) -> Iterator[int]:
  """Decode every pixel."""
  tf = _tensorflow()
  return _in_order(_one_thread(tf, tf.data.Dataset.from_tensor_slices(_read(paths)).repeat().map(
      lambda data: tf.io.decode_jpeg(data, channels=3), num_parallel_calls=1)))


def decode_crops(paths: Sequence[str], **_: Any) -> Iterator[int]:
  """Decode and resize the crops that our transform takes, the same every time."""
  tf = _tensorflow()
  encoded, boxes = _read(paths), []
  for index, data in enumerate(encoded):
    rows, columns = decode.open_image(data, 3).shape[:2]
    boxes.append(crop_box(rows, columns, np.random.Generator(np.random.Philox(key=index))))

  def crop(data: Any, box: Any) -> Any:
    return tf.cast(tf.image.resize(tf.image.decode_and_crop_jpeg(data, box, channels=3), SIZE), tf.uint8)

  data = tf.data.Dataset.from_tensor_slices((encoded, np.array(boxes, np.int32))).repeat()
  return _in_order(_one_thread(tf, data.map(crop, num_parallel_calls=1)))


def full_pipeline(paths: Sequence[str], batch: int, **_: Any) -> Iterator[int]:
  """Read, shuffle, decode, crop, flip, batch, with as many threads as tf.data chooses."""
  tf = _tensorflow()

  def example(path: Any) -> tuple[Any, int]:
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


def crop_box(rows: int, columns: int, rng: np.random.Generator) -> list[int]:
  """Return (top, left, rows, columns) of the crop that our transform takes with `rng`."""
  seen: list[int] = []

  class Shape:
    """Stands in for an image, and records which part is read."""
    shape = (rows, columns, 3)

    def __getitem__(self, part: tuple[slice, slice]) -> np.ndarray:
      seen.extend([part[0].start, part[1].start, part[0].stop - part[0].start, part[1].stop - part[1].start])
      return np.zeros((1, 1, 3), np.uint8)

  image: Any = Shape()
  parse('inception_crop', SIZE)(image, rng)
  return seen


def _read(paths: Sequence[str]) -> list[bytes]:
  return [pathlib.Path(path).read_bytes() for path in paths]


def _one_thread(tf: Any, data: Any) -> Any:
  options = tf.data.Options()
  options.threading.private_threadpool_size = options.threading.max_intra_op_parallelism = 1
  options.autotune.enabled = False
  return data.with_options(options)


def _in_order(data: Any) -> Iterator[int]:
  for _ in data:
    yield 1


def is_installed() -> bool:
  """Return whether TensorFlow is installed."""
  return importlib.util.find_spec('tensorflow') is not None


def _tensorflow() -> Any:
  os.environ.update(TF_CPP_MIN_LOG_LEVEL='3', CUDA_VISIBLE_DEVICES='')
  import tensorflow
  return tensorflow
