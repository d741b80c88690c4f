"""Sources that fail while a run reads them: passing errors are tried again, others name the record and its file."""
import os
import pathlib
import random
import re
import subprocess
import sys

import numpy as np
import pytest

from experiments.data_faults import damaged
from tests.conftest import encode, fake_source
from tests.data.batches import assert_same, take, train
from tests.data.test_pool import ROOT
from vit_jax.base.errors import FileError, RetryError, UserError
from vit_jax.data.loading import corrupt
from vit_jax.data.sources import registry
from vit_jax.data.sources.folder import open_folder

MAKERS = pytest.mark.parametrize('maker', [dict(threads=2), dict(workers=1)], ids=['threads', 'workers'])


@pytest.fixture
def images(tmp_path):
  """Return a folder of 12 images of 2 classes."""
  rng = np.random.default_rng(0)
  for i in range(12):
    path = tmp_path / 'images' / 'train' / ('ants', 'bees')[i % 2] / f'{i}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(rng.integers(0, 256, (8, 8, 3), np.uint8)))
  return tmp_path / 'images'


@pytest.fixture
def dataset(data_dir, tmp_path):
  """Return a folder with a copy of a TFDS dataset, and its files of the split train."""
  subprocess.run(['cp', '-r', f'{data_dir}/tiny_shapes', str(tmp_path)], check=True)
  return tmp_path, sorted(tmp_path.glob('tiny_shapes/*/*train*'))


BATCHES = '''
import hashlib, sys
from tests.data.batches import take, train
from vit_jax.base.machine import retry
from vit_jax.data.sources import registry
name, data_dir, threads, workers, delays = sys.argv[1:]
if delays:
  retry.DELAYS = tuple(map(float, delays.split()))
batches = train(registry.open_source(name, 'train', data_dir or None), threads=int(threads), workers=int(workers))
try:
  for batch in take(batches, 3):
    print(hashlib.sha256(batch['image'].tobytes()).hexdigest())
except ValueError as error:
  print(type(error).__name__, error)
'''


