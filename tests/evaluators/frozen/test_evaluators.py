"""Evaluators on frozen features during training: shared passes, EMA, other data, mistakes."""
import jax
import numpy as np
import pytest

from tests import tiny
from tests.distributed.test_hosts import end
from tests.probing.test_probe import embed
import vit_jax
from vit_jax import train
from vit_jax.base.errors import UserError
from vit_jax.data.sources import registry
from vit_jax.evaluators.frozen import features as features_lib
from vit_jax.evaluators.frozen.features import Features
from vit_jax.evaluators.frozen.few_shot import few_shot
from vit_jax.evaluators.frozen.knn import knn
from vit_jax.evaluators.frozen.linear_probe import linear_probe
from vit_jax.evaluators.frozen.nearest_mean import nearest_mean
from vit_jax.evaluators.frozen.retrieval import retrieval
from vit_jax.run.build import build
from vit_jax.rundir.layout import RunDir

DATA = dict(test_split='test[:90]')
EVALUATORS = {
    'fewshot': dict(kind='few_shot', data=DATA, shots=(1, 5), seeds=2, l2=2.0 ** 5),
    'knn': dict(kind='knn', data=DATA),
    'probe': dict(kind='linear_probe', data=DATA, l2=(0.1, 0.01)),
    'means': dict(kind='nearest_mean', data=dict(DATA, train_split='train[:150]')),
    'search': dict(kind='retrieval', data=DATA, recall_at=(1, 3)),
}


def split_features(model, split, data_dir):
  """Return the features of a split, all images at once."""
  source = registry.open_source('digits', split, data_dir)
  records = source.read(range(len(source)))
  return Features(embed(model, [record['image'] for record in records]), np.array([record['label'] for record in records], np.int32), 10)


@pytest.fixture(scope='module')
def trained(data_dir, tmp_path_factory):
  """Return (run directory, its last metrics, number of feature passes)."""
  passes, run = [], features_lib.FeaturePass.__call__
  config = tiny.config(data_dir, **{'evaluators': EVALUATORS, 'checkpoint.keep_best': 1, 'data.train_split': 'train[:210]',
                                    'checkpoint.best': 'fewshot_ema/5shot', 'data.batch_size': 40})
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(features_lib.FeaturePass, '__call__', lambda *args: passes.append(1) or run(*args))
    path = tmp_path_factory.mktemp('frozen') / 'run'
    return path, train.run(config, path), len(passes)


@pytest.mark.parametrize('suffix', ['', '_ema'])
def test_metrics_are_those_of_the_saved_model(suffix, trained, data_dir):
  path, metrics, _ = trained
  model = vit_jax.load(path, ema=bool(suffix))
  train_split, few, test = (split_features(model, split, data_dir) for split in ('train[:210]', 'train[:150]', 'test[:90]'))
  shots = few_shot(train_split, test, (1, 5), (0, 1), 2.0 ** 5)
  neighbors = knn(train_split, test, (10, 20, 100, 200))
  found = retrieval(test, (1, 3))
  expected = {
      'fewshot/1shot': np.mean(shots[1]), 'fewshot/1shot_std': np.std(shots[1], ddof=1),
      'fewshot/5shot': np.mean(shots[5]), 'fewshot/5shot_std': np.std(shots[5], ddof=1),
      **{f'knn/k{k}': accuracy for k, accuracy in neighbors.items()},
      'probe/accuracy': linear_probe(train_split, (0.1, 0.01)).head.accuracy(test.features, test.labels),
      'means/accuracy': nearest_mean(few, test), **{f'search/{name}': value for name, value in found.items()}}
  ours = {name.replace('_ema/', '/'): value for name, value in metrics.items() if ('_ema/' in name) == bool(suffix)}
  assert ours == pytest.approx(expected, abs=1e-4)  # rounding may exchange neighbors, not classes


def test_evaluators_share_the_passes_of_an_evaluation(trained):
  """Two evaluations, of parameters and EMA, of three splits: train[:210], train[:150], test[:90]."""
  assert trained[2] == 2 * 2 * 3


def test_features_are_forgotten_after_an_evaluation(data_dir, monkeypatch):
  parts = build(tiny.config(data_dir, evaluators={'means': dict(EVALUATORS['means'], data=DATA)}))
  evaluator, params = parts.evaluators['means'], parts.strategy.create(parts.create).params
  first = evaluator(params, {})
  changed = jax.tree.map(lambda x: x * 0.0, params)
  assert evaluator(params, {}) == first != evaluator(changed, {})
  calls = []
  monkeypatch.setattr(features_lib.FeaturePass, '__call__', lambda *args: calls.append(1) or 1 / 0)
  assert evaluator(params, {}) == first and not calls
  parts.context.features.forget()
  with pytest.raises(ZeroDivisionError):
    evaluator(params, {})


