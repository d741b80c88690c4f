"""Worker processes that are killed, stopped, hang or crash: the same batches, or an error that names the examples."""
import os
import pathlib
import random
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from experiments.data_faults import signal_worker, workers_of
from tests.conftest import encode, fake_source
from tests.data.batches import assert_same, take
from tests.data.test_pool import LINUX, ROOT, make_in_worker
from vit_jax.base.errors import RetryError, UserError
from vit_jax.data.loading.examples import ExampleMaker
from vit_jax.data.loading.loader import Loader
from vit_jax.data.loading.order import EvalOrder, TrainOrder
from vit_jax.data.loading.pool import Pool
from vit_jax.data.sources.folder import open_folder

pytestmark = LINUX
WORKER = 'vit_jax.data.loading.worker_process'
KILLS = int(os.environ.get('VIT_JAX_TEST_WORKER_KILLS', 6))


class NewWorkers:
  """A pool, and the process ids of its workers."""

  def __init__(self, number):
    self._before, self.pool = set(workers_of(os.getpid())), Pool(0, number)

  def __call__(self):
    return sorted(set(workers_of(os.getpid())) - self._before)


def random_source(count=40, size=96):
  """Images whose decoding takes a while, and that all differ."""
  rng = np.random.default_rng(0)
  records = [{'image': encode(rng.integers(0, 256, (size, size), np.uint8)), 'label': i % 4}
             for i in range(count)]
  return fake_source(records=records)


def batches_of(source, pool):
  return Loader(TrainOrder(len(source), batch_size=32, seed=3), ExampleMaker(source, (8, 8), 'inception_crop|flip'), pool)


def lost(caplog):
  return [record.getMessage() for record in caplog.records if 'was lost' in record.getMessage()]


def test_workers_killed_at_random_moments_change_nothing(caplog):
  source, rng, kills = random_source(), random.Random(1), 0
  expected = take(batches_of(source, Pool(0, 0)), KILLS * 4)
  iterator = iter(batches_of(source, Pool(0, 2)))
  found = []
  while len(found) < len(expected):
    found.append(next(iterator))
    if kills < KILLS and len(found) % 2:
      time.sleep(rng.uniform(0.0, 0.02))
      kills += signal_worker(os.getpid(), signal.SIGKILL, rng) is not None
  assert_same(found, expected)
  assert kills == KILLS
  assert 1 <= len(lost(caplog)) <= kills + 2
  assert all('(killed, as happens if memory runs out)' in message for message in lost(caplog))


def test_a_stopped_worker_is_replaced_within_seconds(caplog):
  source, workers = random_source(), NewWorkers(1)
  iterator = iter(batches_of(source, workers.pool))
  found = [next(iterator)]
  worker, = workers()
  os.kill(worker, signal.SIGSTOP)
  start = time.monotonic()
  found += [next(iterator) for _ in range(8)]
  assert_same(found, take(batches_of(source, Pool(0, 0)), 9))
  assert lost(caplog) and 'stopped by a signal for 5 s' in lost(caplog)[0]
  assert 5.0 <= time.monotonic() - start < 60.0
  assert worker not in workers()


def image_folder(path, count=6):
  folder = path / 'train' / 'ants'
  folder.mkdir(parents=True)
  for i in range(count):
    (folder / f'{i}.png').write_bytes(encode(np.full((8, 8), 10 * i, np.uint8)))
  return path


def test_a_read_that_hangs_is_made_again(tmp_path, monkeypatch, caplog):
  """Opening a named pipe waits for its other end, as a dead file server makes a process wait."""
  monkeypatch.setattr(f'{WORKER}._SILENT_SECONDS', 2)
  source = open_folder(os.fspath(image_folder(tmp_path / 'images')), 'train')
  expected = make_in_worker(source)
  path = tmp_path / 'images/train/ants/3.png'
  content = path.read_bytes()
  path.unlink()
  os.mkfifo(path)

  def mend():
    while not lost(caplog):
      time.sleep(0.05)
    path.unlink()
    path.write_bytes(content)

  thread = threading.Thread(target=mend)
  thread.start()
  assert_same([make_in_worker(source)], [expected])
  thread.join()
  assert 'without progress for 2 s' in lost(caplog)[0]


