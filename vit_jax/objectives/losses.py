"""Per-example losses: (B, classes) logits and labels to (B,) losses, float32."""
from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Float, Num
import numpy as np
import optax

from vit_jax.base.errors import UserError

ArrayLike = jax.Array | np.ndarray
Weights = Float[ArrayLike, ' classes'] | None


class Loss(Protocol):
  """A row of `LOSSES`."""

  def __call__(self, logits: Float[ArrayLike, 'batch classes'], labels: Num[ArrayLike, 'batch *classes'],
               label_smoothing: float = 0.0, class_weights: Weights = None) -> Float[jax.Array, ' batch']:
    """Return the losses of a batch, nats."""
    ...


def softmax(logits: Float[ArrayLike, 'batch classes'], labels: Num[ArrayLike, 'batch *classes'],
            label_smoothing: float = 0.0, class_weights: Weights = None) -> Float[jax.Array, ' batch']:
  """Return the cross-entropy of one class out of many.

  Args:
    logits: float32.
    labels: (B,) integers in 0..classes-1, or (B, classes) floats, rows of sum 1, for mixtures of images.
    label_smoothing: share of the target's mass that is spread evenly over all classes, 0..1.
    class_weights: factor of each class's term, -target · log p, as PyTorch's `CrossEntropyLoss(weight)`: that of the
      label if nothing is mixed or smoothed. None: all 1.

  Returns:
    (B,) float32, nats.
  """
  if labels.ndim != 1 and not jnp.issubdtype(labels.dtype, jnp.floating):
    raise UserError(f"objective.loss: 'softmax' takes one class per image, got labels {labels.shape}; use "
                    "objective.loss='sigmoid'")
  targets = optax.smooth_labels(to_soft_labels(labels, logits.shape[-1]), label_smoothing)
  return optax.softmax_cross_entropy(logits, targets if class_weights is None else targets * class_weights)


def sigmoid(logits: Float[ArrayLike, 'batch classes'], labels: Num[ArrayLike, 'batch *classes'],
            label_smoothing: float = 0.0, class_weights: Weights = None) -> Float[jax.Array, ' batch']:
  """Return the binary cross-entropy of every class, summed over the classes: the paper's pre-training loss.

  Its smoothed targets are 1 - label_smoothing and label_smoothing (0.9999 and 0.0001 in the ImageNet-21k
  configuration of the authors' fork in google/uncertainty-baselines).

  Args:
    logits: float32.
    labels: (B,) integers in 0..classes-1, or (B, classes) of 0 and 1 if an image has any number of classes, or of
      floats in between for mixtures of images.
    label_smoothing: distance of the targets from 0 and 1, 0..1.
    class_weights: factor of each class's binary term, whether an image has the class or not, as PyTorch's
      `BCEWithLogitsLoss(weight)`. None: all 1.

  Returns:
    (B,) float32, nats.
  """
  positive = to_soft_labels(labels, logits.shape[-1])
  targets = positive * (1.0 - label_smoothing) + (1.0 - positive) * label_smoothing
  terms = optax.sigmoid_binary_cross_entropy(logits, targets)
  return (terms if class_weights is None else terms * class_weights).sum(axis=-1)


def to_soft_labels(labels: Num[ArrayLike, 'batch *classes'], num_classes: int) -> Float[jax.Array, 'batch classes']:
  """Return labels, (B,) integers or (B, classes) numbers in 0..1, as (B, classes) float32."""
  return jax.nn.one_hot(labels, num_classes) if labels.ndim == 1 else jnp.asarray(labels, jnp.float32)


LOSSES: dict[str, Loss] = {
    'sigmoid': sigmoid,
    'softmax': softmax,
}
