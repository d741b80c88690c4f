"""The classification objective: class weights, and losses for any number of labels per image."""
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from vit_jax.base.errors import UserError
from vit_jax.data.sources.info import DatasetInfo
from vit_jax.objectives import losses
from vit_jax.objectives.classification import Classification, ClassificationConfig

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(5, 3)).astype(np.float32)
LABELS = {  # of one class per image, mixed, and of any number of classes
    'one': np.array([0, 2, 1, 2, 0]),
    'mixed': RNG.dirichlet([0.5] * 3, size=5).astype(np.float32),
    'many': np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0], [0, 0, 1]])}
CASES = [('softmax', 'one'), ('softmax', 'mixed'), ('sigmoid', 'one'), ('sigmoid', 'mixed'), ('sigmoid', 'many')]


def losses_of(labels, **fields):
  """Return what the objective makes of LOGITS."""
  info = DatasetInfo(num_examples=5, num_classes=3, channels=1, multi_label=labels is LABELS['many'])
  objective = Classification(ClassificationConfig(**fields), tiny.objective_context(info))
  batch = dict(image=jnp.zeros((5, 8, 8, 1)), label=jnp.asarray(labels))
  return objective(lambda images, keys: jnp.asarray(LOGITS), {}, {}, batch, None).losses


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
@pytest.mark.parametrize('loss, kind', CASES)
def test_class_weights_multiply_the_terms_of_the_classes(loss, kind, smoothing):
  """As PyTorch's CrossEntropyLoss(weight, label_smoothing) and BCEWithLogitsLoss(weight), before they average."""
  weights, labels = (1.0, 0.5, 3.0), LABELS[kind]
  targets = np.eye(3)[labels] if labels.ndim == 1 else labels.astype(np.float64)
  x = LOGITS.astype(np.float64)
  if loss == 'softmax':
    targets = (1 - smoothing) * targets + smoothing / 3
    terms = -targets * (x - np.log(np.exp(x).sum(axis=1, keepdims=True)))
  else:
    targets = (1 - smoothing) * targets + smoothing * (1 - targets)
    terms = targets * np.logaddexp(0, -x) + (1 - targets) * np.logaddexp(0, x)
  fields = dict(loss=loss, label_smoothing=smoothing)
  np.testing.assert_allclose(losses_of(labels, class_weights=weights, **fields), terms @ weights, rtol=1e-5)
  np.testing.assert_allclose(losses_of(labels, class_weights=(1.0,) * 3, **fields), losses_of(labels, **fields), rtol=1e-6)


def test_the_number_of_class_weights_is_checked():
  with pytest.raises(UserError, match='objective.class_weights: expected 3 numbers'):
    losses_of(LABELS['one'], class_weights=(1.0, 2.0))


def test_sigmoid_loss_of_many_labels_is_the_sum_over_classes():
  rng = np.random.default_rng(0)
  logits, labels = rng.normal(size=(4, 3)), np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
  p = 1 / (1 + np.exp(-logits))
  expected = -(labels * np.log(p) + (1 - labels) * np.log(1 - p)).sum(axis=1)
  np.testing.assert_allclose(losses.sigmoid(jnp.asarray(logits), jnp.asarray(labels)), expected, rtol=1e-5)
  with pytest.raises(UserError, match="objective.loss='sigmoid'"):
    losses.softmax(jnp.asarray(logits), jnp.asarray(labels))
