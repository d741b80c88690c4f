"""Numbers that go wrong in a run: it goes back and on, bit for bit, or stops with a report."""
import json
import shutil

import jax
from jax.experimental.compilation_cache import compilation_cache
import numpy as np
import pytest

from experiments import spikes
from experiments.spikes import Fault
from tests import tiny
from vit_jax import train
from vit_jax.base.durations import Pace
from vit_jax.base.errors import UserError
from vit_jax.pretrained import load
from vit_jax.run import evaluation
from vit_jax.run import loop as loop_lib
from vit_jax.rundir.checkpoint import CheckpointConfig, Checkpoints
from vit_jax.rundir.checks import digests
from vit_jax.rundir.layout import RunDir
from vit_jax.training import recompute

STEPS = 24


@pytest.fixture(autouse=True, scope='module')
def share_programs(tmp_path_factory):
  """Compile each program once for all runs of this file."""
  settings = dict(jax_enable_compilation_cache=True, jax_persistent_cache_min_compile_time_secs=0.0,
                  jax_compilation_cache_dir=str(tmp_path_factory.mktemp('programs')))
  before = {name: getattr(jax.config, name) for name in settings}
  for name, value in settings.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()
  yield
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


def config(data_dir, **changes):
  """Return the config of a short run that may be judged from step 17 on."""
  found = tiny.config(data_dir, **{'train.duration': f'{STEPS} steps', 'train.eval_every': '100 steps',
                                  'train.log_every': '2 steps', 'guard.skipped': 2, 'guard.window': 16, **changes})
  found.evaluators = {}
  return found


def events(workdir):
  return json.loads((workdir / 'numbers.json').read_text())['events']


def assert_same_end(config, workdir, other):
  """Two runs end in the same state, bit for bit, after the same metrics."""
  (state, record), (expected, other_record) = spikes.final(config, workdir), spikes.final(config, other)
  jax.tree.map(np.testing.assert_array_equal, state, expected)
  assert record == other_record and tiny.metrics(workdir) == tiny.metrics(other)


@pytest.fixture(scope='module')
def sound(data_dir, tmp_path_factory):
  """Return the workdir of a run without faults."""
  workdir = tmp_path_factory.mktemp('sound') / 'run'
  train.run(config(data_dir), workdir)
  return workdir


class BrokenWeights(Fault):
  """A weight becomes NaN, or so large that the loss does."""

  def flip(self, state, moves):
    del moves
    kernel = state.params['head']['kernel']
    state.params['head']['kernel'] = jax.device_put(np.asarray(kernel) * np.float32(1e38), kernel.sharding)
    return state


@pytest.mark.slow
def test_flipped_weights_are_mended_by_the_rollback_alone(data_dir, sound, tmp_path, capsys):
  with spikes.injected([BrokenWeights('weights', 11, 0)]):
    train.run(config(data_dir), tmp_path)
  found, = events(tmp_path)
  assert found['step'] == 11 and found['rolled_back_to'] == 8 and 'not finite' in found['reason']
  assert found['layers_not_finite']['gradient'] and 'head' in found['layers_not_finite'].get('parameters', ['head'])
  said = capsys.readouterr().out
  assert 'warning: step 11: it and the steps up to 12 were skipped' in said and 'Rolling back to step 8' in said
  assert 'Step 11 is sound now' in said and 'Step 12 is sound now' in said
  assert_same_end(config(data_dir), tmp_path, sound)


@pytest.mark.slow
def test_an_image_that_breaks_one_step_costs_only_that(data_dir, tmp_path, capsys):
  with spikes.injected([Fault('image', 11, 0)]):
    train.run(config(data_dir), tmp_path)
  assert not (tmp_path / 'numbers.json').exists()
  assert 'warning: 1 step up to step 12 skipped' in capsys.readouterr().out
  lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  skipped = {line['step']: line.get('train/skipped_steps', 0) for line in lines if 'train/loss' in line}
  assert skipped[10] == 0 and skipped[12] == skipped[24] == 1
  state, record = spikes.final(config(data_dir), tmp_path)
  assert record.guard['skipped'] == 1 and state.step == STEPS


@pytest.fixture(scope='module')
def images(data_dir, tmp_path_factory):
  """Return (faults, workdir) of a run with images that break three steps in a row: one more than it accepts."""
  faults, workdir = [Fault('image', step, step) for step in (13, 14, 15)], tmp_path_factory.mktemp('images') / 'run'
  with spikes.injected(faults):
    train.run(config(data_dir), workdir)
  return faults, workdir


def test_the_examples_that_are_the_cause_are_named_and_left_out(images, data_dir):
  faults, workdir = images
  rolled_back, *named = events(workdir)
  assert rolled_back['step'] == 13 and rolled_back['rolled_back_to'] == 12
  assert [event['step'] for event in named] == [13, 14]  # step 15 alone is only skipped
  for fault, event in zip(faults, named, strict=False):
    example, = event['examples']
    assert example['row'] == np.random.default_rng(fault.seed).integers(64) and example['loss'] is None
    assert 'train' in example['name'] and event['layers_not_finite']['gradient']
  state, record = spikes.final(config(data_dir), workdir)
  assert set(record.guard['left_out']) == {'13', '14'} and record.guard['skipped'] == 1
  assert state.step == STEPS and record.position == dict(next_index=STEPS)


