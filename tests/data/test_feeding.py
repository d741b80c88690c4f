"""Threads and worker processes: the same batches, errors that arrive, and no process left behind."""
import itertools
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.conftest import encode, fake_source
from tests.data.test_pipeline import assert_same, evaluate, take, train
from vit_jax.data.loading import feeding
from vit_jax.data.loading.config import DataConfig
from vit_jax.data.sources import registry as sources
from vit_jax.data.loading.dataset import Dataset
from vit_jax.data.loading.examples import Examples

ROOT = pathlib.Path(__file__).parent.parent.parent
LINUX = pytest.mark.skipif(not pathlib.Path('/proc/self/task').exists(), reason='needs /proc')


def workers_of(process):
  """Process ids of the workers that a process has."""
  children = [int(child) for task in pathlib.Path(f'/proc/{process}/task').glob('*/children')
              for child in task.read_text().split()]
  return [child for child in children if b'vit_jax.data.loading.worker' in pathlib.Path(f'/proc/{child}/cmdline').read_bytes()]


@pytest.mark.parametrize('make', [train, evaluate])
def test_workers_and_threads_change_nothing(make, data_dir):
  for source in (fake_source(43), sources.open_source('tiny_shapes', 'train', data_dir)):
    expected = take(make(source, batch_size=40, threads=0), 3)
    assert_same(take(make(source, batch_size=40, threads=3), 3), expected)
    assert_same(take(make(source, batch_size=40, workers=2), 3), expected)


def test_a_run_may_go_on_with_other_workers():
  source, batches, state = fake_source(11), [], {'next_index': 0}
  for options in (dict(threads=0), dict(workers=2), dict(threads=3)):
    iterator = iter(train(source, **options))
    iterator.set_state(state)
    batches += [next(iterator) for _ in range(2)]
    state = iterator.get_state()
  assert_same(batches, take(train(source, threads=0), 6))


def test_batches_do_not_share_memory():
  """What was drawn stays as it is, however much is drawn later."""
  batches = take(train(fake_source(11), workers=2), 8)
  assert_same(batches, take(train(fake_source(11), threads=0), 8))
  for one, other in itertools.combinations(batches, 2):
    assert not np.shares_memory(one['image'], other['image'])


@pytest.mark.parametrize('bad, message', [({'label': 4}, r'expected a label in 0\.\.3, got 4'),
                                          ({'image': b'broken'}, "b'broken' that cannot be decoded.*corrupt=skip")])
def test_errors_in_workers_name_the_record(bad, message):
  records = fake_source(10).read(range(10))
  records[7] |= bad
  with pytest.raises(ValueError, match=f"Record 7 of data set 'fake', split 'train': .*{message}"):
    take(train(fake_source(records=records), workers=2), 2)


@LINUX
def test_workers_hold_no_jax(data_dir):
  take(train(sources.open_source('tiny_shapes', 'train', data_dir), workers=2), 3)
  workers = workers_of(os.getpid())
  assert workers
  for worker in workers:
    maps = pathlib.Path(f'/proc/{worker}/maps').read_text()
    assert 'numpy' in maps and 'jaxlib' not in maps and 'libtpu' not in maps and 'cuda' not in maps


@LINUX
def test_a_worker_that_was_killed_is_an_error():
  before = set(workers_of(os.getpid()))
  pool, job = feeding.Pool(0, 1), feeding.Job(Examples(fake_source(4), (6, 5), 'resize', False))
  ids, keys = np.arange(4), np.arange(4, dtype=np.uint64)
  pool.start(job, ids, keys)()
  worker, = set(workers_of(os.getpid())) - before
  os.kill(worker, signal.SIGKILL)
  with pytest.raises(OSError, match='worker ended with exit code -9: killed.*data.workers'):
    pool.start(job, ids, keys)()


class EndsItsProcess(list):
  """Records that nothing can be read of: the process that asks ends."""

  def __getitem__(self, index):
    os._exit(3)


class Unforeseen(list):
  def __getitem__(self, index):
    raise MemoryError('no room for record 7')


