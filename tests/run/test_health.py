"""The health panel in a run: it is logged when it is due, and changes nothing else; it resumes like the rest."""
import json

import jax
import numpy as np
import pytest

from tests import tiny
from tests.test_end_to_end import assert_identical, final_state
from vit_jax import train
from vit_jax.run import loop as loop_lib
from vit_jax.run.build import build

TIMES = ('train/images_per_second', 'train/input_wait')


def config(data_dir, **changes):
  return tiny.config(data_dir, **{'train.duration': '7 steps', 'train.eval_every': '2 steps', 'checkpoint.every': '3 steps',
                                  'train.ema_warmup': True, **changes})


def lines(workdir):
  """Return what a run logged, {(step, name): value}, without times."""
  found = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
  return {(line['step'], name): value for line in found for name, value in line.items() if name not in TIMES}


@pytest.fixture(scope='module')
def watched(data_dir, tmp_path_factory):
  """(config, workdir) of a run with a panel at every second evaluation."""
  recipe, workdir = config(data_dir, **{'health.every': 2}), tmp_path_factory.mktemp('watched')
  train.run(recipe, workdir)
  return recipe, workdir


def test_a_panel_is_logged_at_every_nth_evaluation_and_at_the_last_step(watched):
  values = lines(watched[1])
  assert sorted({step for step, name in values if name.startswith('health/')}) == [4, 7]
  for step in (4, 7):
    assert values[step, 'health/grad_norm/all'] == pytest.approx(values[step, 'train/grad_norm'], rel=1e-6)
    assert 0 < values[step, 'health/entropy/block_02'] <= np.log(5) + 1e-6
    assert values[step, 'health/logits/rms'] <= values[step, 'health/logits/max']


def test_a_panel_changes_nothing_else(watched, data_dir, tmp_path):
  recipe, workdir = watched
  plain = config(data_dir)
  train.run(plain, tmp_path)
  assert lines(tmp_path) == {key: value for key, value in lines(workdir).items() if not key[1].startswith('health/')}
  state, other = (final_state(*run)[1] for run in ((plain, tmp_path), (recipe, workdir)))
  jax.tree.map(np.testing.assert_array_equal, state, other)


def test_the_training_program_is_the_same_with_a_panel(watched, data_dir):
  def program(recipe):
    parts = build(recipe)
    batch = parts.strategy.put(next(iter(parts.data.train_batches())))
    abstract = parts.strategy.abstract(jax.eval_shape(parts.create))
    return loop_lib.Loop(parts, None, None, None, None)._step_fn.lower(abstract, batch).as_text()

  assert program(watched[0]) == program(config(data_dir))


@pytest.mark.slow
def test_a_run_that_resumes_logs_the_same_panels(watched, tmp_path, monkeypatch):
  recipe, workdir = watched

  def failing(parts, state):
    if int(state.step) >= 4:
      raise RuntimeError('the power went')
    return evaluate(parts, state)

  with monkeypatch.context() as patch, pytest.raises(RuntimeError):
    evaluate = loop_lib.evaluate
    patch.setattr(loop_lib, 'evaluate', failing)
    train.run(recipe, tmp_path)
  assert not any(name.startswith('health/') for _, name in lines(tmp_path))  # step 3 is saved
  train.run(recipe, tmp_path)
  assert lines(tmp_path) == lines(workdir)
  assert_identical(recipe, tmp_path, workdir)


def test_the_panel_may_change_when_a_run_resumes(watched, data_dir):
  assert train.run(config(data_dir), watched[1])['test/loss'] > 0  # finished, and not refused