@pytest.mark.parametrize('stop_at', [pytest.param(12, marks=pytest.mark.slow), 16])
def test_a_run_that_is_interrupted_leaves_out_the_same(images, data_dir, tmp_path, monkeypatch, stop_at):
  """Before the step that went wrong, and after the list was saved."""
  faults, workdir = images
  save = loop_lib.Loop._save

  def save_and_end(self, at, evaluated, *, surely):
    trouble = save(self, at, evaluated, surely=surely)
    if at.step == stop_at:
      self._checkpoints.wait()
      raise RuntimeError('the power went')
    return trouble

  with spikes.injected(faults):
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
      patch.setattr(loop_lib.Loop, '_save', save_and_end)
      train.run(config(data_dir), tmp_path)
    train.run(config(data_dir), tmp_path)
  assert_same_end(config(data_dir), tmp_path, workdir)


@pytest.mark.slow
def test_a_run_that_does_not_get_past_it_stops_with_a_report(data_dir, tmp_path):
  changed = config(data_dir, **{'guard.rollbacks': 1, 'optim.peak_lr': 1e30, 'checkpoint.every': '1 steps'})
  with pytest.raises(UserError, match='rolled back 1 time and did not get past it .*; step 4 is saved. '
                                      '.*numbers.json says more. Lower optim.peak_lr'):
    train.run(changed, tmp_path)
  assert [event['reason'] for event in events(tmp_path)][0].startswith('it and the steps up to')


@pytest.mark.slow
def test_a_command_that_stops_so_exits_with_status_1(data_dir, tmp_path):
  changed = config(data_dir, **{'guard.skipped': 1, 'optim.peak_lr': 1e37, 'checkpoint.every': '20 steps'})
  process = tiny.command('main', f'--config={tiny.write(changed, tmp_path)}', f'--workdir={tmp_path / "run"}')
  _, error = process.communicate()
  assert process.returncode == 1 and 'nothing was saved before it' in error and 'Traceback' not in error


@pytest.mark.slow
def test_a_step_that_is_computed_again_and_differs_is_not_trusted(data_dir, sound, tmp_path, monkeypatch):
  """A bit flips in the parameters between two computations of the gradient, once."""
  run, calls = recompute.recompute, []

  def flipping(program, strategy, state, batch):
    calls.append(int(state.step))

    def program_on_a_bad_device(state, batch):
      if len(calls) == 2:
        calls.append(None)
        leaf = np.array(state.params['head']['kernel'])
        leaf.view(np.uint32)[0, 0] ^= 1
        params = dict(state.params, head=dict(state.params['head'], kernel=leaf))
        return program(state.replace(params=params), batch)
      return program(state, batch)

    return run(program_on_a_bad_device, strategy, state, batch)

  monkeypatch.setattr(recompute, 'recompute', flipping)
  train.run(config(data_dir, **{'guard.recompute': 5}), tmp_path)
  found, = events(tmp_path)
  assert found['step'] == 10 and found['rolled_back_to'] == 8 and found['devices'] == [str(jax.devices()[0])]
  assert 'computed something wrong' in found['reason']
  assert [call for call in calls if call is not None] == [4, 9, 9, 14, 19]  # step 10 comes twice
  assert_same_end(config(data_dir), tmp_path, sound)


def test_parameters_that_are_not_finite_are_neither_evaluated_nor_loaded_nor_resumed(data_dir, sound, tmp_path,
                                                                                     monkeypatch):
  """As version 0.1 saved them."""
  shutil.copytree(sound, tmp_path / 'run')
  workdir, changed = tmp_path / 'run', config(data_dir)
  state, record = spikes.final(changed, sound)
  shutil.rmtree(workdir / 'checkpoints' / str(STEPS))
  state.params['head']['kernel'][0, 0] = np.nan
  checkpoints = Checkpoints(RunDir(workdir).checkpoints_path, CheckpointConfig(), Pace(64, 300))
  with monkeypatch.context() as patch:
    patch.setattr(digests, 'compute', lambda state: ({}, []))
    checkpoints.save(STEPS, state, record)
    checkpoints.close()
  message = f'checkpoints/{STEPS}: this checkpoint is damaged: numbers are not finite: params/head/kernel'
  with pytest.raises(UserError, match=message):
    evaluation.evaluate(workdir)
  with pytest.raises(UserError, match=f'step {STEPS}: this checkpoint is damaged: numbers are not finite'):
    load.read(workdir)
  process = tiny.command('evaluate', f'--workdir={workdir}')
  output, error = process.communicate()
  assert process.returncode == 1 and message in error and not output and 'Traceback' not in error
  train.run(changed, workdir)
  assert (workdir / 'checkpoints' / f'damaged-{STEPS}').is_dir()
  assert_same_end(changed, workdir, sound)


@pytest.mark.slow
def test_faults_of_all_kinds_are_recovered(data_dir, tmp_path):
  """See experiments/benchmarks/spikes.md for 100 of them."""
  ledger = spikes.try_all(data_dir, tmp_path, 6)
  assert ledger['noticed'] == 6 and ledger['identical']
  labels = [row for row in ledger['rows'] if row['kind'] == 'labels']
  assert all(row['rollbacks'] == 1 and 8 <= row['left_out'] <= 24 for row in labels)  # of 16 with other labels
  assert all(row['left_out'] == 0 for row in ledger['rows'] if row['kind'] != 'labels')
