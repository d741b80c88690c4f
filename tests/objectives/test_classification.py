"""The classification objective: class weights, and losses for any number of labels per image."""
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from vit_jax.base.errors import UserError
from vit_jax.data.sources.info import DatasetInfo
from vit_jax.objectives import losses
from vit_jax.objectives.classification import Classification, ClassificationConfig

INFO = DatasetInfo(num_examples=5, num_classes=3, channels=1)


def test_class_weights_multiply_the_losses():
  logits, labels = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32), jnp.array([0, 2, 1, 2, 0])

  def losses_of(**fields):
    objective = Classification(ClassificationConfig(**fields), tiny.objective_context(INFO))
    return objective(lambda images, keys: logits, {}, {}, dict(image=jnp.zeros((5, 8, 8, 1)), label=labels), None).losses

  np.testing.assert_allclose(losses_of(class_weights=(1.0, 0.5, 3.0)), losses_of() * np.array([1.0, 3.0, 0.5, 3.0, 1.0]),
                             rtol=1e-6)
  with pytest.raises(UserError, match='objective.class_weights: expected 3 numbers'):
    losses_of(class_weights=(1.0, 2.0))


def test_sigmoid_loss_of_many_labels_is_the_sum_over_classes():
  rng = np.random.default_rng(0)
  logits, labels = rng.normal(size=(4, 3)), np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
  p = 1 / (1 + np.exp(-logits))
  expected = -(labels * np.log(p) + (1 - labels) * np.log(1 - p)).sum(axis=1)
  np.testing.assert_allclose(losses.sigmoid(jnp.asarray(logits), jnp.asarray(labels)), expected, rtol=1e-5)
  with pytest.raises(UserError, match="objective.loss='sigmoid'"):
    losses.softmax(jnp.asarray(logits), jnp.asarray(labels))
