"""The true loop on real digits: trains, saves, resumes exactly, refuses, evaluates; on one device and on many."""
import csv
import dataclasses
import json
import os
import random
import shutil
import signal
import threading
import time
import types

import jax
import ml_collections
import numpy as np
import pytest

from tests import tiny
from vit_jax import train
from vit_jax.base.errors import FileError, UserError
from vit_jax.data.sources import exclude
from vit_jax.data.sources import registry as sources
from vit_jax.guards.signals import StopRequest
from vit_jax.run import build as build_lib
from vit_jax.run import evaluation, start
from vit_jax.run import loop as loop_lib
from vit_jax.run.build import build
from vit_jax.run.recovery import Recovery
from vit_jax.run.writer import Writer
from vit_jax.rundir.checkpoint import Checkpoints
from vit_jax.rundir.layout import RunDir
from vit_jax.rundir.record import RunRecord

KILLS = int(os.environ.get('VIT_JAX_TEST_KILLS', 2))


def final_state(config, workdir):
  """Return (step, state as NumPy arrays, record) of the latest checkpoint."""
  parts = build(config)
  checkpoints = Checkpoints(workdir / 'checkpoints', parts.config.checkpoint, read_only=True)
  at = start.restore(parts, checkpoints)
  return at.step, parts.strategy.fetch(at.state), at.record


def assert_identical(config, workdir, other):
  """Two runs ended alike: parameters, optimizer, average, examples seen, data position, bit for bit; and on the way."""
  (step, state, record), (other_step, other_state, other_record) = final_state(config, workdir), final_state(config, other)
  assert step == other_step and record == other_record
  for path, x in jax.tree_util.tree_leaves_with_path(state):
    np.testing.assert_array_equal(x, dict(jax.tree_util.tree_leaves_with_path(other_state))[path], err_msg=str(path))
  assert tiny.metrics(workdir) == tiny.metrics(other)


@pytest.fixture(scope='module')
def finished(data_dir, tmp_path_factory):
  """(config, workdir, last metrics) of an uninterrupted run."""
  config, workdir = tiny.config(data_dir), tmp_path_factory.mktemp('finished') / 'run'
  return config, workdir, train.run(config, workdir)


def test_a_run_leaves_what_it_promises(finished):
  config, workdir, last = finished
  assert [line[0] for line in tiny.metrics(workdir)] == list(range(1, 13))
  evaluations = tiny.metrics(workdir, ('test/accuracy', 'test_ema/accuracy', 'test/loss'))
  assert [line[0] for line in evaluations] == [6, 12]
  assert evaluations[-1][1:] == (last['test/accuracy'], last['test_ema/accuracy'], last['test/loss'])
  assert 0.0 <= last['test/accuracy'] <= 1.0
  assert list((workdir / 'tensorboard').glob('events*'))
  assert json.loads((workdir / 'config.json').read_text())['data']['batch_size'] == 64
  _, state, record = final_state(config, workdir)
  assert record.class_names == tuple(str(digit) for digit in range(10))
  assert record.config['normalization'] == dict(mean=0.5, std=0.5) and record.versions['jax'] == jax.__version__
  assert record.position == dict(next_index=12) and state.step == 12


def test_training_learns(data_dir, tmp_path):
  config = tiny.config(data_dir, **{
      'train.duration': '120 steps', 'train.eval_every': '120 steps', 'train.log_every': '50 steps',
      'optim.peak_lr': 1e-2, 'optim.warmup': '10 steps', 'data.train_split': 'train', 'data.train_transform': 'resize',
      'model.dropout': 0.0, 'model.attention_dropout': 0.0, 'model.pool': 'gap'})
  assert train.run(config, tmp_path)['test/accuracy'] > 0.6  # guessing gives 0.1


def test_the_same_run_twice_is_the_same(finished, tmp_path):
  config, workdir, _ = finished
  train.run(config, tmp_path / 'again')
  assert_identical(config, tmp_path / 'again', workdir)


def test_another_seed_is_another_run(finished, data_dir, tmp_path):
  train.run(tiny.config(data_dir, seed=1), tmp_path)
  assert tiny.metrics(tmp_path) != tiny.metrics(finished[1])


