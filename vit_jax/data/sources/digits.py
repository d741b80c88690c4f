"""The 1,797 handwritten digits in scikit-learn as a TFDS dataset that needs no download.

It is a small but real task: `open_source('digits', ...)` prepares it in about two seconds, so the whole trainer can be
tried offline. TFDS gets images that are already encoded, because it would encode them with TensorFlow.
"""
from collections.abc import Iterable, Iterator
import hashlib
import io
from typing import Any

import numpy as np
from PIL import Image
import tensorflow_datasets as tfds

from vit_jax.base.errors import FileError

NUM_TEST_PER_CLASS = 30

_DESCRIPTION = """\
1,797 images of handwritten digits, 8x8 pixels: the test half of the UCI data set "Optical
Recognition of Handwritten Digits", as shipped with scikit-learn (`sklearn.datasets.load_digits`).
The original intensities v = 0..16 are stored as the byte (v * 255 + 8) // 16, which is
v * 255 / 16 rounded half up. Split: 30 images of each class for test (300), the other 1,497 for
train; the test images of a class are the 30 whose original pixels have the smallest SHA-256.
"""

_CITATION = """\
@misc{optdigits,
  author = {Alpaydin, E. and Kaynak, C.},
  title = {{Optical Recognition of Handwritten Digits}},
  year = {1998},
  howpublished = {UCI Machine Learning Repository},
  doi = {10.24432/C50P49}
}
"""


class Digits(tfds.core.GeneratorBasedBuilder):
  """Builder of `digits`: image (8, 8, 1) uint8 PNG, label 0..9; splits train (1,497) and test (300)."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {'1.0.0': 'First version: 1,497 training and 300 test images.'}
  # TFDS would look for lists of downloads beside this file with importlib_resources, which it does not install. There
  # is nothing to download; None is its value for "no file".
  code_path = None

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
        builder=self,
        description=_DESCRIPTION,
        features=tfds.features.FeaturesDict({
            'image': tfds.features.Image(shape=(8, 8, 1), encoding_format='png'),
            'label': tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
        }),
        supervised_keys=('image', 'label'),
        homepage='https://archive.ics.uci.edu/dataset/80',
        citation=_CITATION,
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
    from sklearn import datasets  # Only when needed: it takes longer to import than everything above.
    bunch: Any = datasets.load_digits()
    images, labels = bunch.images.astype(np.uint8), bunch.target
    test = test_indices(images, labels)
    train = sorted(set(range(len(labels))) - set(test))
    return {
        'train': self._generate_examples(images, labels, train),
        'test': self._generate_examples(images, labels, test),
    }

  def _generate_examples(self, images: np.ndarray, labels: np.ndarray,
                         indices: Iterable[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    for index in indices:
      yield int(index), {'image': _png(to_bytes(images[index])), 'label': int(labels[index])}


def to_bytes(images: np.ndarray) -> np.ndarray:
  """Scale intensities 0..16 to uint8 0..255 by v * 255 / 16, rounded half up; any shape.

  >>> to_bytes(np.array([0, 8, 16]))
  array([  0, 128, 255], dtype=uint8)
  """
  return ((images.astype(np.int32) * 255 + 8) // 16).astype(np.uint8)


def test_indices(images: np.ndarray, labels: np.ndarray) -> list[int]:
  """Choose the fixed test split.

  The rule depends only on the pixels: not on a random generator or an order that a library may change. All 1,797 images
  are different, so none can be in both splits.

  Args:
    images: (N, 8, 8) uint8, original intensities 0..16.
    labels: (N,) integers, 0..9.

  Returns:
    The sorted indices of the NUM_TEST_PER_CLASS images of each class with the smallest SHA-256.
  """
  chosen = []
  for label in np.unique(labels):
    indices = np.flatnonzero(labels == label).tolist()
    indices.sort(key=lambda index: hashlib.sha256(images[index].tobytes()).digest())
    chosen += indices[:NUM_TEST_PER_CLASS]
  return sorted(chosen)


def prepare(data_dir: str) -> None:
  """Write the dataset to `data_dir` as ArrayRecord files, unless it is there already.

  TFDS writes to a temporary folder and renames it, so a half-written copy is never seen. If two processes prepare it at
  the same time, the second to finish finds the folder there and uses it.

  Raises:
    FileError: `data_dir` cannot be written.
  """
  # Progress bars for two seconds would only clutter the log.
  tfds.disable_progress_bar()
  builder = Digits(data_dir=data_dir, file_format='array_record')
  try:
    # Without `try_download_gcs=False` TFDS asks a Google bucket first, which hangs offline.
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
  except OSError as error:
    if not Digits(data_dir=data_dir, file_format='array_record').is_prepared():
      raise FileError(f'{data_dir}: cannot prepare digits here: {error}; choose another folder with '
                      '--config.data.data_dir or make room') from error


def _png(image: np.ndarray) -> io.BytesIO:
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, 'PNG')
  buffer.seek(0)
  return buffer
