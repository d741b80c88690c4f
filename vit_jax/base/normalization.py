"""From the bytes of an image to what a model sees; travels with every checkpoint."""
import dataclasses

import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Normalization:
  """Maps uint8 0..255 to float32 (x / 255 - mean) / std; the default is the paper's [-1, 1].

  Attributes:
    mean: one number for all channels, or one for each.
    std: likewise, not zero.
  """
  mean: float | tuple = 0.5
  std: float | tuple = 0.5

  def __post_init__(self):
    for number in self.std if isinstance(self.std, (tuple, list)) else [self.std]:
      if not number > 0:
        raise ValueError(f'normalization.std must be positive, got {self.std}')

  def __call__(self, images):
    """Normalises (B, rows, columns, channels) uint8 images to float32."""
    mean, std = jnp.asarray(self.mean, jnp.float32), jnp.asarray(self.std, jnp.float32)
    return (images.astype(jnp.float32) / 255.0 - mean) / std
