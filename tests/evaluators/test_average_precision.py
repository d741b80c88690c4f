"""Mean average precision, and training on images with any number of labels."""
import numpy as np
import pytest

from tests import tiny
from vit_jax import train
from vit_jax.base.errors import UserError
from vit_jax.evaluators.average_precision import mean_average_precision


def test_mean_average_precision_by_hand():
  # Class 0: ranks of the positives 1 and 3: (1/1 + 2/3) / 2. Class 1: rank 2: 1/2. Class 2 has no positive.
  logits = np.array([[4.0, 1.0, 0.0], [3.0, 4.0, 0.0], [2.0, 3.0, 0.0], [1.0, 2.0, 0.0]])
  labels = np.array([[1, 0, 0], [0, 0, 0], [1, 1, 0], [0, 0, 0]])
  assert mean_average_precision(logits, labels) == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2)


def test_many_labels_per_image_are_learned(data_dir, tmp_path):
  config = tiny.config(data_dir, **{
      'data.name': 'tiny_scenes', 'data.train_split': 'train', 'data.train_transform': 'resize', 'data.batch_size': 32,
      'train.duration': '60 steps', 'train.eval_every': '60 steps', 'optim.peak_lr': 0.01, 'model.pool': 'gap',
      'objective.loss': 'sigmoid', 'evaluators': {'test': {'kind': 'average_precision', 'split': 'test'}}})
  assert train.run(config, tmp_path)['test/mAP'] > 0.95  # half of the images hold each class: guessing gives about 0.5
  config.objective.loss = 'softmax'
  with pytest.raises(UserError, match="objective.loss='sigmoid'"):
    train.run(config, tmp_path / 'softmax')
