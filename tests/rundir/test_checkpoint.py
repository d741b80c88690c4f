"""Checkpoints: whole, bit-equal, kept and removed as configured."""
import dataclasses
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.base.durations import Interval, Pace
from vit_jax.base.errors import UserError
from vit_jax.rundir import checkpoint
from vit_jax.rundir.checkpoint import CheckpointConfig, Checkpoints
from vit_jax.rundir.record import RunRecord
from vit_jax.training.state import TrainState

PACE = Pace(batch_size=1, examples=10)


def record(step=0, **changes):
  """Return a run record that names a step."""
  fields = dict(config={'seed': step}, class_names=('a', 'é'), channels=3, examples=10, fingerprint='0123', image_size=(8, 8),
                versions={'jax': '0'}, step=step)
  return RunRecord(**{**fields, **changes})


def open_checkpoints(directory, better='max', **fields):
  """Open checkpoints with a config of these fields."""
  return Checkpoints(directory, CheckpointConfig(**fields), PACE, better=better)


def make_state(seed=0):
  """Return a state with all that Orbax could stumble over: bfloat16, odd floats, None, scalars, empty tuples."""
  rng = np.random.default_rng(seed)
  params = {'kernel': rng.normal(size=(3, 4)).astype(np.float32), 'bias': np.array([3e38, -0.0, 1e-40], np.float32)}
  opt_state = ({'mu': rng.normal(size=(3, 4)).astype(jnp.bfloat16)}, (), np.int32(seed))
  return TrainState(step=np.int32(7), params=params, opt_state=opt_state, ema=None, seen=np.uint32(2**32 - 1))


def abstract(state):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)


def assert_bit_equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert (x.dtype, x.shape) == (y.dtype, y.shape)
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def save_all(directory, steps, metrics=None, **fields):
  """Save steps one after the other and close; metrics is {step: accuracy}."""
  checkpoints = open_checkpoints(directory, **{'every': Interval(1), **fields})
  for step in steps:
    known = {fields.get('best', 'test/accuracy'): metrics[step]} if metrics and step in metrics else None
    checkpoints.save(step, make_state(step), record(step), known)
  checkpoints.close()


def steps_in(directory, **fields):
  checkpoints = open_checkpoints(directory, **fields)
  steps = checkpoints.steps()
  assert checkpoints.latest() == (steps[-1] if steps else None)
  checkpoints.close()
  return steps


def test_a_fresh_folder_has_none(tmp_path):
  assert steps_in(tmp_path / 'checkpoints') == []


def test_what_is_saved_comes_back_bit_for_bit(tmp_path):
  saved = record(7, position={'next_index': 7}, metrics={'test/loss': 0.1 + 0.2})
  state = make_state()
  checkpoints = open_checkpoints(tmp_path)
  checkpoints.save(7, state, saved)
  checkpoints.close()
  again = open_checkpoints(tmp_path)
  restored, run = again.restore(again.latest(), abstract(state))
  again.close()
  assert_bit_equal(restored, state)
  assert dataclasses.replace(run, digests={}) == saved
  assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(restored))


def test_each_step_is_its_own(tmp_path):
  save_all(tmp_path, (1, 2), keep=2)
  checkpoints = open_checkpoints(tmp_path, keep=2)
  for step in (1, 2):
    restored, run = checkpoints.restore(step, abstract(make_state()))
    assert_bit_equal(restored, make_state(step))
    assert dataclasses.replace(run, digests={}) == record(step)
  checkpoints.close()


@pytest.mark.parametrize('keep, expected', [(1, [5]), (2, [4, 5]), (9, [1, 2, 3, 4, 5])])
def test_the_latest_are_kept(tmp_path, keep, expected):
  save_all(tmp_path, range(1, 6), keep=keep)
  assert steps_in(tmp_path) == expected


@pytest.mark.parametrize('keep, keep_best, expected', [
    (1, 0, [6]), (1, 1, [3, 6]), (1, 2, [2, 3, 6]), (2, 1, [3, 5, 6])])
def test_the_best_are_kept_as_well(tmp_path, keep, keep_best, expected):
  accuracies = {1: 0.1, 2: 0.8, 3: 0.9, 4: 0.3, 6: 0.2}  # step 5 was not evaluated
  save_all(tmp_path, range(1, 7), accuracies, keep=keep, keep_best=keep_best)
  assert steps_in(tmp_path, keep=keep, keep_best=keep_best) == expected


def test_the_best_are_remembered_by_the_next_process(tmp_path):
  fields = dict(keep=1, keep_best=1)
  save_all(tmp_path, (1, 2), {1: 0.9, 2: 0.1}, **fields)
  save_all(tmp_path, (3, 4), {3: 0.2, 4: 0.3}, **fields)
  assert steps_in(tmp_path, **fields) == [1, 4]


FALLING, RISING = {1: 0.9, 2: 0.5, 3: 0.3, 4: 0.2}, {1: 0.2, 2: 0.3, 3: 0.5, 4: 0.9}


