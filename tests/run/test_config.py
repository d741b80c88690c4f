"""From a recipe to a checked config: defaults, errors, JSON, and which differences matter."""
import copy
import dataclasses
import json
import re

import ml_collections
import pytest

from vit_jax.base.errors import UserError
from vit_jax.evaluators import EVALUATORS
from vit_jax.run import config as config_lib
from vit_jax.run.config import RunConfig


def recipe(**changes):
  """Return a minimal recipe; `changes` replaces keys by their dotted names."""
  config = dict(data=dict(name='digits', batch_size=8, image_size=16), model=dict(variant='Ti/4'),
                train=dict(duration='4 epochs'))
  for name, value in changes.items():
    *sections, key = name.split('.')
    node = config
    for section in sections:
      node = node.setdefault(section, {})
    node[key] = value
  return config


def read(changes) -> RunConfig:
  return config_lib.read(recipe(**changes))


def error_of(changes):
  with pytest.raises(UserError) as error:
    read(changes)
  return str(error.value)


# Defaults.


def test_given_values_stay_and_defaults_fill_the_rest():
  config = read({'optim.peak_lr': 0.5, 'seed': 3, 'checkpoint.every': '7 steps'}).to_dict()
  assert (config['optim']['peak_lr'], config['seed'], config['checkpoint']['every']) == (0.5, 3, '7 steps')
  assert config['train']['duration'] == '4 epochs'
  defaults = read({}).to_dict()
  assert defaults['optim']['name'] == 'adamw'
  assert (defaults['seed'], defaults['platform'], defaults['evaluators']) == (0, None, {})
  assert defaults['train']['log_every'] == '50 steps'
  assert defaults['checkpoint']['every'] == '10 minutes'


def test_evaluators_are_filled_by_their_kind():
  config = read({'evaluators': {'a': {'kind': 'classification'}, 'b': {'kind': 'classification', 'split': 'train'}}})
  assert config.to_dict()['evaluators'] == {'a': {'kind': 'classification', 'split': 'test'},
                                            'b': {'kind': 'classification', 'split': 'train'}}


def test_a_config_dict_and_a_dict_read_alike_and_are_not_changed():
  given = recipe()
  before = copy.deepcopy(given)
  config = config_lib.read(ml_collections.ConfigDict(given))
  assert config == config_lib.read(given) == config_lib.read(ml_collections.FrozenConfigDict(given))
  assert given == before
  with pytest.raises(dataclasses.FrozenInstanceError):
    config.seed = 1


def test_off_has_one_spelling_inside():
  spelled = read({'model.remat': 'none', 'model.position': 'none', 'model.representation_size': 0, 'mix.mixup': 0.0,
                  'mix.cutmix': 0, 'data.exclude': ''})
  none = read({'model.remat': None, 'model.position': None, 'model.representation_size': None, 'mix.mixup': None})
  assert spelled == none
  assert (spelled.model.remat, spelled.model.position, spelled.model.representation_size) == (None, None, None)
  assert (spelled.mix.mixup, spelled.mix.cutmix, spelled.data.exclude) == (None, None, None)


def test_a_variant_fills_in_the_shape_and_given_fields_win():
  model = read({'model.variant': 'B/32', 'model.depth': 3}).model
  assert (model.width, model.depth, model.heads, model.mlp_dim, model.patch_size) == (768, 3, 12, 3072, (32, 32))


# Errors.


@pytest.mark.parametrize('changes, start, listed', [
    ({'optimizer': {}}, 'optimizer: unknown config key;', ['optim', 'seed', 'evaluators', 'platform']),
    ({'optim.lr': 1.0}, 'optim.lr: unknown config key;', ['optim.peak_lr', 'optim.warmup']),
    ({'optim.total_steps': 1}, 'optim.total_steps: unknown config key;', ['optim.peak_lr']),
    ({'data.seed': 1}, 'data.seed: unknown config key;', ['data.batch_size']),
    ({'model.num_classes': 10}, 'model.num_classes: unknown config key;', ['model.variant', 'model.dropout']),
    ({'checkpoint.directory': 'x'}, 'checkpoint.directory: unknown config key;', ['checkpoint.keep']),
    ({'evaluators': {'t': {'kind': 'classification', 'splits': 'x'}}},
     'evaluators.t.splits: unknown config key; did you mean evaluators.t.split?', ['evaluators.t.split']),
])
def test_an_unknown_key_lists_the_valid_ones(changes, start, listed):
  message = error_of(changes)
  assert message.startswith(start)
  for name in listed:
    assert repr(name) in message.split('valid keys are')[1]


@pytest.mark.parametrize('section, key, kind', [
    ('train', 'duration', 'a duration'), ('data', 'name', 'text'), ('data', 'batch_size', 'a whole number'),
    ('data', 'image_size', 'tuple[int, int]')])