@pytest.mark.slow
@pytest.mark.parametrize('strategy', ['pmap', 'mesh'])
def test_eight_devices_measure_the_same(strategy, trained, data_dir, tmp_path):
  """The batch of 40 falls into shards of 5; the last of 210 images are padded."""
  changes = {'parallel.strategy': 'mesh', 'parallel.fsdp': 8} if strategy == 'mesh' else {}
  config = tiny.config(data_dir, **{'evaluators': EVALUATORS, 'data.train_split': 'train[:210]', 'data.batch_size': 40,
                                    **changes})
  (status, output, error), = end([tiny.command('main', f'--config={tiny.write(config, tmp_path)}',
                                               f'--workdir={tmp_path}/run', devices=8)])
  assert status == 0, output + error
  assert last_evaluation(tmp_path / 'run') == pytest.approx(trained[1], abs=0.03)  # after twelve steps whose sums were rounded differently


def last_evaluation(path):
  """Return the last evaluation of a run of 12 steps."""
  return {name: value for name, value in RunDir(path).metrics_at(12).items() if not name.startswith('train/')
          and name.partition('/')[0].removesuffix('_ema') in EVALUATORS}


def test_another_dataset(data_dir, tmp_path):
  """The color images of tiny_shapes, for a model of gray ones; its two splits have 7 and 3."""
  evaluators = {'shapes': dict(kind='knn', k=(1, 7), data=dict(name='tiny_shapes', data_dir=data_dir))}
  parts = build(tiny.config(data_dir, evaluators=evaluators))
  values = parts.evaluators['shapes'](parts.strategy.create(parts.create).params, {})
  assert list(values) == ['k1', 'k7'] == list(parts.evaluators['shapes'].metrics)
  assert values['k7'] in (1 / 3, 2 / 3)


def test_mistakes_are_errors_before_anything_compiles(data_dir):
  def fails(match, evaluator, **changes):
    with pytest.raises(UserError, match=match):
      build(tiny.config(data_dir, evaluators={'it': evaluator}, **changes))

  fails("split 'half' of dataset 'digits': no such split", dict(kind='knn', data=dict(test_split='half')))
  fails("split 'half' of dataset 'digits': no such split", dict(kind='knn', data=dict(train_split='half')))
  fails('knn.k: expected at most 300, the number of training images, got 301', dict(kind='knn', k=(301,)))
  fails('knn.k: expected different whole numbers of at least 1, got 0, 5', dict(kind='knn', k=(0, 5)))
  fails('knn.temperature: must be positive, got 0', dict(kind='knn', temperature=0))
  fails('few_shot.shots: expected different whole numbers of at least 1, got none', dict(kind='few_shot', shots=()))
  fails('few_shot.seeds: expected different whole numbers of at least 1, got 0', dict(kind='few_shot', seeds=0))
  fails("few_shot.l2: expected a positive number or 'sweep', got 'best'", dict(kind='few_shot', l2='best'))
  fails('linear_probe.held_out: must be between 0 and 1, got 1.0', dict(kind='linear_probe', held_out=1.0))
  fails('linear_probe.l2: expected positive numbers', dict(kind='linear_probe', l2=(0.0,)))
  fails('evaluators.it.shots: expected', dict(kind='few_shot', shots=5))
  fails(r'evaluators.it.data.tset_split: unknown config key; did you mean evaluators.it.data.test_split\?',
        dict(kind='knn', data=dict(tset_split='test')))
  fails('data.data_dir: needs the data.name of another dataset', dict(kind='knn', data=dict(data_dir='/tmp')))
  fails("evaluators: data.test_split 'train' is also the training split", dict(
      kind='knn', data=dict(train_split='train', test_split='train')))
  fails("dataset 'tiny_scenes' has any number of classes per image", dict(
      kind='retrieval', data=dict(name='tiny_scenes', data_dir=data_dir)))
  fails("checkpoint.best: 'it/k5' is not measured; choose from .*it/k10.*it/k20", dict(kind='knn'), **{
      'checkpoint.keep_best': 1, 'checkpoint.best': 'it/k5'})
