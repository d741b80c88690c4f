"""True runs on failing disks: they go on, stop, or resume, and end like the uninterrupted run."""
import contextlib
import os

import pytest

from tests import tiny
from tests.rundir.test_failing_disk import small_disk
from tests.test_end_to_end import assert_identical, final_state
from vit_jax import train
from vit_jax.base.errors import RetryError
from vit_jax.run import loop as loop_lib
from vit_jax.rundir import save_failures
from vit_jax.rundir.checkpoint import Checkpoints

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def finished(data_dir, tmp_path_factory):
  """(config, workdir) of an uninterrupted run."""
  config, workdir = tiny.config(data_dir), tmp_path_factory.mktemp('finished') / 'run'
  train.run(config, workdir)
  return config, workdir


@pytest.mark.skipif(os.getuid() != 0, reason='needs root, to mount a small disk')
@pytest.mark.parametrize('space_returns', [True, False])
def test_a_disk_that_fills_up(finished, tmp_path, monkeypatch, capsys, space_returns):
  config, whole = finished
  monkeypatch.setattr(save_failures, '_FIRST_DELAY', 0.01)
  if not space_returns:
    monkeypatch.setattr(save_failures, 'GIVE_UP', 0.2)
  save, check = Checkpoints.save, Checkpoints.check
  with small_disk(tmp_path / 'disk', '4m') as disk:
    filler, warnings = disk / 'filler', []

    def fill_then_save(self, step, *arguments):
      if step == 8 and not filler.exists():
        with contextlib.suppress(OSError), filler.open('wb', buffering=0) as file:
          while file.write(bytes(1 << 10)):
            pass
      return save(self, step, *arguments)

    def note(self):
      warning = check(self)
      if warning:
        warnings.append(warning)
        if space_returns:
          filler.unlink()
      return warning

    with monkeypatch.context() as patch:
      patch.setattr(Checkpoints, 'save', fill_then_save)
      patch.setattr(Checkpoints, 'check', note)
      if space_returns:
        train.run(config, disk / 'run')
      else:
        with pytest.raises(RetryError, match='No space left on device .*; step 4 is saved. .*same command again'):
          train.run(config, disk / 'run')
        assert [path.name for path in (disk / 'run' / 'checkpoints').iterdir()] == ['4']
        filler.unlink()
    assert warnings and 'step 8 is not saved' in warnings[0] and warnings[0] in capsys.readouterr().out
    train.run(config, disk / 'run')
    assert_identical(config, disk / 'run', whole)


def test_an_error_of_the_input_saves_the_step_before_it(finished, tmp_path, monkeypatch, capsys):
  config, whole = finished
  fetch, calls = loop_lib.Recovery.fetch, []

  def failing(self, batches, step):
    calls.append(step)
    if step == 8:
      raise OSError(5, 'Input/output error', 'image.png')
    return fetch(self, batches, step)

  with monkeypatch.context() as patch, pytest.raises(OSError, match='image.png'):
    patch.setattr(loop_lib.Recovery, 'fetch', failing)
    train.run(config, tmp_path)
  assert final_state(config, tmp_path)[0] == 7 and 'Step 7 is saved before an error ends the run' in capsys.readouterr().out
  train.run(config, tmp_path)
  assert_identical(config, tmp_path, whole)