def test_going_on_after_an_exception_ends_like_the_uninterrupted_run(finished, tmp_path, monkeypatch):
  config, workdir, _ = finished
  calls = []

  def failing(parts, state):
    calls.append(state)
    raise RuntimeError('the power went') if len(calls) == 1 else StopIteration

  with monkeypatch.context() as patch, pytest.raises(RuntimeError):
    patch.setattr(loop_lib, 'evaluate', failing)
    train.run(config, tmp_path)
  assert [line[0] for line in tiny.metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]
  step, _, record = final_state(config, tmp_path)
  assert step == 6 and record.evaluation_due  # saved although its evaluation failed
  train.run(config, tmp_path)
  assert_identical(config, tmp_path, workdir)


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing(data_dir, tmp_path):
  """SIGKILL, wherever it strikes: start, compilation, a step, an evaluation, the middle of a save."""
  config = tiny.config(data_dir, **{'checkpoint.every': '10 steps', 'train.eval_every': '25 steps',
                                    'train.duration': f'{60 + 60 * KILLS} steps'})
  train.run(config, tmp_path / 'whole')
  arguments = f'--config={tiny.write(config, tmp_path)}', f'--workdir={tmp_path / "killed"}'
  rng, lived = random.Random(0), []
  for kill in range(KILLS):
    process = tiny.command('main', *arguments)
    if kill % 5 < 4:  # once it has saved once more, so that it gets somewhere; at once, or a little later
      before = saved(tmp_path / 'killed')
      while saved(tmp_path / 'killed') == before and process.poll() is None:
        time.sleep(0.01)
      time.sleep(rng.choice([0.0, rng.uniform(0.0, 1.0)]))
    else:  # before it gets anywhere
      time.sleep(rng.uniform(0.1, 3.0))
    process.kill()
    _, error = process.communicate()
    assert process.returncode == -9, f'it ended by itself: {error}'
    lived.append(saved(tmp_path / 'killed'))
  output, error = (process := tiny.command('main', *arguments)).communicate()
  assert process.returncode == 0, error
  assert 'resuming after step' in output and len(set(lived)) > 1
  assert_identical(config, tmp_path / 'killed', tmp_path / 'whole')


def saved(workdir):
  """The steps of the whole checkpoints."""
  return tuple(sorted(path.name for path in (workdir / 'checkpoints').glob('*') if path.name.isdigit()))


def test_a_finished_run_says_so_and_ends_well(finished, capsys):
  config, workdir, last = finished
  before = (workdir / 'metrics.jsonl').read_text()
  assert train.run(config, workdir) == last
  assert 'is finished: step 12' in capsys.readouterr().out
  assert (workdir / 'metrics.jsonl').read_text() == before


def test_a_workdir_of_another_config_is_refused_with_the_difference(finished, data_dir):
  _, workdir, _ = finished
  before = sorted(workdir.rglob('*'))
  other = tiny.config(data_dir, **{'optim.peak_lr': 0.5, 'train.duration': '13 steps'})
  with pytest.raises(UserError) as error:
    train.run(other, workdir)
  assert 'optim.peak_lr: 0.003 there, 0.5 here' in str(error.value)
  assert 'train.duration: "12 steps" there, "13 steps" here' in str(error.value)
  assert sorted(workdir.rglob('*')) == before


def test_evaluate_reproduces_the_last_evaluation_exactly(finished):
  _, workdir, last = finished
  step, values, recorded = evaluation.evaluate(workdir)
  assert step == 12 and values == last
  assert {name: recorded[name] for name in values} == values


