"""Losses against float64 closed forms."""
import jax
import numpy as np
import pytest

from vit_jax.base.errors import UserError
from vit_jax.objectives import losses
from vit_jax.objectives.classification import ClassificationConfig

CLASSES = 5
LABELS = np.array([0, CLASSES - 1, 2, 0])  # the first and the last class too


def logits(scale=3.0):
  return (scale * np.random.default_rng(0).normal(size=(len(LABELS), CLASSES))).astype(np.float32)


def numpy_softmax_loss(x, label, smoothing):
  x = x.astype(np.float64)
  log_p = x - x.max() - np.log(np.exp(x - x.max()).sum())
  return -(1 - smoothing) * log_p[label] - smoothing * log_p.mean()


def numpy_sigmoid_loss(x, label, smoothing):
  total = 0.0
  for k, value in enumerate(x.astype(np.float64)):
    target = 1 - smoothing if k == label else smoothing
    total += target * np.logaddexp(0, -value) + (1 - target) * np.logaddexp(0, value)
  return total


REFERENCES = {'softmax': numpy_softmax_loss, 'sigmoid': numpy_sigmoid_loss}


def test_every_loss_has_a_reference():
  assert REFERENCES.keys() == losses.LOSSES.keys()


@pytest.mark.parametrize('smoothing', [0.0, 1e-4, 0.1, 0.9])
@pytest.mark.parametrize('name', sorted(REFERENCES))
def test_equals_the_closed_form(name, smoothing):
  x = logits()
  expected = [REFERENCES[name](row, label, smoothing) for row, label in zip(x, LABELS, strict=True)]
  values = losses.LOSSES[name](x, LABELS, smoothing)
  assert values.shape == (len(LABELS),) and values.dtype == np.float32
  np.testing.assert_allclose(values, expected, rtol=1e-5)


@pytest.mark.parametrize('name', sorted(REFERENCES))
def test_no_smoothing_is_the_default(name):
  np.testing.assert_array_equal(losses.LOSSES[name](logits(), LABELS), losses.LOSSES[name](logits(), LABELS, 0.0))


@pytest.mark.parametrize('name, expected', [('softmax', np.log(CLASSES)), ('sigmoid', CLASSES * np.log(2))])
def test_equal_logits_of_zero(name, expected):
  np.testing.assert_allclose(losses.LOSSES[name](np.zeros((4, CLASSES), np.float32), LABELS), expected, rtol=1e-6)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
@pytest.mark.parametrize('scale', [1e4, 1e30])
@pytest.mark.parametrize('name', sorted(REFERENCES))
def test_big_logits_stay_finite_and_right(name, scale, smoothing):
  x = logits(scale)
  expected = [REFERENCES[name](row, label, smoothing) for row, label in zip(x, LABELS, strict=True)]
  values = losses.LOSSES[name](x, LABELS, smoothing)
  gradient = jax.grad(lambda x: losses.LOSSES[name](x, LABELS, smoothing).sum())(x)
  np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)
  assert np.isfinite(gradient).all()


def test_sigmoid_gradient_with_the_papers_head_bias_is_the_residual():
  x = np.full((4, CLASSES), -10.0, np.float32)
  gradient = jax.grad(lambda x: losses.sigmoid(x, LABELS).sum())(x)
  expected = 1 / (1 + np.exp(10.0)) - np.eye(CLASSES)[LABELS]
  np.testing.assert_allclose(gradient, expected, rtol=1e-5)


def test_an_unknown_name_lists_the_choices():
  with pytest.raises(UserError, match=r"objective.loss: unknown 'hinge'; choose from \['sigmoid', 'softmax'\]"):
    ClassificationConfig(loss='hinge')
