"""What is predicted of hidden patches: colors in bins, or pixels.

Patches are those of the images that the model sees, (B, hidden, rows · columns · channels) float32, normalized.
Predictions are (B, hidden, `num_outputs`) float32.
"""
from collections.abc import Mapping
import dataclasses
from typing import Literal, Protocol, runtime_checkable

from jax import Array
import jax.numpy as jnp
from jaxtyping import Float, Int
import optax

from vit_jax.base.errors import UserError
from vit_jax.base.preprocessing import Normalization
from vit_jax.objectives.masked import patches as patches_lib

Predictions = Float[Array, 'batch hidden outputs']
Patches = Float[Array, 'batch hidden pixels']
PerPatch = Float[Array, 'batch hidden']

_BITS = 3  # per channel (paper, appendix B.1.2)
_SMALL = 4  # a patch downsampled to 4×4


@dataclasses.dataclass(frozen=True)
class Place:
  """What a target must know of the images.

  Attributes:
    size: of a patch in pixels, (rows, columns).
    channels: of the images.
    normalization: of the images.
  """
  size: tuple[int, int]
  channels: int
  normalization: Normalization

  @property
  def num_values(self) -> int:
    """Numbers in a patch."""
    return self.size[0] * self.size[1] * self.channels

  def to_pixels(self, patches: Patches) -> Patches:
    """Return normalized patches as pixels 0..1."""
    split = patches.reshape(*patches.shape[:-1], -1, self.channels)
    return self.normalization.pixels(split).reshape(patches.shape)


@runtime_checkable
class Target(Protocol):
  """What is predicted of hidden patches.

  Attributes:
    num_outputs: numbers per prediction.
    metrics: {name of a number that `measure` returns: which is better}.
  """
  num_outputs: int
  metrics: Mapping[str, Literal['max', 'min']]

  def losses(self, predictions: Predictions, patches: Patches) -> PerPatch:
    """Return the loss of each prediction."""
    ...

  def measure(self, predictions: Predictions, patches: Patches) -> dict[str, PerPatch]:
    """Return {name: value of each prediction}."""
    ...

  def to_pixels(self, predictions: Predictions, patches: Patches) -> Patches:
    """Return the predicted patches as pixels 0..1, (B, hidden, rows · columns · channels)."""
    ...


class Colors:
  """Mean colors of 3 bits per channel: one for a patch, or one for each of its 4×4 cells; a softmax for each.

  A channel 0..1 is divided into 8 equal bins (the paper leaves them open), so there are 512 colors, or 8 grays.

  Args:
    place: of the images.
    cells: per side of a patch, 1 or 4.

  Raises:
    UserError: a patch has fewer pixels than cells.
  """

  metrics: Mapping[str, Literal['max', 'min']] = {'color_accuracy': 'max', 'pixel_error': 'min'}

  def __init__(self, place: Place, cells: int):
    if min(place.size) < cells:
      raise UserError(f"objective.target: 'small_patch' is {cells}×{cells} colors, but a patch has {place.size[0]}×"
                      f"{place.size[1]} pixels; use larger patches, or objective.target='mean_color'")
    self._place, self._cells = place, cells
    self._num_colors = 2 ** (_BITS * place.channels)
    self.num_outputs = cells**2 * self._num_colors

  def classes(self, patches: Patches) -> Int[Array, 'batch hidden cells']:
    """Return the color of each cell, (B, hidden, cells²) int32; the first channel has the highest bits."""
    means = patches_lib.cell_means(self._place.to_pixels(patches), self._place.size, self._cells)
    # A mean between two bins belongs to the upper one, however it was rounded.
    bins = jnp.clip(jnp.floor(means * 2**_BITS + 1e-5), 0, 2**_BITS - 1).astype(jnp.int32)
    return (bins << _BITS * jnp.arange(self._place.channels - 1, -1, -1)).sum(axis=-1)

  def losses(self, predictions: Predictions, patches: Patches) -> PerPatch:
    """Return the mean cross-entropy over the cells, in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(self._logits(predictions), self.classes(patches)).mean(-1)

  def measure(self, predictions: Predictions, patches: Patches) -> dict[str, PerPatch]:
    """Return the share of cells whose best color is right, and the error of `pixel_error`."""
    correct = jnp.argmax(self._logits(predictions), axis=-1) == self.classes(patches)
    return dict(color_accuracy=correct.mean(axis=-1, dtype=jnp.float32),
                pixel_error=pixel_error(self._place, self.to_pixels(predictions, patches), patches))

  def to_pixels(self, predictions: Predictions, patches: Patches) -> Patches:
    """Return cells filled with the middle of their most probable bins."""
    best = jnp.argmax(self._logits(predictions), axis=-1)
    bins = best[..., None] >> _BITS * jnp.arange(self._place.channels - 1, -1, -1) & 2**_BITS - 1
    return patches_lib.fill_cells((bins + 0.5) / 2**_BITS, self._place.size)

  def _logits(self, predictions: Predictions) -> Float[Array, 'batch hidden cells colors']:
    return predictions.reshape(*predictions.shape[:-1], self._cells**2, self._num_colors)


class Pixels:
  """All pixels of a patch as the model sees them, by regression.

  Args:
    place: of the images.
    power: of the difference in the loss: 2 for its square, 1 for its size.
    standardize: whether each patch is first shifted and scaled to mean 0 and variance 1, with n - 1 as divisor and
      1e-6 added to the variance, as in MAE's code (arXiv 2111.06377, section 3).

  Raises:
    UserError: a patch to standardize is a single number.
  """

  metrics: Mapping[str, Literal['max', 'min']] = {'pixel_error': 'min'}

  def __init__(self, place: Place, power: int, standardize: bool = False):
    if standardize and place.num_values < 2:
      raise UserError('objective.standardize: a patch of one number has no variance; set objective.standardize=False')
    self._place, self._power, self._standardize = place, power, standardize
    self.num_outputs = place.num_values

  def losses(self, predictions: Predictions, patches: Patches) -> PerPatch:
    """Return the mean over a patch's pixels of the difference to its power."""
    mean, spread = self._statistics(patches)
    return (jnp.abs(predictions - (patches - mean) / spread) ** self._power).mean(axis=-1)

  def measure(self, predictions: Predictions, patches: Patches) -> dict[str, PerPatch]:
    """Return the error of `pixel_error`; of standardized patches given their own mean and variance."""
    return dict(pixel_error=pixel_error(self._place, self.to_pixels(predictions, patches), patches))

  def to_pixels(self, predictions: Predictions, patches: Patches) -> Patches:
    """Return the predictions, if standardized with the true mean and variance of each patch."""
    mean, spread = self._statistics(patches)
    return jnp.clip(self._place.to_pixels(predictions * spread + mean), 0.0, 1.0)

  def _statistics(self, patches: Patches) -> tuple[Array | float, Array | float]:
    """Return what a patch is shifted and scaled by."""
    if not self._standardize:
      return 0.0, 1.0
    return patches.mean(axis=-1, keepdims=True), jnp.sqrt(patches.var(axis=-1, keepdims=True, ddof=1) + 1e-6)


def pixel_error(place: Place, pixels: Patches, patches: Patches) -> PerPatch:
  """Return the mean absolute difference between predicted pixels 0..1 and the true ones, on a scale of 0..255."""
  return 255.0 * jnp.abs(pixels - place.to_pixels(patches)).mean(axis=-1)