def test_evaluate_command(finished, tmp_path):
  _, workdir, last = finished
  process = tiny.command('evaluate', f'--workdir={workdir}', f'--output={tmp_path / "tables"}')
  output, error = process.communicate()
  assert process.returncode == 0 and json.loads(output) == dict(step=12, **last)
  assert 'Equal to what the run recorded' in error and f'Tables are in {tmp_path / "tables"}' in error
  assert json.loads((tmp_path / 'tables' / 'metrics.json').read_text()) == dict(step=12, **last)
  for name in ('test', 'test_ema'):
    assert {'per_class.csv', 'confusion.csv'} <= {path.name for path in (tmp_path / 'tables' / name).iterdir()}
    rows = list(csv.reader((tmp_path / 'tables' / name / 'confusion.csv').read_text().splitlines()))[1:]
    assert sum(int(row[1 + i]) for i, row in enumerate(rows)) / 100 == pytest.approx(last[f'{name}/accuracy'])
  process = tiny.command('evaluate', f'--workdir={tmp_path}')
  assert 'not the directory of a run' in process.communicate()[1] and process.returncode == 1


def test_evaluate_on_devices_that_divide_neither_batch_nor_model(finished, tmp_path):
  _, workdir, last = finished
  shutil.copytree(workdir, tmp_path / 'run')
  config = json.loads((workdir / 'config.json').read_text())
  config['parallel'] = dict(strategy='mesh', data=-1, fsdp=2, tensor=1)  # 3 do not divide the width of 16 either
  config['train']['micro_batch'] = 16
  config['mix'] = dict(mixup=0.2, cutmix=0.0)
  (tmp_path / 'run' / 'config.json').write_text(json.dumps(config))
  output, error = tiny.command('evaluate', f'--workdir={tmp_path / "run"}', devices=3).communicate()
  assert json.loads(output or '{}') == pytest.approx(dict(step=12, **last), rel=2e-5), error


def test_epochs_and_examples_become_steps(data_dir):
  parts = build(tiny.config(data_dir, **{'train.duration': '10 epochs', 'train.eval_every': '640 examples'}))
  assert parts.num_steps == 47  # 300 · 10 / 64 = 46.9
  assert parts.pace.steps(parts.config.train.eval_every) == 10


@pytest.mark.parametrize('devices', [2, 8])
def test_many_devices_train_like_one(devices, finished, tmp_path):
  """Dropout, augmentation, average and evaluation are the same; sums differ by float32 rounding."""
  config, workdir, _ = finished
  process = tiny.command('main', f'--config={tiny.write(config, tmp_path)}', f'--workdir={tmp_path / "run"}',
                         devices=devices)
  output, error = process.communicate()
  assert process.returncode == 0, error
  assert f'devices     {devices} ×' in output and f'64 global, {64 // devices} per device' in output
  for names in (('train/loss', 'train/grad_norm'), ('test/loss', 'test_ema/loss'), ('test/accuracy',)):
    np.testing.assert_allclose(tiny.metrics(tmp_path / 'run', names), tiny.metrics(workdir, names), rtol=2e-5)
  (_, state, _), (_, one, _) = final_state(config, tmp_path / 'run'), final_state(config, workdir)
  assert state.seen == one.seen
  for params in (state.params, one.params):
    # Softmax does not see a key's bias: its true gradient is zero, and Adam makes steps of the rounding that is left.
    del params['encoder']['blocks']['attention']['key']['bias']
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), state.params, one.params)


def test_taken_up_on_another_number_of_devices(finished, tmp_path):
  config, workdir, _ = finished
  arguments = f'--config={tiny.write(config, tmp_path)}', f'--workdir={tmp_path / "run"}'
  process = tiny.command('main', *arguments, devices=2)
  while not (tmp_path / 'run' / 'checkpoints' / '4').exists() and process.poll() is None:
    time.sleep(0.02)
  process.kill()
  process.communicate()
  train.run(config, tmp_path / 'run')
  np.testing.assert_allclose(tiny.metrics(tmp_path / 'run'), tiny.metrics(workdir), rtol=2e-5)
  assert final_state(config, tmp_path / 'run')[1].seen == final_state(config, workdir)[1].seen


