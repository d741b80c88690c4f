"""What a step minimises.

An objective is called with the model, a batch (`image` normalised) and one PRNG key for each example, and returns
(losses (B,), {metric: values (B,)}).
"""
import jax.numpy as jnp

from vit_jax import losses
from vit_jax.choices import choose


class Classification:
  """Classification of images.

  Args:
    loss: a name of `losses.LOSSES`; 'sigmoid' in the paper's pre-training, 'softmax' in its fine-tuning.
    label_smoothing: see the loss, 0..1.
  """

  def __init__(self, *, loss: str = 'softmax', label_smoothing: float = 0.0):
    self.loss = choose(losses.LOSSES, loss, 'loss')
    if not 0.0 <= label_smoothing < 1.0:
      raise ValueError(f'label_smoothing must be in [0, 1), got {label_smoothing}')
    self.label_smoothing = label_smoothing

  def __call__(self, model, batch, rngs):
    """Returns (losses (B,), {'accuracy': (B,)}) of a batch with `image` and `label`."""
    logits = model(batch['image'], rngs)
    correct = (jnp.argmax(logits, axis=-1) == batch['label']).astype(jnp.float32)
    return self.loss(logits, batch['label'], self.label_smoothing), dict(accuracy=correct)