def test_a_missing_key_is_named_with_its_type(section, key, kind):
  config = recipe()
  del config[section][key]
  with pytest.raises(UserError, match=re.escape(f'{section}.{key}: missing; expected {kind}')):
    config_lib.read(config)


@pytest.mark.parametrize('keys', [{}, {'split': 'test'}])
def test_an_evaluator_without_a_kind_is_refused(keys):
  assert error_of({'evaluators': {'t': keys}}).startswith('evaluators.t.kind: missing; choose from')


@pytest.mark.parametrize('section', ['evaluators.t', 'model', 'objective'])
def test_an_unknown_kind_lists_the_choices(section):
  message = error_of({f'{section}.kind': 'fewshot'})
  assert message.startswith(f"{section}.kind: unknown 'fewshot'; choose from ")
  if section == 'evaluators.t':
    assert message.endswith(str(sorted(EVALUATORS)))


@pytest.mark.parametrize('key, value, message', [
    ('seed', '1', "seed: expected a whole number, got '1'"),
    ('seed', 1.0, 'seed: expected a whole number, got 1.0'),
    ('seed', True, 'seed: expected a whole number, got True'),
    ('seed', -1, 'seed: must be in 0..2**32 - 1, got -1'),
    ('platform', 1, 'platform: expected text or None, got 1'),
    ('platform', 'cuda', "platform: unknown 'cuda'; choose from ['cpu', 'gpu', 'tpu']"),
    ('data.batch_size', '8', "data.batch_size: expected a whole number, got '8'"),
    ('data.cache', 1, 'data.cache: expected True or False, got 1'),
    ('data.image_size', 0, 'data.image_size: expected a positive number of pixels or a pair (rows, columns), got 0'),
    ('optim.peak_lr', '1e-3', "optim.peak_lr: expected a number, got '1e-3'"),
    ('optim.peak_lr', None, 'optim.peak_lr: expected a number, got None'),
    ('optim.peak_lr', True, 'optim.peak_lr: expected a number, got True'),
    ('optim.clip_norm', 'none', "optim.clip_norm: expected a number or None, got 'none'"),
    ('optim.options', [1], 'optim.options: expected dict[str, typing.Any], got (1,)'),
    ('model.patch_size', 4.0, 'model.patch_size: expected a positive number of pixels or a pair (rows, columns), got 4.0'),
    ('train.duration', 90, "train.duration: expected a duration such as '1_000 steps', '90 epochs', '5e6 examples', got "
     "90; write '90 steps'"),
    ('train.duration', None, "train.duration: expected a duration such as '1_000 steps'"),
    ('train.duration', '0 steps', 'train.duration: must be longer than 0'),
    ('train.log_every', '0 steps', 'train.log_every: must be longer than 0'),
    ('train.eval_every', '0 epochs', 'train.eval_every: must be longer than 0'),
    ('train.eval_every', '10 minutes', "train.eval_every: expected a duration such as '1_000 steps'"),
    ('train.ema_decay', 1.0, 'train.ema_decay: must be between 0 and 1, got 1.0'),
    ('train.ema_decay', 0.0, 'train.ema_decay: must be between 0 and 1, got 0.0'),
    ('train.ema_warmup', True, 'train.ema_warmup: needs train.ema_decay, which is None'),
    ('train.ema_warmup', 1, 'train.ema_warmup: expected True or False, got 1'),
    ('checkpoint.keep', 0, 'checkpoint.keep: must be at least 1, got 0'),
    ('checkpoint.keep_best', -1, 'checkpoint.keep_best: must be at least 0, got -1'),
    ('checkpoint.every', '0 minutes', 'checkpoint.every: must be longer than 0'),
    ('optim.warmup', '10', "optim.warmup: expected a duration such as '1_000 steps'"),
    ('checkpoint.every', '10', "or '10 minutes', got '10'"),
    ('evaluators', {'t': {'kind': 'classification', 'split': 3}}, 'evaluators.t.split: expected text, got 3'),
    ('evaluators', ['t'], "evaluators: expected {name: section}, got ['t']"),
    ('optim', 'adamw', "optim: expected a section, {key: value}, got 'adamw'"),
    ('model', 'B/16', "model: expected a section, {key: value}, got 'B/16'"),
])
def test_a_bad_value_is_named(key, value, message):
  assert message in error_of({key: value})


@pytest.mark.parametrize('key, value, expected', [
    ('optim.clip_norm', None, None), ('optim.peak_lr', 1, 1.0), ('optim.options', {'b1': 0.8}, {'b1': 0.8}),
    ('platform', 'cpu', 'cpu'), ('data.image_size', (8, 16), [8, 16]), ('data.image_size', 8, [8, 8]),
    ('normalization.mean', (0.1, 0.2, 0.3), [0.1, 0.2, 0.3]), ('checkpoint.every', '5 minutes', '5 minutes'),
    ('checkpoint.every', '5 epochs', '5 epochs'), ('train.ema_decay', 0.99, 0.99),
    ('train.duration', '10_000 steps', '10000 steps'), ('train.duration', '5e6 examples', '5000000 examples'),
    ('train.duration', '0.5 epochs', '0.5 epochs')])