@pytest.mark.parametrize('better, values, expected', [
    ('min', FALLING, [3, 4]), ('min', RISING, [1, 2, 4]), ('max', FALLING, [1, 2, 4]), ('max', RISING, [3, 4]),
    ('min', {1: np.nan, 2: 0.5, 3: np.nan, 4: 0.9}, [2, 4]), ('max', {1: np.nan, 2: 0.5, 3: np.nan, 4: 0.4}, [2, 4]),
    ('min', {1: np.nan, 2: np.nan, 3: np.nan, 4: np.nan}, [3, 4])])
@pytest.mark.parametrize('resumed', [False, True])
def test_the_best_are_those_of_the_smaller_or_larger_numbers_and_nan_is_the_worst(
    tmp_path, better, values, expected, resumed):
  fields = dict(keep=1, keep_best=2, best='test_ema/loss', better=better)
  for steps in ((1, 2), (3, 4)) if resumed else ((1, 2, 3, 4),):
    save_all(tmp_path, steps, values, **fields)
  assert steps_in(tmp_path, **fields) == expected


def test_the_ranking_metric_may_be_another_one_after_a_resume(tmp_path):
  """Checkpoints that have no number of that name give way to those that have."""
  save_all(tmp_path, (1, 2), {1: 0.9, 2: 0.1}, keep=1, keep_best=1)
  fields = dict(keep=1, keep_best=1, best='test/loss', better='min')
  save_all(tmp_path, (3, 4, 5), {3: 0.2, 4: 0.3, 5: 0.4}, **fields)
  assert steps_in(tmp_path, **fields) == [3, 5]


def test_a_ranking_metric_that_is_not_measured_is_named(tmp_path):
  checkpoints = open_checkpoints(tmp_path, keep_best=1, best='val/accuracy')
  with pytest.raises(UserError, match=r"checkpoint.best: unknown 'val/accuracy'; choose from \['test/loss'\]"):
    checkpoints.save(1, make_state(), record(), {'test/loss': 1.0})
  checkpoints.close()


def due_steps(checkpoints, steps, **fields):
  return [step for step in steps if checkpoints.due(step, **{**dict(at_log=False, evaluated=False), **fields})]


def test_due_every_so_many_steps(tmp_path):
  checkpoints = open_checkpoints(tmp_path, every=Interval(3))
  assert due_steps(checkpoints, range(1, 11)) == [3, 6, 9]
  assert due_steps(checkpoints, range(1, 11), evaluated=True, at_log=True) == [3, 6, 9]
  checkpoints.close()


def test_due_at_every_evaluation_if_the_best_are_kept(tmp_path):
  checkpoints = open_checkpoints(tmp_path, every=Interval(3), keep_best=1)
  assert due_steps(checkpoints, range(1, 5), evaluated=True) == [1, 2, 3, 4]
  assert due_steps(checkpoints, range(1, 5)) == [3]
  checkpoints.close()


def test_due_by_the_clock_when_a_line_is_logged(tmp_path, monkeypatch):
  clock = [100.0]
  monkeypatch.setattr(checkpoint, 'time', types.SimpleNamespace(monotonic=lambda: clock[0]))
  checkpoints = open_checkpoints(tmp_path, every=Interval(2, 'minute'))
  due = lambda at_log: checkpoints.due(1, at_log=at_log, evaluated=True)
  clock[0] += 119
  assert not due(True)
  clock[0] += 1
  assert due(True) and not due(False)
  checkpoints.save(1, make_state(), record())  # the two minutes start again
  clock[0] += 119
  assert not due(True)
  clock[0] += 1
  assert due(True)
  checkpoints.close()


def test_a_half_written_step_is_ignored_and_can_be_written_again(tmp_path):
  save_all(tmp_path, (5,), keep=2)
  # As a kill leaves it: Orbax writes aside, and renames when all is there.
  half = tmp_path / '7.orbax-checkpoint-tmp'
  shutil.copytree(tmp_path / '5', half)
  shutil.rmtree(half / 'state')
  checkpoints = open_checkpoints(tmp_path, keep=2)
  assert (checkpoints.latest(), checkpoints.steps()) == (5, [5])
  restored, _ = checkpoints.restore(5, abstract(make_state()))
  assert_bit_equal(restored, make_state(5))
  checkpoints.save(7, make_state(7), record(7))
  checkpoints.close()
  again = open_checkpoints(tmp_path, keep=2)
  assert again.steps() == [5, 7]
  assert_bit_equal(again.restore(7, abstract(make_state()))[0], make_state(7))
  again.close()
  assert not list(tmp_path.glob('*tmp*'))


@pytest.mark.parametrize('stem, own', [('embed', 'other'), ('patch_embed', 'embed'), ('patch_embed', 'other')])
def test_names_of_version_0_1_are_read_and_the_same_name_elsewhere_is_left_alone(tmp_path, stem, own):
  kernel, other = np.arange(4, dtype=np.float32), np.arange(3, dtype=np.float32)
  state = lambda stem: TrainState(
      step=np.int32(1), params={stem: {'kernel': kernel}, 'objective': {own: {'kernel': other}}},
      opt_state=({'mu': {stem: {'kernel': kernel + 1}}},), ema=None, seen=np.uint32(0))
  checkpoints = open_checkpoints(tmp_path)
  checkpoints.save(1, state(stem), record())
  checkpoints.wait()
  restored, _ = checkpoints.restore(1, abstract(state('patch_embed')))
  checkpoints.close()
  assert_bit_equal(restored, state('patch_embed'))
