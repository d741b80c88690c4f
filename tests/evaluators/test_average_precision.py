"""Mean average precision, and training on images with any number of labels."""
import numpy as np
import pytest

from tests import tiny
from vit_jax import train
from vit_jax.base.errors import UserError
from vit_jax.evaluators.average_precision import mean_average_precision
from vit_jax.run import evaluation


def test_mean_average_precision_by_hand():
  # Class 0: ranks of the positives 1 and 3: (1/1 + 2/3) / 2. Class 1: rank 2: 1/2. Class 2 has no positive.
  logits = np.array([[4.0, 1.0, 0.0], [3.0, 4.0, 0.0], [2.0, 3.0, 0.0], [1.0, 2.0, 0.0]])
  labels = np.array([[1, 0, 0], [0, 0, 0], [1, 1, 0], [0, 0, 0]])
  assert mean_average_precision(logits, labels) == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2)


def test_mean_average_precision_of_nothing_is_nan():
  logits = np.array([[4.0, 1.0], [3.0, 4.0]])
  assert np.isnan(mean_average_precision(logits, np.zeros((2, 2), int)))
  assert np.isnan(mean_average_precision(logits * np.nan, np.ones((2, 2), int)))


def test_a_split_without_classes_warns_once_and_does_not_end_a_run(data_dir, tmp_path, caplog):
  """Checkpoints that NaN would rank are kept by age."""
  config = tiny.config(data_dir, **{
      'data.name': 'tiny_scenes', 'data.train_split': 'train', 'data.train_transform': 'resize', 'data.batch_size': 32,
      'train.duration': '2 steps', 'train.eval_every': '1 steps', 'optim.warmup': '0 steps', 'objective.loss': 'sigmoid',
      'checkpoint.keep_best': 1, 'checkpoint.best': 'none/mAP',
      'evaluators': {'none': {'kind': 'average_precision', 'split': 'unlabeled'}}})
  for _ in range(2):  # the second finds the run finished
    assert np.isnan(train.run(config, tmp_path / 'run')['none/mAP'])
  assert caplog.text.count("mAP is NaN: no image of split 'unlabeled' has a class") == 1
  step, values, recorded = evaluation.evaluate(tmp_path / 'run')
  assert step == 2 and np.isnan(values['none/mAP']) and recorded['none/mAP'] is None


@pytest.mark.slow
def test_many_labels_per_image_are_learned(data_dir, tmp_path):
  config = tiny.config(data_dir, **{
      'data.name': 'tiny_scenes', 'data.train_split': 'train', 'data.train_transform': 'resize', 'data.batch_size': 32,
      'train.duration': '60 steps', 'train.eval_every': '60 steps', 'optim.peak_lr': 0.01, 'model.pool': 'gap',
      'objective.loss': 'sigmoid', 'evaluators': {kind: {'kind': kind, 'split': 'test'} for kind in ('average_precision', 'classification', 'objective')}})
  found = train.run(config, tmp_path)
  assert found['average_precision/mAP'] > 0.95  # half of the images hold each class: guessing gives about 0.5
  assert found['classification/macro_f1'] > 0.95 and found['classification/micro_f1'] > 0.95
  assert 0.8 < found['classification/accuracy'] < 0.9  # two of the 16 images have no class
  assert found['classification/loss'] == pytest.approx(found['objective/loss'], rel=1e-6)
  config.objective.loss = 'softmax'
  with pytest.raises(UserError, match="objective.loss='sigmoid'"):
    train.run(config, tmp_path / 'softmax')