@pytest.mark.parametrize('records, error, message', [
    (EndsItsProcess, OSError, 'worker ended with exit code 3: see what it wrote to standard error$'),
    (Unforeseen, RuntimeError, '^MemoryError in a data worker: no room for record 7$')])
def test_other_ends_of_a_worker_say_what_they_are(records, error, message):
  job = feeding.Job(Examples(fake_source(records=records(fake_source(4).read(range(4)))), (6, 5), 'resize', False))
  with pytest.raises(error, match=message):
    feeding.Pool(0, 1).start(job, np.arange(4), np.arange(4, dtype=np.uint64))()


def test_arrays_are_not_copied_to_workers(tmp_path):
  np.savez(tmp_path / 'a.npz', images=np.zeros((4, 8, 8), np.uint8), labels=np.arange(4))
  with pytest.raises(ValueError, match='npz: arrays are in the memory of this process.*data.threads'):
    DataConfig(name=f'npz:{tmp_path}/a.npz', train_split='all', batch_size=4, image_size=(8, 8), workers=2)


@LINUX
def test_workers_end_with_a_parent_that_is_killed():
  code = ('import time; from tests.data.test_pipeline import take, train; from tests.conftest import fake_source\n'
          "take(train(fake_source(64), batch_size=64, workers=2), 2); print('drawn', flush=True); time.sleep(60)")
  parent = subprocess.Popen([sys.executable, '-c', code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
  assert parent.stdout.readline() == 'drawn\n'
  workers = workers_of(parent.pid)
  assert workers
  parent.kill()
  parent.wait()
  parent.stdout.close()
  deadline = time.monotonic() + 20
  while any(pathlib.Path(f'/proc/{worker}').exists() for worker in workers):
    assert time.monotonic() < deadline
    time.sleep(0.05)


def test_a_piece_larger_than_the_shared_memory_goes_in_parts(monkeypatch):
  records = [{'image': encode(np.full((8, 8), value, np.uint8)), 'label': 0} for value in range(20)]
  monkeypatch.setattr('vit_jax.data.loading.worker._SIZE', 4 * 64 * 3)  # four images; the other side maps it all the same
  job = feeding.Job(Examples(fake_source(records=records), (8, 8), 'resize', False))
  images, _ = feeding.Pool(0, 1).start(job, np.arange(20), np.zeros(20, np.uint64))()
  np.testing.assert_array_equal(images[:, 0, 0, 0], np.arange(20))


def test_what_is_made_ahead_is_bounded_and_told(data_dir):
  started = []

  class Counting(list):
    def __getitem__(self, index):
      started.append(index)
      return super().__getitem__(index)

  batches = train(fake_source(records=Counting(fake_source(11).read(range(11)))), threads=2)
  iterator = iter(batches)
  next(iterator)
  time.sleep(0.3)
  assert len(started) <= (1 + batches.ahead) * 8
  assert batches.bytes_ahead == (1 + batches.ahead) * 8 * 6 * 5 * 3


@pytest.mark.parametrize('options, expected', [
    (dict(threads=1), r'1 thread, 2 batches ahead \(0\.0 MiB\)'), (dict(workers=2), r'2 worker processes, 2 batches ahead .*'),
    (dict(threads=0), r'0 threads, 0 batches ahead \(0\.0 MiB\)'), (dict(threads=9), r'9 threads, 4 batches ahead .*')])
def test_how_batches_are_made_is_told(options, expected, data_dir):
  data = Dataset(DataConfig(name='digits', batch_size=48, image_size=(16, 16), data_dir=data_dir, **options), seed=0)
  assert re.fullmatch(expected, data.describe_loading())


def test_copies_lengthen_the_epoch(data_dir):
  data = Dataset(DataConfig(name='digits', batch_size=48, image_size=(8, 8), data_dir=data_dir, repeats=3), seed=0)
  assert data.examples_per_epoch == 3 * 1497
  batch = next(iter(data.train_batches()))
  assert len(np.unique(batch['id'])) == 16
