"""Dataset: splits must fit the model, loading is described, and a dataset can be restricted to some examples."""
import re

import numpy as np
import pytest

from tests.conftest import fake_source
from tests.data.batches import take
from vit_jax.base.errors import UserError
from vit_jax.data.loading.config import DataConfig
from vit_jax.data.loading.dataset import Dataset
from vit_jax.data.sources import registry


def test_an_evaluation_split_with_other_channels_is_rejected_before_training(tmp_path):
  gray, color = np.zeros((4, 8, 8), np.uint8), np.zeros((2, 8, 8, 3), np.uint8)
  np.savez(tmp_path / 'a.npz', train_images=gray, train_labels=np.arange(4), test_images=color, test_labels=[0, 1])
  options = dict(name=f'npz:{tmp_path}/a.npz', batch_size=4, image_size=(8, 8), train_transform='resize')
  with pytest.raises(UserError, match='split test of npz:.* expected channels=1 and 4 classes, .* as in train, .*'
                                      'got channels=3 and 4 classes, .*--config.data.channels'):
    Dataset(DataConfig(**options), seed=0).eval_batches('test', 2)
  for channels in (1, 3):
    batch, = Dataset(DataConfig(channels=channels, **options), seed=0).eval_batches('test', 2)
    assert batch['image'].shape == (2, 8, 8, channels)


def test_an_evaluation_split_with_other_classes_is_rejected(monkeypatch):
  splits = dict(train=fake_source(4), test=fake_source(4, num_classes=3))
  monkeypatch.setattr(registry, 'open_source', lambda name, split, data_dir: splits[split])
  data = Dataset(DataConfig(name='fake', batch_size=4, image_size=(8, 8), train_transform='resize'), seed=0)
  with pytest.raises(UserError, match='4 classes, one class per image, .* got channels=3 and 3 classes'):
    data.eval_batches('test', 2)


def test_arrays_are_not_copied_to_workers(tmp_path):
  np.savez(tmp_path / 'a.npz', images=np.zeros((4, 8, 8), np.uint8), labels=np.arange(4))
  with pytest.raises(UserError, match='npz: arrays are in the memory of this process.*data.threads'):
    DataConfig(name=f'npz:{tmp_path}/a.npz', train_split='all', batch_size=4, image_size=(8, 8), workers=2)


@pytest.mark.parametrize('options, expected', [
    (dict(threads=1), r'1 thread, 2 batches ahead \(0\.0 MiB\)'), (dict(workers=2), r'2 worker processes, 2 batches ahead .*'),
    (dict(threads=0), r'0 threads, 0 batches ahead \(0\.0 MiB\)'), (dict(threads=9), r'9 threads, 4 batches ahead .*')])
def test_loading_is_described(options, expected, data_dir):
  data = Dataset(DataConfig(name='digits', batch_size=48, image_size=(16, 16), data_dir=data_dir, **options), seed=0)
  assert re.fullmatch(expected, data.describe_loading())


def test_repeats_lengthen_the_epoch(data_dir):
  data = Dataset(DataConfig(name='digits', batch_size=48, image_size=(8, 8), data_dir=data_dir, repeats=3), seed=0)
  assert data.examples_per_epoch == 3 * 1497
  batch = next(iter(data.train_batches()))
  assert len(np.unique(batch['id'])) == 16


def test_a_restricted_dataset_loads_only_these_examples(data_dir):
  config = DataConfig(name='digits', batch_size=4, image_size=(8, 8), data_dir=data_dir, train_transform='resize')
  data = Dataset(config, seed=0)
  whole = take(data.train_batches(), 1)
  restricted = data.restricted_to([7, 3, 1000, 5])
  images = [batch['image'] for batch in data.eval_train_split(1497)][0]
  evaluated, = restricted.eval_train_split(4)
  np.testing.assert_array_equal(evaluated['image'], images[[7, 3, 1000, 5]])
  for batch in take(restricted.train_batches(), 3):
    assert sorted(batch['id']) == [0, 1, 2, 3]
    np.testing.assert_array_equal(batch['image'], evaluated['image'][batch['id']])
  assert restricted.examples_per_epoch == 4
  # The original dataset stays as it was.
  assert data.examples_per_epoch == 1497
  np.testing.assert_array_equal(take(data.train_batches(), 1)[0]['id'], whole[0]['id'])