BAD = {
    'unknown key': ({'optim.peek_lr': 1}, '^optim.peek_lr: unknown config key; did you mean optim.peak_lr'),
    'unknown section': ({'optimizer': {}}, '^optimizer: unknown config key; did you mean optim'),
    'variant': ({'model.variant': 'Q/16'}, "model.variant: unknown 'Q/16'"),
    'optimizer': ({'optim.name': 'adamz'}, "optim.name: unknown 'adamz'; choose from .*adamw"),
    'optimizer option': ({'optim.options': {'b3': 1}}, r"adamw has no \['b3'\]; valid options are .*'b2'"),
    'schedule': ({'optim.schedule': 'cosin'}, "optim.schedule: unknown 'cosin'; choose from .*cosine"),
    'long warm-up': ({'optim.warmup': '99 steps'}, 'longer than the run'),
    'loss': ({'objective.loss': 'hinge'}, "objective.loss: unknown 'hinge'"),
    'strategy': ({'parallel': {'strategy': 'magic'}}, "parallel.strategy: unknown 'magic'"),
    'data set': ({'data.name': 'digitz'}, "dataset 'digitz': unknown.*digits"),
    'unprepared': ({'data.name': 'mnist'}, 'not prepared'),
    'threads': ({'data.threads': -1}, 'data.threads: must be at least 0'),
    'workers': ({'data.workers': -1}, 'data.workers: must be at least 0'),
    'workers and cache': ({'data.workers': 2, 'data.cache': True}, 'data.workers: data.cache keeps .*; set data.workers=0'),
    'repeats': ({'data.repeats': 0}, 'data.repeats: must be at least 1'),
    'uneven repeats': ({'data.repeats': 3}, 'data.batch_size: must be a multiple of data.repeats=3, got 64'),
    'split': ({'data.train_split': 'training'}, "split.*'training'.*train"),
    'evaluation split': ({'evaluators': {'x': {'kind': 'classification', 'split': 'dev'}}}, "split.*'dev'"),
    'evaluator': ({'evaluators': {'x': {'kind': 'guess'}}}, "evaluators.x.kind: unknown 'guess'"),
    'transform': ({'data.train_transform': 'spin'}, 'spin'),
    'patch': ({'model.patch_size': 9}, r'data.image_size: \(8, 8\) is smaller than a patch, \(9, 9\)'),
    'heads': ({'model.heads': 3}, 'model.heads: must divide the width 16, got 3'),
    'micro-batch': ({'data.batch_size': 64, 'train.micro_batch': 15},
                    'train.micro_batch: must divide the 64 images.* got 15. Try 16'),
    'duration': ({'train.duration': '3 fortnights'}, "train.duration: expected a duration such as.*'3 fortnights'"),
    'type': ({'data.batch_size': 'big'}, "data.batch_size: expected a whole number, got 'big'"),
    'platform': ({'platform': 'tpu'}, "platform: expected 'tpu', but jax finds"),
    'unknown platform': ({'platform': 'abacus'}, "platform: unknown 'abacus'; choose from"),
    'best metric': ({'checkpoint.keep_best': 1, 'checkpoint.best': 'test/acc'}, "'test/acc' is not measured; choose from .*'test/accuracy'"),
    'learning rate': ({'optim.peak_lr': float('nan')}, 'optim.peak_lr: must be at least 0, got nan'),
    'clipping': ({'optim.clip_norm': -1.0}, 'optim.clip_norm: must be positive'),
    'std': ({'normalization.std': 0.0}, 'normalization.std: must be positive'),
    'seed': ({'seed': -1}, 'seed: must be in'),
    'weights': ({'objective.class_weights': (1.0, 2.0)}, 'class_weights: expected 10 numbers'),
    'resize': ({'transfer.resize': 'cubic'}, "transfer.resize: unknown 'cubic'"),
    'empty init': ({'init': ''}, 'name them: --config.init='),
    'mask': ({'optim.decay_mask': 'kernels'}, 'matches no parameter'),
}


