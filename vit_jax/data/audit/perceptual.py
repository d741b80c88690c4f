"""What an image looks like: a hash to find similar images by, and a thumbnail to compare them with."""
import numpy as np
from PIL import Image

from vit_jax.data.images.pillow import to_pillow

THUMBNAIL = 32  # Rows and columns.
_FREQUENCIES = 8  # Lowest frequencies in the hash, per direction.


def thumbnail(pixels: np.ndarray) -> np.ndarray:
  """Shrink (H, W, 1 or 3) uint8 to (THUMBNAIL, THUMBNAIL) uint8 grayscale (ITU-R 601), whatever the aspect ratio."""
  image = to_pillow(pixels).convert('L')
  return np.asarray(image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR, reducing_gap=3.0))


def perceptual_hash(small: np.ndarray) -> int:
  """Return 64 bits of which few change when an image is compressed, scaled, brightened or slightly cropped.

  Each bit says whether one of the 8 × 8 lowest coefficients of the thumbnail's discrete cosine transform is above their
  median (pHash: Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010, section 3.2.1).

  Args:
    small: a thumbnail.
  """
  coefficients = (_COSINES @ small.astype(np.float32) @ _COSINES.T).ravel()
  coefficients[0] = 0  # The mean brightness says nothing about the picture.
  return int(np.packbits(coefficients > np.median(coefficients)).view(np.uint64)[0])


def is_plain(small: np.ndarray) -> bool:
  """Return whether a thumbnail shows too little to tell it from others: its standard deviation is below 2 of 255."""
  return bool(small.std() < 2)


def similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Return how similar thumbnails are: the cosine of the angle between their gradients.

  Gradients, unlike gray values, are not similar merely because both images are dark at the edges and bright in the
  middle.

  Args:
    a, b: (..., THUMBNAIL, THUMBNAIL) uint8.

  Returns:
    (...) float32, -1..1; 1 if one is the other with more brightness or contrast; 0 if one is uniform.
  """
  a, b = _gradients(a), _gradients(b)
  norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
  return np.where(norms > 0, np.einsum('...i,...i', a, b) / np.maximum(norms, 1e-6), 0)


def _gradients(small: np.ndarray) -> np.ndarray:
  small = small.astype(np.float32)
  across, down = np.diff(small, axis=-1)[..., :-1, :], np.diff(small, axis=-2)[..., :-1]
  return np.stack([across, down], -1).reshape(*small.shape[:-2], -1)


# Rows of the type-II DCT. Their lengths do not affect the comparison with the median, except that of the first row.
_COSINES = np.cos(
    np.pi / THUMBNAIL * np.arange(_FREQUENCIES)[:, None] * (np.arange(THUMBNAIL) + 0.5)).astype(np.float32)
_COSINES[0] /= np.sqrt(2)
