"""The 1,797 handwritten digits inside scikit-learn, as a TFDS data set that needs no download.

The smallest real task there is: `open_source('digits', ...)` prepares it in about two seconds, so
the whole trainer can be tried offline. Images are handed to TFDS already encoded, because TFDS
itself encodes through TensorFlow.
"""

import hashlib
import io

import numpy as np
from PIL import Image
import tensorflow_datasets as tfds

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
  """Builds `digits`: image (8, 8, 1) uint8 PNG, label 0..9; splits train (1,497), test (300)."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {'1.0.0': 'First version: 1,497 training and 300 test images.'}
  # TFDS looks for lists of downloads beside this file, with a package it does not install
  # (importlib_resources). There is nothing to download; None is its value for "no file".
  code_path = None

  def _info(self):
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

  def _split_generators(self, dl_manager):
    from sklearn import datasets  # Here only: it takes longer to import than everything above.
    bunch = datasets.load_digits()
    images, labels = bunch.images.astype(np.uint8), bunch.target
    test = test_indices(images, labels)
    train = sorted(set(range(len(labels))) - set(test))
    return {
        'train': self._generate_examples(images, labels, train),
        'test': self._generate_examples(images, labels, test),
    }

  def _generate_examples(self, images, labels, indices):
    for index in indices:
      yield int(index), {'image': _png(to_bytes(images[index])), 'label': int(labels[index])}


def to_bytes(images: np.ndarray) -> np.ndarray:
  """Scales intensities 0..16 to uint8 0..255, by v * 255 / 16 rounded half up; any shape."""
  return ((images.astype(np.int32) * 255 + 8) // 16).astype(np.uint8)


def test_indices(images: np.ndarray, labels: np.ndarray) -> list[int]:
  """Picks the fixed test split.

  The rule uses the pixels alone: no random generator whose stream a library may change, no order
  that a library may change. It also could not put one of two equal images in each split unnoticed:
  equal images rank side by side. (There are none: all 1,797 images differ.)

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
  """Writes the data set under `data_dir` as ArrayRecord files, unless it is there already.

  TFDS writes to a temporary folder and renames it, so a half-written copy is never seen. Of two
  processes that prepare at once the second to finish finds the folder taken, and uses it.

  Raises:
    OSError: `data_dir` cannot be written.
  """
  # Bars for a two-second job only scatter the log; nothing else is prepared from here.
  tfds.disable_progress_bar()
  builder = Digits(data_dir=data_dir, file_format='array_record')
  try:
    # Without `try_download_gcs=False` TFDS asks a Google bucket first, and offline that hangs.
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False))
  except OSError:
    if not Digits(data_dir=data_dir, file_format='array_record').is_prepared():
      raise


def _png(image: np.ndarray) -> io.BytesIO:
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, 'PNG')
  buffer.seek(0)
  return buffer
