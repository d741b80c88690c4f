"""What an image looks like, small: a hash to find similar images by, a thumbnail to compare them with."""

import numpy as np
from PIL import Image

THUMBNAIL = 32  # Rows and columns.
_KEPT = 8  # Lowest frequencies of the hash, in each direction.


def thumbnail(pixels: np.ndarray) -> np.ndarray:
  """(H, W, 1 or 3) uint8 to (THUMBNAIL, THUMBNAIL) uint8: greyscale (ITU-R 601), the aspect ratio given up."""
  image = Image.fromarray(pixels[:, :, 0] if pixels.shape[-1] == 1 else pixels).convert('L')
  return np.asarray(image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR, reducing_gap=3.0))


def perceptual_hash(small: np.ndarray) -> int:
  """64 bits, of which few change when an image is compressed, scaled, brightened or slightly cropped.

  A bit says whether a coefficient of the thumbnail's discrete cosine transform, one of the 8 × 8 lowest, lies above
  their median (pHash: Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010, section 3.2.1).

  Args:
    small: a thumbnail.
  """
  coefficients = (_COSINES @ small.astype(np.float32) @ _COSINES.T).ravel()
  coefficients[0] = 0  # The mean brightness says nothing of the picture.
  return int(np.packbits(coefficients > np.median(coefficients)).view(np.uint64)[0])


def is_plain(small: np.ndarray) -> bool:
  """Whether a thumbnail shows too little to be told from others: its greyscale deviates by less than 2 of 255."""
  return bool(small.std() < 2)


def similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """How alike thumbnails are: the cosine of the angle between their gradients.

  Gradients, unlike grey values, are not alike because two images are both dark at the edges and bright in the middle.

  Args:
    a, b: (..., THUMBNAIL, THUMBNAIL) uint8.

  Returns:
    (...) float32, -1..1; 1 where one is the other brightened or with more contrast; 0 where one is even.
  """
  a, b = _gradients(a), _gradients(b)
  norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
  return np.where(norms > 0, np.einsum('...i,...i', a, b) / np.maximum(norms, 1e-6), 0)


def _gradients(small: np.ndarray) -> np.ndarray:
  small = small.astype(np.float32)
  across, down = np.diff(small, axis=-1)[..., :-1, :], np.diff(small, axis=-2)[..., :-1]
  return np.stack([across, down], -1).reshape(*small.shape[:-2], -1)


# Rows of the DCT of type II; their lengths do not matter to a comparison with the median but for the first row's.
_COSINES = np.cos(np.pi / THUMBNAIL * np.arange(_KEPT)[:, None] * (np.arange(THUMBNAIL) + 0.5)).astype(np.float32)
_COSINES[0] /= np.sqrt(2)
