"""What a step minimises.

An objective is called with the model, a batch (`image` normalised) and one PRNG key for each example, and returns
(losses (B,), {metric: values (B,)}).
"""
import jax.numpy as jnp

from vit_jax.objectives import losses
from vit_jax.base.choices import choose


class Classification:
  """Classification of images.

  Args:
    loss: a name of `losses.LOSSES`; 'sigmoid' in the paper's pre-training, 'softmax' in its fine-tuning.
    label_smoothing: see the loss, 0..1.
    class_weights: a factor of each class's losses, in the order of the classes, or None; the mean over a batch still
      divides by the number of examples.
  """

  def __init__(self, *, loss: str = 'softmax', label_smoothing: float = 0.0, class_weights: tuple | None = None):
    self.loss = choose(losses.LOSSES, loss, 'loss')
    if not 0.0 <= label_smoothing < 1.0:
      raise ValueError(f'label_smoothing must be in [0, 1), got {label_smoothing}')
    self.label_smoothing = label_smoothing
    self.class_weights = class_weights

  def check(self, num_classes, many_labels):
    """Raises ValueError unless there are as many class weights as classes, none negative, and the loss fits the labels."""
    if many_labels and self.loss is losses.softmax:
      raise ValueError("loss 'softmax' takes one class an image, these have any number; use objective.loss='sigmoid'")
    weights = self.class_weights
    if weights is not None and (len(weights) != num_classes or min(weights) < 0):
      raise ValueError(f'objective.class_weights: expected {num_classes} numbers, one a class, none negative; got {weights}')

  def __call__(self, model, batch, rngs):
    """Returns (losses (B,), {'accuracy': (B,)}).

    Accurate is a best class that is one of the image's, or of a mixture's the one that has the largest share.
    """
    logits, labels = model(batch['image'], rngs), batch['label']
    ones = losses.hot(labels, logits.shape[-1])
    loss = self.loss(logits, labels, self.label_smoothing)
    if self.class_weights is not None:
      loss *= ones @ jnp.asarray(self.class_weights, jnp.float32)
    best = jnp.argmax(logits, axis=-1, keepdims=True)
    share = jnp.take_along_axis(ones, best, axis=-1)[:, 0]
    accurate = (share > 0) & (share == ones.max(axis=-1))
    return loss, dict(accuracy=accurate.astype(jnp.float32))