def batches_with_faults(path, fault, name, data_dir='', threads=1, workers=0, delays=''):
  """Return (stdout, stderr, faults injected) of a process that makes three batches while system calls fail, by strace.

  Args:
    path: file that the system calls are about.
    fault: of strace, such as 'read:error=EIO:when=1..2'; '' injects none.
    name, data_dir, threads, workers: of the source and its loader.
    delays: of the retries, in seconds.
  """
  log = pathlib.Path(path).parent / 'strace.log'
  command = [sys.executable, '-c', BATCHES, name, str(data_dir), str(threads), str(workers), delays]
  if fault:
    try:
      subprocess.run(['strace', '-o', os.devnull, 'true'], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
      pytest.skip('needs strace, and the right to trace')
    command = ['strace', '-f', '-o', log, '-P', path, '-e', f'trace={fault.partition(":")[0]}', '-e', f'inject={fault}',
               *command]
  done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
  count = log.read_text(errors='replace').count('(INJECTED)') if log.exists() else 0
  log.unlink(missing_ok=True)
  return done.stdout, done.stderr, count


@pytest.mark.parametrize('threads, workers', [(1, 0), pytest.param(0, 1, marks=pytest.mark.slow)])
def test_a_file_that_fails_twice_is_read_at_the_third_try(images, threads, workers):
  path, name = images / 'train/ants/4.png', f'folder:{images}'
  expected, _, _ = batches_with_faults(path, '', name)
  found, said, faults = batches_with_faults(path, 'openat:error=ESTALE:when=1..2', name, threads=threads, workers=workers)
  assert found == expected and faults == 2
  warnings = re.findall(r"reading record \d+ of dataset 'folder:.*', split 'train', file .*/train/ants/4.png: \[Errno 116\] "
                        r'Stale file handle.*; trying again in \d\.\d s \(try \d of 7\)', said)
  assert len(warnings) == 2


def test_a_folder_that_cannot_be_listed_at_first(images):
  name = f'folder:{images}'
  expected, _, _ = batches_with_faults(images, '', name)
  found, said, faults = batches_with_faults(images / 'train/ants', 'getdents64:error=EIO:when=1..2', name)
  assert found == expected and faults == 2
  assert said.count('opening folder:') == 2 and 'Input/output error' in said


def test_a_file_that_fails_for_long_is_an_error_that_is_worth_a_restart(images):
  path = images / 'train/ants/4.png'
  found, said, faults = batches_with_faults(path, 'openat:error=EIO:when=1+', f'folder:{images}', delays='0.1 0.1')
  assert re.search(r'RetryError reading record \d+ of .*ants/4.png: \[Errno 5\] Input/output error.*tried 3 times in \d s\. '
                   'Start the same command again', found)
  assert said.count('trying again') == 2 * faults // 3


@pytest.mark.slow
def test_an_array_record_file_that_fails_now_and_then(dataset):
  data_dir, files = dataset
  name = 'tiny_shapes'
  expected, _, _ = batches_with_faults(files[0], '', name, data_dir)
  injected = 0
  for when in ('4..5', '8'):
    found, said, faults = batches_with_faults(files[0], f'pread64:error=EIO:when={when}', name, data_dir)
    assert found == expected
    injected += faults
    assert bool(faults) == ('Input/output error' in said + found)
  assert injected


@MAKERS
def test_damage_to_an_array_record_file_names_the_file_and_the_record(dataset, maker):
  data_dir, files = dataset
  source = registry.open_source('tiny_shapes', 'train', os.fspath(data_dir))
  expected = take(train(source, **maker), 2)
  content = files[0].read_bytes()
  start = content.index(b'PNG') + 40
  files[0].write_bytes(content[:start] + bytes(20) + content[start + 20:])
  flipped = registry.open_source('tiny_shapes', 'train', os.fspath(data_dir))
  with pytest.raises(FileError, match=f'{files[0]}: cannot read record 0 of this file: Corrupted.*Copy the file again'):
    take(train(flipped, **maker), 2)
  files[0].write_bytes(content)
  assert_same(take(train(flipped, **maker), 2), expected)  # the same source: its handles are opened again


@MAKERS
@pytest.mark.parametrize('fault, error, message', [
    ('hide', FileError, 'cannot read the image: No such file'),
    ('truncate', UserError, r'record \d+ of .*cannot be decoded.*data.exclude'),
    ('empty', UserError, r'record \d+ of .*got 0 bytes')])
def test_an_image_that_is_damaged_mid_run(images, maker, fault, error, message):
  """The error names it, and after it is mended the same loader goes on with the same batches."""
  source = open_folder(os.fspath(images), 'train')
  expected = take(train(source, **maker), 8)
  iterator = iter(train(source, **maker))
  found = [next(iterator)]
  path = images / 'train/ants/4.png'
  with damaged(path, fault, random.Random(0)), pytest.raises(error, match=message) as caught:
    while True:
      found.append(next(iterator))
  assert os.fspath(path) in str(caught.value) and not isinstance(caught.value, RetryError)
  state = iterator.get_state()
  assert state == {'next_index': len(found)}
  iterator = iter(train(source, **maker))
  iterator.set_state(state)
  while len(found) < len(expected):
    found.append(next(iterator))
  assert_same(found, expected)


def test_an_image_out_of_reach_is_not_taken_for_a_corrupt_one(images, monkeypatch):
  source = open_folder(os.fspath(images), 'train')
  (images / 'train/ants/4.png').write_bytes(b'damaged')
  assert len(corrupt.without_corrupt(source, 1)) == 11
  monkeypatch.setattr('vit_jax.base.machine.retry.DELAYS', (0.01,))
  with pytest.raises(RetryError, match='reading record 2 .*timed out; tried 2 times'):
    corrupt.without_corrupt(fake_source(records=OutOfReach(fake_source(4).read(range(4)))), 1)


class OutOfReach(list):
  def __getitem__(self, index):
    if index == 2:
      raise TimeoutError('timed out')
    return super().__getitem__(index)
