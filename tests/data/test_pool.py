"""Threads and worker processes: the same batches, errors that arrive, and no process left behind."""
import itertools
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments.data_faults import workers_of
from tests.conftest import encode, fake_source
from tests.data.batches import assert_same, evaluate, take, train
from vit_jax.base.errors import MissingFileError
from vit_jax.data.loading.examples import ExampleMaker
from vit_jax.data.loading.loader import Loader
from vit_jax.data.loading.order import EvalOrder
from vit_jax.data.loading.pool import Pool
from vit_jax.data.sources import registry

ROOT = pathlib.Path(__file__).parent.parent.parent
LINUX = pytest.mark.skipif(not pathlib.Path('/proc/self/task').exists(), reason='needs /proc')


def make_in_worker(source, size=(6, 5), pool=None):
  """Return one batch of all examples of a source, made in a worker process."""
  loader = Loader(EvalOrder(len(source), batch_size=len(source)), ExampleMaker(source, size, 'resize'), pool or Pool(0, 1))
  return next(iter(loader))


@pytest.mark.parametrize('make', [train, evaluate])
def test_workers_and_threads_change_nothing(make, data_dir):
  for source in (fake_source(43), registry.open_source('tiny_shapes', 'train', data_dir)):
    expected = take(make(source, batch_size=40, threads=0), 3)
    assert_same(take(make(source, batch_size=40, threads=3), 3), expected)
    assert_same(take(make(source, batch_size=40, workers=2), 3), expected)


def test_a_run_may_resume_with_other_workers():
  source, batches, state = fake_source(11), [], {'next_index': 0}
  for options in (dict(threads=0), dict(workers=2), dict(threads=3)):
    iterator = iter(train(source, **options))
    iterator.set_state(state)
    batches += [next(iterator) for _ in range(2)]
    state = iterator.get_state()
  assert_same(batches, take(train(source, threads=0), 6))


def test_batches_do_not_share_memory():
  """A batch stays as it is, however many are fetched later."""
  batches = take(train(fake_source(11), workers=2), 8)
  assert_same(batches, take(train(fake_source(11), threads=0), 8))
  for one, other in itertools.combinations(batches, 2):
    assert not np.shares_memory(one['image'], other['image'])


@pytest.mark.parametrize('bad, message', [({'label': 4}, r'expected a label in 0\.\.3, got 4'),
                                          ({'image': b'broken'}, "b'broken' that cannot be decoded.*corrupt=skip")])
def test_errors_in_workers_name_the_record(bad, message):
  records = fake_source(10).read(range(10))
  records[7] |= bad
  with pytest.raises(ValueError, match=f"record 7 of dataset 'fake', split 'train': .*{message}"):
    take(train(fake_source(records=records), workers=2), 2)


@LINUX
def test_workers_hold_no_jax(data_dir):
  take(train(registry.open_source('tiny_shapes', 'train', data_dir), workers=2), 3)
  workers = workers_of(os.getpid())
  assert workers
  for worker in workers:
    maps = pathlib.Path(f'/proc/{worker}/maps').read_text()
    assert 'numpy' in maps and 'jaxlib' not in maps and 'libtpu' not in maps and 'cuda' not in maps


class Defective(list):
  def __getitem__(self, index):
    raise LookupError('no record 7')


class Missing(list):
  def __getitem__(self, index):
    raise MissingFileError('7.png: not found')


@pytest.mark.parametrize('records, error, message', [
    (Defective, RuntimeError, '^LookupError in a data worker: no record 7$'),
    (Missing, MissingFileError, '^7.png: not found$')])
def test_errors_in_a_worker_are_reported(records, error, message):
  with pytest.raises(error, match=message):
    make_in_worker(fake_source(records=records(fake_source(4).read(range(4)))))


@LINUX
def test_workers_end_with_a_parent_that_is_killed():
  code = ('import time; from tests.data.batches import take, train; from tests.conftest import fake_source\n'
          "take(train(fake_source(64), batch_size=64, workers=2), 2); print('made', flush=True); time.sleep(60)")
  parent = subprocess.Popen([sys.executable, '-c', code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
  assert parent.stdout.readline() == 'made\n'
  workers = workers_of(parent.pid)
  assert workers
  parent.kill()
  parent.wait()
  parent.stdout.close()
  deadline = time.monotonic() + 20
  while any(pathlib.Path(f'/proc/{worker}').exists() for worker in workers):
    assert time.monotonic() < deadline
    time.sleep(0.05)


def test_a_chunk_larger_than_the_shared_memory_is_split(monkeypatch):
  records = [{'image': encode(np.full((8, 8), value, np.uint8)), 'label': 0} for value in range(20)]
  monkeypatch.setattr('vit_jax.data.loading.worker_process._SHARED_BYTES', 4 * 64 * 3)  # four images
  batch = make_in_worker(fake_source(records=records), (8, 8))
  np.testing.assert_array_equal(batch['image'][:, 0, 0, 0], np.arange(20))


def test_batches_made_ahead_are_bounded_and_counted():
  started = []

  class Counting(list):
    def __getitem__(self, index):
      started.append(index)
      return super().__getitem__(index)

  batches = train(fake_source(records=Counting(fake_source(11).read(range(11)))), threads=2)
  iterator = iter(batches)
  next(iterator)
  time.sleep(0.3)
  assert len(started) <= (1 + batches.batches_ahead) * 8
  assert batches.bytes_ahead == (1 + batches.batches_ahead) * 8 * 6 * 5 * 3