@pytest.mark.slow
def test_a_read_that_hangs_every_time_is_an_error_that_names_the_examples(tmp_path, monkeypatch, caplog):
  monkeypatch.setattr(f'{WORKER}._SILENT_SECONDS', 2)
  source = open_folder(os.fspath(image_folder(tmp_path / 'images')), 'train')
  (tmp_path / 'images/train/ants/3.png').unlink()
  os.mkfifo(tmp_path / 'images/train/ants/3.png')
  with pytest.raises(RetryError, match='data.workers: 3 worker processes in a row were lost at the same examples, the '
                     r'last one without progress for \d+ s, at record \d of dataset.*train/ants/3.png. Look at'):
    make_in_worker(source)
  assert len(lost(caplog)) == 2


class EndsItsProcess(list):
  """Records that end the process that reads them."""

  def __getitem__(self, index):
    os._exit(3)


def test_a_worker_that_ends_at_the_same_examples_is_an_error_that_names_them():
  source = fake_source(records=EndsItsProcess(fake_source(4).read(range(4))))
  with pytest.raises(UserError, match='data.workers: 3 worker processes in a row.*ended with exit code 3, at record 0 '
                     "of dataset 'fake', split 'train'. See its messages on standard error") as caught:
    make_in_worker(source)
  assert not isinstance(caught.value, RetryError)


class CrashingMaker(ExampleMaker):
  """As if a decoder crashed."""

  def _open(self, record):
    if record['image'] == b'crash':
      os.kill(os.getpid(), signal.SIGSEGV)
    return np.zeros((4, 4, 3), np.uint8), record['label']


def test_a_decoder_that_crashes_is_an_error_that_names_the_image():
  records = fake_source(5).read(range(5))
  records[3]['image'] = b'crash'
  source = fake_source(records=records)
  batches = Loader(EvalOrder(5, batch_size=5), CrashingMaker(source, (4, 4), 'resize'), Pool(0, 1))
  with pytest.raises(UserError, match="the last one ended by SIGSEGV, at record 3 of dataset 'fake', split 'train'. "
                     '.*data.exclude'):
    next(iter(batches))


HANGS = '''
import os, sys, time
from tests.data.test_worker_faults import batches_of
from vit_jax.data.loading.pool import Pool
from vit_jax.data.sources.folder import open_folder
iterator = iter(batches_of(open_folder(sys.argv[1], 'train'), Pool(*map(int, sys.argv[2:]))))
iterator._started.append(iterator._start(0))
time.sleep(3)
print('done', flush=True)
'''


@pytest.mark.slow
@pytest.mark.parametrize('threads, workers', [(1, 0), (0, 1)])
def test_a_read_that_hangs_does_not_keep_the_process_from_ending(tmp_path, threads, workers):
  folder = image_folder(tmp_path / 'images', 1)
  (folder / 'train/ants/0.png').unlink()
  os.mkfifo(folder / 'train/ants/0.png')
  process = subprocess.run([sys.executable, '-c', HANGS, str(folder), str(threads), str(workers)], cwd=ROOT, text=True,
                           stdout=subprocess.PIPE, timeout=90)
  assert process.returncode == 0 and process.stdout == 'done\n'


def test_signals_to_the_process_group_leave_the_workers_alone():
  """A scheduler sends SIGTERM to all processes of a job; the run saves with its workers' help, and then ends them."""
  workers = NewWorkers(1)
  batches = batches_of(random_source(), workers.pool)
  take(batches, 2)
  worker, = workers()
  for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    os.kill(worker, number)
  take(batches, 2)
  assert workers() == [worker] and pathlib.Path(f'/proc/{worker}').exists()
