"""Per-example losses: (B, classes) logits and labels to (B,) losses, float32."""
import jax
import jax.numpy as jnp
import optax


def softmax(logits, labels, label_smoothing=0.0):
  """Cross-entropy of one class out of many.

  Args:
    logits: (B, classes) float32.
    labels: (B,) integers in 0..classes-1, or (B, classes) floats, rows of sum 1, where images are mixtures.
    label_smoothing: share of the target's mass that is spread evenly over all classes, 0..1.

  Returns:
    (B,) float32, nats.
  """
  if labels.ndim != 1 and not jnp.issubdtype(labels.dtype, jnp.floating):
    raise ValueError(f"loss 'softmax' takes one class an image, got labels {labels.shape}; use objective.loss='sigmoid'")
  targets = optax.smooth_labels(hot(labels, logits.shape[-1]), label_smoothing)
  return optax.softmax_cross_entropy(logits, targets)


def sigmoid(logits, labels, label_smoothing=0.0):
  """Binary cross-entropy of every class, summed over the classes: the paper's pre-training loss.

  Its smoothed targets are 1 - label_smoothing and label_smoothing (0.9999 and 0.0001 in the ImageNet-21k
  configuration of the authors' fork in google/uncertainty-baselines).

  Args:
    logits: (B, classes) float32.
    labels: (B,) integers in 0..classes-1, or (B, classes) of 0 and 1 where an image has any number of classes;
      or floats between where images are mixtures.
    label_smoothing: distance of the targets from 0 and 1, 0..1.

  Returns:
    (B,) float32, nats.
  """
  ones = hot(labels, logits.shape[-1])
  targets = ones * (1.0 - label_smoothing) + (1.0 - ones) * label_smoothing
  return optax.sigmoid_binary_cross_entropy(logits, targets).sum(axis=-1)


def hot(labels, num_classes):
  """Labels, (B,) integers or (B, classes) numbers in 0..1, as (B, classes) float32."""
  return jax.nn.one_hot(labels, num_classes) if labels.ndim == 1 else labels.astype(jnp.float32)


LOSSES = {
    'sigmoid': sigmoid,
    'softmax': softmax,
}