@pytest.mark.parametrize('changes, message', BAD.values(), ids=BAD)
def test_bad_input_is_an_error_before_anything_compiles(changes, message, data_dir, tmp_path, monkeypatch):
  monkeypatch.setattr(train, 'Loop', lambda *args: pytest.fail('reached the loop'))
  with pytest.raises(UserError, match='(?s)' + message):
    train.run(tiny.config(data_dir, **changes), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_an_unwritable_workdir(data_dir, tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(FileError, match='^workdir: cannot write .*Choose another --workdir'):
    train.run(tiny.config(data_dir), tmp_path / 'file' / 'run')


def test_a_bad_command_line_prints_one_line_and_fails(data_dir, tmp_path):
  recipe = tiny.write(tiny.config(data_dir), tmp_path)
  for arguments, message in [
      ((f'--config={recipe}', f'--workdir={tmp_path / "run"}', '--config.optim.peek_lr=1'), 'error: optim.peek_lr: unknown config key'),
      ((f'--config={recipe}', f'--workdir={tmp_path / "run"}', '--config.optimizer.name=sgd'), "error: config: there is no section 'optimizer'"),
      ((f'--config={recipe}', f'--workdir={tmp_path / "run"}', '--config.evaluators.new.kind=real', '--config.evaluators.new.split=test'),
       "error: evaluators: kind 'real' needs labels=PATH"),
      ((f'--config={recipe}',), 'error: --workdir: missing'),
      ((f'--config={tmp_path}/none.py', f'--workdir={tmp_path / "run"}'), 'none.py'),
  ]:
    process = tiny.command('main', *arguments)
    _, error = process.communicate()
    assert process.returncode == 1 and message in error
    assert 'Traceback' not in error


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_saves_first(number, data_dir, tmp_path):
  config = tiny.config(data_dir, **{'train.duration': '5_000 steps', 'checkpoint.every': '9_999 steps'})
  arguments = f'--config={tiny.write(config, tmp_path)}', f'--workdir={tmp_path / "run"}'
  process = tiny.command('main', *arguments)
  while not (tmp_path / 'run' / 'metrics.jsonl').exists() or len(tiny.metrics(tmp_path / 'run')) < 3:
    assert process.poll() is None
    time.sleep(0.01)
  process.send_signal(number)
  output, error = process.communicate()
  assert process.returncode == 128 + number and 'Traceback' not in error
  step = int(saved(tmp_path / 'run')[0])
  assert f'Stopped after step {step}, which is saved' in output and step == tiny.metrics(tmp_path / 'run')[-1][0]


def wait_for_compilation(process):
  """Until a run has said all that it says before its first step."""
  while 'Total' not in (line := process.stdout.readline()):
    assert line, process.communicate()
  time.sleep(1.0)


DEEP = {'model.depth': 48, 'model.unroll': True}  # compiling takes long beside starting


def test_asked_to_stop_while_compiling_it_ends_at_once(data_dir, tmp_path):
  arguments = f'--config={tiny.write(tiny.config(data_dir, **DEEP), tmp_path)}', f'--workdir={tmp_path / "run"}'
  process = tiny.command('main', *arguments)
  wait_for_compilation(process)
  process.send_signal(signal.SIGTERM)
  start = time.monotonic()
  output, error = process.communicate()
  assert process.returncode == 128 + signal.SIGTERM and 'Traceback' not in error
  assert 'Stopped before the first step was done' in output and 'First step took' not in output
  assert time.monotonic() - start < 2.0 and not saved(tmp_path / 'run')


def test_ctrl_c_while_compiling_ends_it_after_the_first_step(data_dir, tmp_path):
  config = tiny.config(data_dir, **{'model.depth': 12, 'model.unroll': True})
  process = tiny.command('main', f'--config={tiny.write(config, tmp_path)}', f'--workdir={tmp_path / "run"}')
  wait_for_compilation(process)
  process.send_signal(signal.SIGINT)
  output, error = process.communicate()
  assert process.returncode == 128 + signal.SIGINT and 'Traceback' not in error
  assert 'Stopped after step 1, which is saved' in output and saved(tmp_path / 'run')[0] == '1'


def test_sigterm_ends_it_though_nobody_reads(data_dir, tmp_path):
  arguments = f'--config={tiny.write(tiny.config(data_dir, **DEEP), tmp_path)}', f'--workdir={tmp_path / "run"}'
  process = tiny.command('main', *arguments)
  wait_for_compilation(process)
  process.stdout.close()
  process.send_signal(signal.SIGTERM)
  assert process.wait(timeout=3.0) == 128 + signal.SIGTERM
  process.stderr.close()


def test_signals_are_given_back():
  handlers = lambda: (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGHUP))
  before, threads = handlers(), threading.active_count()
  with StopRequest() as stop:
    assert handlers()[0] is not before[0] and handlers()[1] == stop._on_signal and not stop.should_stop()
    stop.arm()
    assert stop._on_signal in handlers()
    signal.raise_signal(signal.SIGTERM)
    assert stop.should_stop() and stop.signal == signal.SIGTERM
  assert handlers() == before and signal.set_wakeup_fd(-1) == -1
  while threading.active_count() > threads:  # the pipe is closed
    time.sleep(0.01)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_good_checkpoint(data_dir, tmp_path, monkeypatch):
  config = tiny.config(data_dir)
  poisoned = build_lib.make_train_step

  def make_train_step(*arguments, **options):
    step = poisoned(*arguments, **options)

    def broken(state, batch):
      state, metrics = step(state, batch)
      factor = jax.numpy.where(state.step > 5, jax.numpy.nan, 1.0)
      return state.replace(params=jax.tree.map(lambda x: x * factor, state.params)), metrics
    return broken

  monkeypatch.setattr(build_lib, 'make_train_step', make_train_step)
  with pytest.raises(UserError, match='^step 8: not saved, as numbers of the state are not finite.*step 4 is saved.*rolled back 3 times'):
    train.run(config, tmp_path)
  assert saved(tmp_path) == ('4',)


def test_a_run_that_failed_at_its_start_does_not_hold_the_workdir(data_dir, tmp_path, monkeypatch):
  with monkeypatch.context() as patch, pytest.raises(RuntimeError):
    patch.setattr(train, 'Loop', _fail)
    train.run(tiny.config(data_dir), tmp_path)
  train.run(tiny.config(data_dir, **{'optim.peak_lr': 0.5}), tmp_path)
  assert json.loads((tmp_path / 'config.json').read_text())['optim']['peak_lr'] == 0.5


def test_other_training_records_than_before_are_refused(data_dir, tmp_path, monkeypatch):
  """The position counts examples of the numbering that it was saved with."""
  path = tmp_path / 'list.txt'
  source = sources.open_source('digits', 'train[:300]', data_dir)
  write = lambda *numbers: exclude.write(str(path), {f'train/{n}': 'by hand' for n in numbers}, source.split_fingerprints, '', '')
  run = lambda: train.run(tiny.config(data_dir, **{'data.exclude': str(path)}), tmp_path / 'run')
  write(3, 5)
  with monkeypatch.context() as patch, pytest.raises(RuntimeError):
    patch.setattr(loop_lib, 'evaluate', _fail)  # at step 6, when step 4 is saved
    run()
  for numbers, changed in (((3,), 'there were 298, there are 299'), ((3, 6), 'there are still 298, but others')):
    write(*numbers)
    with pytest.raises(UserError, match=rf'records of digits train\[:300\] have changed since step 6: {changed}.*list.txt'):
      run()
  write(5, 3)
  run()
  write(3)
  assert run()['test/accuracy'] >= 0.0  # finished: no example is drawn any more
  assert evaluation.evaluate(tmp_path / 'run', 12)[0] == 12


def test_a_checkpoint_that_does_not_say_its_records_goes_on(finished):
  """As version 0.1.0 saved them."""
  config, workdir, _ = finished
  step, state, record = final_state(config, workdir)
  values = {key: value for key, value in record.to_json().items() if key not in ('examples', 'numbering', 'checksum')}
  old = RunRecord.from_json(values)
  assert (old.examples, old.fingerprint) == (None, None)
  checkpoints = types.SimpleNamespace(restore=lambda step, abstract: (state, old))
  assert start.restore(build(config), checkpoints, step).record == record


def _fail(*arguments):
  raise RuntimeError('at the start')


def test_a_damaged_checkpoint_is_set_aside_and_the_run_ends_like_the_uninterrupted_one(finished, tmp_path, caplog):
  config, workdir, _ = finished
  shutil.copytree(workdir, tmp_path / 'run')
  for path in (tmp_path / 'run' / 'checkpoints' / '12' / 'state').rglob('*'):
    if path.is_file():
      path.write_bytes(path.read_bytes()[:10])
  train.run(config, tmp_path / 'run')
  assert '12: this checkpoint is damaged' in caplog.text and (tmp_path / 'run' / 'checkpoints' / 'damaged-12').is_dir()
  for ours, theirs in zip(*(jax.tree.leaves(final_state(config, place)[1]) for place in (tmp_path / 'run', workdir)), strict=True):
    np.testing.assert_array_equal(ours, theirs)


def test_a_damaged_config_is_named(finished, tmp_path):
  config, workdir, _ = finished
  shutil.copytree(workdir, tmp_path / 'run')
  (tmp_path / 'run' / 'config.json').write_text('{"data":')
  with pytest.raises(UserError, match='config.json: damaged'):
    train.run(config, tmp_path / 'run')


def test_any_key_can_be_set_on_the_command_line(data_dir, tmp_path):
  """Also where the recipe leaves the whole section out."""
  values = {'checkpoint.keep': 3, 'objective.label_smoothing': 0.1, 'normalization.std': 0.25, 'transfer.reset_head': True,
            'optim.options.b1': 0.8, 'data.image_size': (8, 8), 'parallel.strategy': 'pmap', 'platform': 'cpu'}
  process = tiny.command('main', '--config=configs/digits.py', f'--workdir={tmp_path / "run"}',
                         *(f'--config.{key}={value}' for key, value in values.items()),
                         f'--config.data.data_dir={data_dir}', '--config.model.patch_size=4', '--config.model.width=24',
                         '--config.model.depth=1', '--config.train.duration=1 steps', '--config.optim.warmup=0 steps')
  _, error = process.communicate()
  assert process.returncode == 0, error
  config = json.loads((tmp_path / 'run' / 'config.json').read_text())
  for key, value in values.items():
    found = config
    for part in key.split('.'):
      found = found[part]
    assert (tuple(found) if isinstance(found, list) else found) == value


def test_overrides_reach_the_run(data_dir, tmp_path):
  recipe = tiny.write(tiny.config(data_dir), tmp_path)
  process = tiny.command('main', f'--config={recipe}', f'--workdir={tmp_path / "run"}', '--config.optim.peak_lr=3e-4',
                         '--config.train.duration=5 steps', '--config.optim.end_lr=1e-5')
  _, error = process.communicate()
  assert process.returncode == 0, error
  config = ml_collections.ConfigDict(json.loads((tmp_path / 'run' / 'config.json').read_text()))
  assert (config.optim.peak_lr, config.optim.end_lr, config.train.duration) == (3e-4, 1e-5, '5 steps')


@pytest.mark.slow
def test_the_loop_can_be_entered_at_any_checkpoint(data_dir, tmp_path):
  """Also a second time in one process, with the same parts: the rest of the run repeats bit for bit."""
  config, workdir = tiny.config(data_dir, **{'checkpoint.keep': 3}), tmp_path / 'whole'
  train.run(config, workdir)
  parts = build(config)
  expected = final_state(config, workdir)
  for number, step in enumerate((8, 4)):
    saved = Checkpoints(workdir / 'checkpoints', parts.config.checkpoint, read_only=True)
    assert step in saved.steps()
    at = start.restore(parts, saved, step)
    saved.close()
    folder = tmp_path / str(number)
    checkpoints = Checkpoints(folder / 'checkpoints', parts.config.checkpoint, parts.pace)
    writer = Writer(RunDir(folder), parts.num_steps, step)
    recovery = Recovery(parts, checkpoints, writer, RunDir(folder), lambda _, at=at: at)
    with StopRequest() as stop:
      end = loop_lib.Loop(parts, checkpoints, writer, stop, recovery).run(at)
    writer.close()
    checkpoints.close()
    assert end.step == expected[0]
    of_both = dict(digests={}, step=None)  # those of the last save
    assert dataclasses.replace(end.record, **of_both) == dataclasses.replace(expected[2], **of_both)
    for ours, theirs in zip(*map(jax.tree.leaves, (parts.strategy.fetch(end.state), expected[1])), strict=True):
      np.testing.assert_array_equal(ours, theirs)
