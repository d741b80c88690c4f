"""Per-example losses: (B, classes) logits and (B,) labels to (B,) losses, float32."""
import jax
import optax


def softmax(logits, labels, label_smoothing=0.0):
  """Cross-entropy of one class out of many.

  Args:
    logits: (B, classes) float32.
    labels: (B,) integers in 0..classes-1.
    label_smoothing: share of the target's mass that is spread evenly over all classes, 0..1.

  Returns:
    (B,) float32, nats.
  """
  targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing)
  return optax.softmax_cross_entropy(logits, targets)


def sigmoid(logits, labels, label_smoothing=0.0):
  """Binary cross-entropy of every class, summed over the classes: the paper's pre-training loss.

  Its smoothed targets are 1 - label_smoothing and label_smoothing (0.9999 and 0.0001 in the ImageNet-21k
  configuration of the authors' fork in google/uncertainty-baselines).

  Args:
    logits: (B, classes) float32.
    labels: (B,) integers in 0..classes-1.
    label_smoothing: distance of the targets from 0 and 1, 0..1.

  Returns:
    (B,) float32, nats.
  """
  hot = jax.nn.one_hot(labels, logits.shape[-1])
  targets = hot * (1.0 - label_smoothing) + (1.0 - hot) * label_smoothing
  return optax.sigmoid_binary_cross_entropy(logits, targets).sum(axis=-1)


LOSSES = {
    'sigmoid': sigmoid,
    'softmax': softmax,
}
