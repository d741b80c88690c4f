"""From a recipe to a resolved config: defaults, errors, JSON, and which differences matter."""
import copy
import inspect
import json
import re

import ml_collections
import pytest

from vit_jax.run import config as config_lib
from vit_jax import evaluators
from vit_jax.base.durations import Minutes


def recipe(**changes):
  """The least there can be; `changes` replaces keys by their dotted names."""
  config = dict(data=dict(name='digits', batch_size=8, image_size=16), model=dict(variant='Ti/4'),
                train=dict(duration='4 epochs'))
  for name, value in changes.items():
    *sections, key = name.split('.')
    node = config
    for section in sections:
      node = node.setdefault(section, {})
    node[key] = value
  return config



def resolve(changes):
  return config_lib.resolve(recipe(**changes))


def error_of(changes):
  with pytest.raises(ValueError) as error:
    resolve(changes)
  return str(error.value)


# Defaults.


@pytest.mark.parametrize('name', sorted(config_lib.SECTIONS))
def test_every_argument_that_is_not_given_by_the_loop_is_a_key(name):
  section = config_lib.SECTIONS[name]
  function = section.builder.__init__ if inspect.isclass(section.builder) else section.builder
  arguments = set(inspect.signature(function).parameters) - {'self', *section.given}
  assert set(resolve({})[name].to_dict()) == arguments
  assert set(section.given) <= set(inspect.signature(function).parameters)


def test_given_values_stay_and_defaults_fill_the_rest():
  resolved = resolve({'optim.peak_lr': 0.5, 'seed': 3, 'checkpoint.every': '7 steps'}).to_dict()
  assert (resolved['optim']['peak_lr'], resolved['seed'], resolved['checkpoint']['every']) == (0.5, 3, '7 steps')
  assert resolved['train']['duration'] == '4 epochs'
  defaults = resolve({}).to_dict()
  assert defaults['optim']['name'] == 'adamw'
  assert (defaults['seed'], defaults['platform'], defaults['evaluators']) == (0, None, {})
  # Durations that the builders hold as numbers are written as text.
  assert defaults['train']['log_every'] == '50 steps'
  assert defaults['checkpoint']['every'] == '10 minutes'


def test_evaluators_are_filled_by_their_kind():
  resolved = resolve({'evaluators': {'a': {'kind': 'classification'},
                                     'b': {'kind': 'classification', 'split': 'train'}}}).to_dict()
  assert resolved['evaluators'] == {'a': {'kind': 'classification', 'split': 'test'},
                                    'b': {'kind': 'classification', 'split': 'train'}}


def test_resolve_takes_a_config_dict_and_gives_a_frozen_one_without_touching_what_it_was_given():
  given = recipe()
  before = copy.deepcopy(given)
  resolved = config_lib.resolve(ml_collections.ConfigDict(given))
  assert isinstance(resolved, ml_collections.FrozenConfigDict)
  assert resolved == config_lib.resolve(given)
  assert given == before
  with pytest.raises(AttributeError):
    resolved.seed = 1


# Errors.


@pytest.mark.parametrize('changes, start, listed', [
    ({'optimizer': {}}, 'unknown config key optimizer; valid keys are', ['optim', 'seed', 'evaluators', 'platform']),
    ({'optim.lr': 1.0}, 'unknown config key optim.lr; valid keys are', ['optim.peak_lr', 'optim.warmup']),
    ({'optim.total_steps': 1}, 'unknown config key optim.total_steps;', ['optim.peak_lr']),
    ({'data.seed': 1}, 'unknown config key data.seed;', ['data.batch_size']),
    ({'model.num_classes': 10}, 'unknown config key model.num_classes;', ['model.variant', 'model.dropout']),
    ({'checkpoint.directory': 'x'}, 'unknown config key checkpoint.directory;', ['checkpoint.keep']),
    ({'train.a': 1, 'train.b': 1}, 'unknown config key train.a, train.b;', ['train.duration']),
    ({'evaluators': {'t': {'kind': 'classification', 'splits': 'x'}}},
     'unknown config key evaluators.t.splits;', ['evaluators.t.split']),
])
def test_an_unknown_key_lists_the_valid_ones(changes, start, listed):
  message = error_of(changes)
  assert message.startswith(start)
  for name in listed:
    assert repr(name) in message.split('valid keys are')[1]


@pytest.mark.parametrize('section, key, kind', [
    ('train', 'duration', 'a duration'), ('data', 'name', 'str'), ('data', 'batch_size', 'int'),
    ('data', 'image_size', 'int | tuple')])
