"""Images that are replaced under the same names while a run is not running."""
import dataclasses
import os
import shutil

import numpy as np
import pytest

from tests import tiny
from tests.conftest import encode
from vit_jax.base.errors import UserError
from vit_jax.data.loading import replaced
from vit_jax.data.sources import registry
from vit_jax.data.sources.folder import open_folder
from vit_jax.run import start
from vit_jax.run.build import build
from vit_jax.run.loop import LoopState
from vit_jax.rundir.record import RunRecord


def image(value, size=8):
  return encode(np.full((size, size), value, np.uint8), 'BMP')


@pytest.fixture
def images(tmp_path):
  for i in range(40):
    path = tmp_path / 'images' / 'all' / ('ants', 'bees')[i % 2] / f'{i}.bmp'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image(i))
  return tmp_path / 'images'


def other_size(path):
  path.write_bytes(image(200, size=9))


def other_pixels(path):
  """Same size and same times."""
  stat = path.stat()
  path.write_bytes(image(200))
  os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def other_time(path):
  os.utime(path, ns=(0, 1))


def copied(path):
  """The whole data set, on another machine."""
  root = path.parent.parent.parent
  shutil.copytree(root, root.with_name('copy'), copy_function=shutil.copyfile)
  shutil.rmtree(root)
  root.with_name('copy').rename(root)


CASES = [('stat', other_size, 'sizes'), ('stat', other_pixels, None), ('stat', other_time, 'times'),
         ('stat', copied, 'times'), ('content', other_size, 'contents'), ('content', other_pixels, 'contents'),
         ('content', other_time, None), ('content', copied, None), ('names', other_size, None)]


@pytest.mark.parametrize('kind, change, found', CASES)
def test_what_is_noticed(images, kind, change, found):
  before = replaced.stamps(open_folder(os.fspath(images), 'all'), kind, threads=2)
  change(images / 'all/ants/4.bmp')
  now = replaced.stamps(open_folder(os.fspath(images), 'all'), kind, threads=2)
  assert replaced.difference(before, now) == found


def test_the_kind_may_change(images):
  source = open_folder(os.fspath(images), 'all')
  by_kind = {kind: replaced.stamps(source, kind, threads=0) for kind in replaced.KINDS}
  assert [sorted(stamps) for stamps in by_kind.values()] == [[], ['sizes', 'times'], ['content', 'sizes']]
  assert all(replaced.difference(a, b) is None for a in by_kind.values() for b in by_kind.values())
  other_size(images / 'all/ants/4.bmp')
  assert replaced.difference(by_kind['stat'], replaced.stamps(source, 'content', threads=1)) == 'sizes'
  (images / 'all/ants/4.bmp').unlink()
  assert replaced.difference(by_kind['stat'], replaced.stamps(source, 'stat', threads=1)) == 'sizes'


def test_content_of_records_without_files_of_their_own(data_dir):
  source = registry.open_source('tiny_shapes', 'train', data_dir)
  assert replaced.stamps(source, 'stat', 1) == {}
  one, other = (replaced.stamps(kept, 'content', 1) for kept in (source, source.keep([1, 0, *range(2, len(source))])))
  assert list(one) == ['content'] and one != other


def resume(config, record):
  """Do what a run does at its start with the record of its checkpoint; return the record it goes on with."""
  parts = build(config)
  at = LoopState(3, None, None, record or start.make_record(parts))
  start.check_same_records(parts, at)
  return at.record


def test_a_run_does_not_resume_on_other_images(images, caplog):
  config = tiny.config('', **{'data.name': f'folder:{images}', 'data.train_split': 'all', 'data.data_dir': None,
                              'data.batch_size': 8, 'evaluators': {}})
  record = resume(config, None)
  assert sorted(record.stamps) == ['sizes', 'times']
  record = RunRecord.from_json(record.to_json())
  assert resume(config, record) == record and not caplog.records

  other_time(images / 'all/ants/4.bmp')
  touched = resume(config, record)
  assert 'have other times of the last change, but the same sizes' in caplog.text
  caplog.clear()
  assert resume(config, touched) == touched and not caplog.records  # said once

  other_size(images / 'all/ants/4.bmp')
  with pytest.raises(UserError, match=r'data.name: images of folder:.* were replaced under the same names since step 3: '
                     'their sizes have changed'):
    resume(config, touched)
  config.data.fingerprint = 'names'
  assert resume(config, touched).stamps == {}
  config.data.fingerprint = 'stat'
  assert resume(config, dataclasses.replace(touched, stamps={})).stamps['sizes'] != touched.stamps['sizes']