def test_a_good_value_is_taken(key, value, expected):
  config = read({key: value}).to_dict()
  for part in key.split('.'):
    config = config[part]
  assert config == expected


# JSON and differences.

RICH = {'data.image_size': [8, 16], 'normalization.std': [0.1, 0.2, 0.3], 'optim.options': {'b1': 0.8},
        'evaluators': {'test': {'kind': 'classification'}}, 'optim.clip_norm': None, 'platform': 'cpu'}


@pytest.mark.parametrize('changes', [{}, RICH])
def test_json_gives_the_same_config_back(changes):
  config = read(changes)
  again = config_lib.read(json.loads(json.dumps(config.to_dict())))
  assert again == config
  assert again.to_dict() == config.to_dict()


def difference(theirs, ours):
  """Compare as a resumed run does: theirs is read from JSON."""
  theirs = config_lib.read(json.loads(json.dumps(read(theirs).to_dict()))).to_dict()
  return config_lib.difference(theirs, read(ours).to_dict(), config_lib.MAY_CHANGE_ON_RESUME)


@pytest.mark.parametrize('changes', [{}, RICH])
def test_a_config_does_not_differ_from_itself(changes):
  assert difference(changes, changes) == ''


@pytest.mark.parametrize('theirs, ours', [
    ({'data.image_size': (8, 16)}, {'data.image_size': [8, 16]}),
    ({'optim.clip_norm': 1.0}, {'optim.clip_norm': 1}),
    ({'train.duration': '10_000 steps'}, {'train.duration': '10000 steps'}),
    ({'model.remat': 'none'}, {'model.remat': None})])
def test_two_spellings_of_a_value_do_not_differ(theirs, ours):
  assert difference(theirs, ours) == ''


@pytest.mark.parametrize('key, value', [
    ('platform', 'cpu'), ('data.data_dir', '/elsewhere'), ('data.cache', True), ('data.threads', 7),
    ('data.workers', 2), ('train.log_every', '7 steps'), ('train.eval_every', '7 steps'), ('checkpoint.keep', 7),
    ('health.every', 1), ('guard.rollbacks', 9), ('data.fingerprint', 'content'), ('train.hang_timeout', '9 minutes'),
    ('evaluators', {'a': {'kind': 'classification'}}), ('parallel.strategy', 'mesh')])
def test_where_a_run_runs_and_what_it_prints_may_change(key, value):
  assert difference({}, {key: value}) == ''


def test_these_are_all_the_keys_and_sections_that_may_change():
  assert len(config_lib.MAY_CHANGE_ON_RESUME) == 14


@pytest.mark.parametrize('key, value, line', [
    ('seed', 1, '  seed: 0 there, 1 here'),
    ('optim.peak_lr', 0.5, '  optim.peak_lr: 0.001 there, 0.5 here'),
    ('train.duration', '5 epochs', '  train.duration: "4 epochs" there, "5 epochs" here'),
    ('data.train_split', 'test', '  data.train_split: "train" there, "test" here'),
    ('optim.options', {'b1': 0.8}, '  optim.options.b1: null there, 0.8 here'),
])
def test_any_other_difference_is_shown(key, value, line):
  assert difference({}, {key: value}) == line


def test_all_differences_are_shown_in_order():
  lines = difference({}, {'seed': 1, 'data.batch_size': 4, 'optim.peak_lr': 0.5})
  assert [line.split(':')[0].strip() for line in lines.splitlines()] == ['data.batch_size', 'optim.peak_lr', 'seed']


def test_relative_paths_of_data_are_recorded_with_where_they_start(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  data = lambda **keys: config_lib.read(
      {'data': dict(batch_size=8, image_size=8, **keys), 'model': {'variant': 'Ti/16'}, 'train': {'duration': '1 steps'}}
  ).data
  assert data(name='folder:flowers').data_dir == data(name='npz:a.npz').data_dir == str(tmp_path)
  assert data(name='folder:flowers', data_dir='gs://bucket').data_dir == 'gs://bucket'
  for name in ('folder:/flowers', 'folder:gs://bucket/flowers', 'folder:~/flowers', 'digits'):
    assert data(name=name).data_dir is None
  assert data(name='digits').exclude is None
  assert data(name='digits', exclude='list.txt').exclude == str(tmp_path / 'list.txt')
  assert data(name='digits', exclude='gs://bucket/list.txt').exclude == 'gs://bucket/list.txt'