def test_a_missing_key_is_named_with_its_type(section, key, kind):
  config = recipe()
  del config[section][key]
  with pytest.raises(ValueError, match=re.escape(f'{section}.{key} is missing ({kind})')):
    config_lib.resolve(config)


@pytest.mark.parametrize('keys', [{}, {'split': 'test'}])
def test_an_evaluator_without_a_kind_is_refused(keys):
  assert error_of({'evaluators': {'t': keys}}).startswith('evaluators.t.kind is missing; choose from')


def test_an_unknown_kind_lists_the_choices():
  message = error_of({'evaluators': {'t': {'kind': 'fewshot'}}})
  assert message == f"unknown evaluators.t.kind 'fewshot'; choose from {sorted(evaluators.EVALUATORS)}"


@pytest.mark.parametrize('key, value, message', [
    ('seed', '1', "seed: expected int, got '1'"),
    ('seed', 1.0, 'seed: expected int, got 1.0'),
    ('seed', True, 'seed: expected int, got True'),
    ('platform', 1, 'platform: expected str | None, got 1'),
    ('data.batch_size', '8', "data.batch_size: expected int, got '8'"),
    ('data.cache', 1, 'data.cache: expected bool, got 1'),
    ('optim.peak_lr', '1e-3', "optim.peak_lr: expected float, got '1e-3'"),
    ('optim.peak_lr', None, 'optim.peak_lr: expected float, got None'),
    ('optim.peak_lr', True, 'optim.peak_lr: expected float, got True'),
    ('optim.clip_norm', 'none', "optim.clip_norm: expected float | None, got 'none'"),
    ('optim.options', [1], 'optim.options: expected dict | None, got (1,)'),
    ('model.patch_size', 4.0, 'model.patch_size: expected int | tuple | None, got 4.0'),
    ('train.duration', 90, "train.duration: expected a duration such as '90 steps', got 90"),
    ('train.duration', None, "train.duration: expected a duration such as '1_000 steps'"),
    ('train.eval_every', '10 minutes', "train.eval_every: expected a duration such as '1_000 steps'"),
    ('optim.warmup', '10', "optim.warmup: expected a duration such as '1_000 steps'"),
    ('checkpoint.every', '10', "or '10 minutes', got '10'"),
    ('evaluators', {'t': {'kind': 'classification', 'split': 3}}, 'evaluators.t.split: expected str, got 3'),
    ('optim', 'adamw', "optim is a section, a dict; got 'adamw'"),
])
def test_a_value_of_the_wrong_type_is_named(key, value, message):
  assert message in error_of({key: value})


@pytest.mark.parametrize('key, value', [
    ('optim.clip_norm', None), ('optim.peak_lr', 1), ('optim.options', {'b1': 0.8}), ('platform', 'cpu'),
    ('data.image_size', (8, 16)), ('data.image_size', [8, 16]), ('normalization.mean', (0.1, 0.2, 0.3)),
    ('checkpoint.every', '5 minutes'), ('checkpoint.every', '5 epochs'), ('train.ema_decay', 0.99)])
def test_a_value_of_a_right_type_is_taken(key, value):
  resolved = resolve({key: value}).to_dict()
  for part in key.split('.'):
    resolved = resolved[part]
  assert resolved == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize('fields, message', [
    (dict(duration=0), 'train.duration must be at least 1'),
    (dict(duration=1, log_every=0), 'train.log_every must be at least 1'),
    (dict(duration=1, eval_every=0), 'train.eval_every must be at least 1'),
    (dict(duration=1, ema_decay=1.0), 'train.ema_decay must be between 0 and 1, got 1.0'),
    (dict(duration=1, ema_decay=0.0), 'train.ema_decay must be between 0 and 1, got 0.0'),
])
def test_values_that_the_loop_cannot_use(fields, message):
  with pytest.raises(ValueError, match=message):
    config_lib.Train(**fields)


# Durations.


@pytest.mark.parametrize('section, key, text, expected', [
    ('train', 'duration', '4 epochs', 50), ('train', 'log_every', '7 steps', 7),
    ('train', 'eval_every', '80 examples', 10),
    ('optim', 'warmup', '1 epoch', 13), ('optim', 'cooldown', '0 steps', 0),
    ('checkpoint', 'every', '2 epochs', 25), ('checkpoint', 'every', '3 minutes', Minutes(3))])
def test_durations_become_steps(section, key, text, expected):
  values = resolve({f'{section}.{key}': text}).to_dict()[section]
  converted = config_lib.in_steps(section, values, batch_size=8, examples=100)
  assert converted[key] == expected
  assert isinstance(converted[key], Minutes) == isinstance(expected, Minutes)
  assert converted.keys() == values.keys()


def test_what_is_no_duration_stays():
  values = resolve({}).to_dict()['optim']
  converted = config_lib.in_steps('optim', values, batch_size=8, examples=100)
  assert converted == dict(values, warmup=0, cooldown=0)


# JSON and differences.

RICH = {'data.image_size': [8, 16], 'normalization.std': [0.1, 0.2, 0.3], 'optim.options': {'b1': 0.8},
        'evaluators': {'test': {'kind': 'classification'}}, 'optim.clip_norm': None, 'platform': 'cpu'}


@pytest.mark.parametrize('changes', [{}, RICH])
def test_json_gives_the_same_config_back(changes):
  resolved = resolve(changes)
  again = config_lib.resolve(json.loads(config_lib.to_json(resolved)))
  assert again == resolved
  assert config_lib.to_json(again) == config_lib.to_json(resolved)
  assert config_lib.resolve(resolved) == resolved


def difference(theirs, ours):
  """As a run taken up again sees it: theirs is read from JSON."""
  return config_lib.difference(json.loads(config_lib.to_json(resolve(theirs))), resolve(ours).to_dict())


@pytest.mark.parametrize('changes', [{}, RICH])
def test_a_config_does_not_differ_from_itself(changes):
  assert difference(changes, changes) == ''


def test_lists_and_tuples_do_not_differ():
  assert difference({'data.image_size': (8, 16)}, {'data.image_size': [8, 16]}) == ''


@pytest.mark.parametrize('key, value', [
    ('platform', 'cpu'), ('data.data_dir', '/elsewhere'), ('data.cache', True), ('data.threads', 7),
    ('data.workers', 2)])
def test_the_place_may_differ(key, value):
  assert key in config_lib.FREE
  assert difference({}, {key: value}) == ''


def test_how_often_and_what_is_measured_may_differ():
  assert difference({}, {'checkpoint.keep': 7, 'evaluators': {'a': {'kind': 'classification'}},
                         'parallel.strategy': 'mesh'}) == ''


def test_these_are_all_the_keys_that_may_differ():
  assert len(config_lib.FREE) == 7


@pytest.mark.parametrize('key, value, line', [
    ('seed', 1, '  seed: 0 there, 1 here'),
    ('optim.peak_lr', 0.5, '  optim.peak_lr: 0.001 there, 0.5 here'),
    ('train.duration', '5 epochs', '  train.duration: "4 epochs" there, "5 epochs" here'),
    ('data.train_split', 'test', '  data.train_split: "train" there, "test" here'),
    ('optim.options', {'b1': 0.8}, '  optim.options.b1: null there, 0.8 here'),
])
def test_any_other_difference_is_told(key, value, line):
  assert difference({}, {key: value}) == line


def test_all_differences_are_told_in_order():
  lines = difference({}, {'seed': 1, 'data.batch_size': 4, 'optim.peak_lr': 0.5})
  assert [line.split(':')[0].strip() for line in lines.splitlines()] == [
      'data.batch_size', 'optim.peak_lr', 'seed']


def test_a_whole_number_where_a_float_belongs_is_no_difference():
  assert difference({'optim.clip_norm': 1.0}, {'optim.clip_norm': 1}) == ''


def test_relative_paths_of_data_are_recorded_with_where_they_start(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  data = lambda **keys: config_lib.resolve(
      {'data': dict(batch_size=8, image_size=8, **keys), 'model': {'variant': 'Ti/16'}, 'train': {'duration': '1 steps'}}
  ).data
  assert data(name='folder:flowers').data_dir == data(name='npz:a.npz').data_dir == str(tmp_path)
  assert data(name='folder:flowers', data_dir='gs://bucket').data_dir == 'gs://bucket'
  for name in ('folder:/flowers', 'folder:gs://bucket/flowers', 'folder:~/flowers', 'digits'):
    assert data(name=name).data_dir is None
  assert data(name='digits').exclude is None
  assert data(name='digits', exclude='list.txt').exclude == str(tmp_path / 'list.txt')
  assert data(name='digits', exclude='gs://bucket/list.txt').exclude == 'gs://bucket/list.txt'
