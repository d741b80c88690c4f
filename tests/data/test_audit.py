"""Audits of datasets with planted duplicates, conflicts and damage, and exclusion lists."""
import json
import shutil
import subprocess
import sys

from absl import logging
import numpy as np
from PIL import Image
import pytest

from tests.conftest import encode, fake_source
from vit_jax import audit
from vit_jax.base.errors import FileError, MissingFileError, UserError
from vit_jax.data.audit import duplicates, near, perceptual, report
from vit_jax.data.audit import scan as scan_lib
from vit_jax.data.loading.config import DataConfig
from vit_jax.data.loading.dataset import Dataset
from vit_jax.data.sources import exclude
from vit_jax.data.sources import registry as sources


def picture(seed, size=(60, 80)):
  """Return an image with structure at several scales, a different one per seed."""
  rng, image = np.random.default_rng(seed), 0
  for cells in (3, 6, 12):
    coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
    image = image + np.asarray(coarse.resize(size[::-1], Image.Resampling.BICUBIC), np.float32) / 3
  return image.astype(np.uint8)


@pytest.fixture
def planted(tmp_path):
  """A folder of 40 different pictures of ants and bees for train, 12 for val, with planted problems."""
  root = tmp_path / 'insects'
  for split, count, first in (('train', 20, 0), ('val', 6, 100)):
    for label, name in enumerate(('ants', 'bees')):
      (root / split / name).mkdir(parents=True)
      for index in range(count):
        file = root / split / name / f'{index}.png'
        file.write_bytes(encode(picture(first + 50 * label + index)))
  train, val = root / 'train', root / 'val'
  shutil.copy(train / 'ants' / '0.png', train / 'ants' / 'same_bytes.png')
  (train / 'ants' / 'same_pixels.bmp').write_bytes(encode(picture(1), 'BMP'))
  (train / 'bees' / 'jpeg.jpg').write_bytes(encode(picture(52), 'JPEG', quality=60))
  (train / 'bees' / 'leak.png').write_bytes(encode(Image.fromarray(picture(153)).resize((160, 120))))
  shutil.copy(train / 'ants' / '4.png', train / 'bees' / 'conflict.png')
  (train / 'ants' / 'cut.png').write_bytes(encode(picture(7))[:300])
  (val / 'ants' / 'cut.png').write_bytes(b'no image')
  shutil.copy(val / 'ants' / '1.png', val / 'ants' / 'again.png')
  return root


def test_audit_finds_exactly_what_was_planted(planted):
  found = audit.audit(f'folder:{planted}')
  name = found.scan.name
  groups = {frozenset(map(name, group)) for group in found.duplicates.groups}
  assert groups == {frozenset(pair) for pair in [
      ('train/ants/0.png', 'train/ants/same_bytes.png'), ('train/ants/1.png', 'train/ants/same_pixels.bmp'),
      ('train/bees/2.png', 'train/bees/jpeg.jpg'), ('val/bees/3.png', 'train/bees/leak.png'),
      ('train/ants/4.png', 'train/bees/conflict.png'), ('val/ants/1.png', 'val/ants/again.png')]}
  assert (found.duplicates.exact, found.duplicates.same_file, len(found.duplicates.near)) == (4, 3, 2)
  assert {name(record) for record in found.scan.errors} == {'train/ants/cut.png', 'val/ants/cut.png'}
  excluded = {name(record): reason for record, reason in found.excluded.items()}
  one_of = [{'train/ants/0.png', 'train/ants/same_bytes.png'}, {'train/ants/1.png', 'train/ants/same_pixels.bmp'},
            {'train/bees/2.png', 'train/bees/jpeg.jpg'}]
  assert all(len(pair & set(excluded)) == 1 for pair in one_of)
  assert set(excluded) - set().union(*one_of) == {
      'train/ants/4.png', 'train/bees/conflict.png', 'train/bees/leak.png', 'train/ants/cut.png'}
  assert excluded['train/bees/leak.png'] == 'also in another split: nearly the same as val/bees/3.png (bees, bees)'
  assert excluded['train/ants/4.png'] == 'conflicting label: same pixels as train/bees/conflict.png (ants, bees)'
  assert excluded['train/ants/cut.png'] == 'corrupt'


def test_text_json_and_files(planted, tmp_path, capsys):
  output, sheet = tmp_path / 'exclude.txt', tmp_path / 'pairs.png'
  audit.run(f'folder:{planted}', output=str(output), sheet=str(sheet), command='the command')
  text = capsys.readouterr().out
  for line in ('train  46       2', 'val    14       2', 'ants   23     8', 'bees   23     6', 'corrupt      2',
               '6 groups of 12 records, 1 across splits', 'nearly the same, least similar first:',
               'conflicting labels  1 group\n', 'training should leave out  7 records: 1 also in '
               'another split, 2 conflicting label, 1 corrupt, 3 duplicate',
               'same bytes 3 groups, same pixels 4 groups, nearly the same 2 pairs'):
    assert line in text, text
  assert '1 BMP RGB' in text and '1 JPEG RGB' in text and '60/60/120' in text
  lines = output.read_text().splitlines()
  assert lines[0].endswith('written by the command') and lines[2].startswith('# split train ') and len(lines) == 3 + 7
  with Image.open(sheet) as image:
    assert image.size[0] == 6 + 6 * (160 + 6) and image.format == 'PNG'  # three pairs in a row, 160 pixels each
  assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ['exclude.txt', 'pairs.png']

  audit.run(f'folder:{planted}', as_json=True)
  summary = json.loads(capsys.readouterr().out)
  assert summary['splits']['train']['classes'] == {'ants': 23, 'bees': 23}
  assert summary['excluded'] == {'duplicate': 3, 'also in another split': 1, 'conflicting label': 2, 'corrupt': 1}
  assert {one['name'] for one in summary['conflicts'][0]} == {'train/ants/4.png', 'train/bees/conflict.png'}


def dataset(path, exclude_list, **options):
  options = dict(batch_size=4, image_size=(8, 8), train_transform='resize') | options
  return Dataset(DataConfig(name=f'folder:{path}', exclude=str(exclude_list), **options), seed=0)


def test_training_leaves_out_listed_records(planted, tmp_path, caplog):
  output = tmp_path / 'exclude.txt'
  found = audit.audit(f'folder:{planted}')
  audit.write_list(found, str(output), '')
  with caplog.at_level(logging.WARNING, logger='absl'):
    data = dataset(planted, output)
  assert len(data.source) == 46 - 7 and 'left out 7 of 46 records' in caplog.text
  names = {data.source.record_name(index) for index in range(39)}
  assert names == set(map(found.scan.name, range(46))) - set(map(found.scan.name, found.excluded))
  # Every other record comes once per epoch.
  batches = iter(data.train_batches())
  ids = np.concatenate([next(batches)['id'] for _ in range(39)]).tolist()
  assert sorted(ids) == sorted(4 * list(range(39)))
  # Evaluation sees all records, including the damaged file.
  with pytest.raises(ValueError, match='cut.png'):
    list(data.eval_batches('train', 4))
  skipping = dataset(planted, output, corrupt='skip')
  assert len(skipping.source) == 39
  assert sum(batch['mask'].sum() for batch in skipping.eval_batches('train', 4)) == 45


def test_list_may_have_other_line_endings(planted, tmp_path):
  output = tmp_path / 'exclude.txt'
  audit.write_list(audit.audit(f'folder:{planted}'), str(output), '')
  output.write_bytes(output.read_bytes().replace(b'\n', b'\r\n'))
  assert len(dataset(planted, output).source) == 39


def test_slices_leave_out_their_records(planted, tmp_path):
  output = tmp_path / 'exclude.txt'
  found = audit.audit(f'folder:{planted}')
  audit.write_list(found, str(output), '')
  parts = [dataset(planted, output, train_split=split).source for split in ('train[:50%]', 'train[50%:]')]
  assert sum(map(len, parts)) == 39


def test_errors_of_lists_that_do_not_match(planted, tmp_path):
  output = tmp_path / 'exclude.txt'
  audit.write_list(audit.audit(f'folder:{planted}'), str(output), '')
  lines = output.read_text()
  output.write_text(lines + 'train/ants/unknown.png\tduplicate\n')
  with pytest.raises(UserError, match='list.*exclude.txt: names 1 record .* does not have, such as '
                     'train/ants/unknown.png. Write the list again: python -m vit_jax.audit folder:.*insects '
                     '--output='):
    dataset(planted, output)
  output.write_text(lines + 'train/ants/5.png\n')
  with pytest.raises(UserError, match='a tab and a reason on every line, got .train/ants/5.png'):
    dataset(planted, output)
  output.write_text(lines)
  (planted / 'train' / 'ants' / 'new.png').write_bytes(encode(picture(999)))
  with pytest.raises(UserError, match='written for another dataset, or .* before it changed: split train .* '
                     'Write the list again'):
    dataset(planted, output)
  with pytest.raises(UserError, match='covers the splits train; folder:.* val is part of val'):
    dataset(planted, output, train_split='val')
  with pytest.raises(MissingFileError, match='exclusion list /nowhere/list.txt: cannot be read: .* does not exist. '
                     'python -m vit_jax.audit writes a list'):
    dataset(planted, '/nowhere/list.txt')


def test_tfds_records_are_named_by_their_index_in_the_stored_split(data_dir, tmp_path):
  source = sources.open_source('tiny_shapes', 'train[2:4]+test[1:]+train[:1]', data_dir)
  assert [source.record_name(index) for index in range(5)] == ['train/2', 'train/3', 'test/1', 'test/2', 'train/0']
  whole = sources.open_source('tiny_shapes', 'train', data_dir)
  assert source.split_fingerprints['train'] == whole.split_fingerprints['train'] and source.read([1]) == whole.read([3])
  output = str(tmp_path / 'exclude.txt')
  exclude.write(output, {'train/3': 'by hand', 'train/6': 'by hand'}, whole.split_fingerprints, 'tiny_shapes', '')
  kept = exclude.without_excluded(source, output)
  assert [kept.record_name(index) for index in range(len(kept))] == ['train/2', 'test/1', 'test/2', 'train/0']
  assert len(exclude.without_excluded(whole, output)) == 5


def test_near_pairs_match_a_full_search():
  rng = np.random.default_rng(0)
  hashes = rng.integers(0, 1 << 64, 3000, dtype=np.uint64)
  for distance in range(12):  # Copies at every small distance, in addition.
    bits = [rng.choice(64, distance, replace=False) for _ in range(20)]
    flips = np.array([np.bitwise_or.reduce(1 << b.astype(np.uint64)) if len(b) else 0 for b in bits], np.uint64)
    hashes[100 + 20 * distance:120 + 20 * distance] = hashes[2000 + 20 * distance:2020 + 20 * distance] ^ flips
  pairs = np.concatenate(list(near.pairs_within_radius(hashes)))
  close = np.triu(np.bitwise_count(hashes[:, None] ^ hashes) <= near.RADIUS, 1)
  assert 160 == close.sum() and len(pairs) == 160  # Distances 0 to 7 twenty times each, and no pair twice.
  np.testing.assert_array_equal(np.unique(pairs, axis=0), np.argwhere(close))


def test_near_pairs_of_equal_hashes(monkeypatch):
  monkeypatch.setattr(near, '_MAX_CANDIDATES', 1000)  # Several chunks.
  pairs = np.concatenate(list(near.pairs_within_radius(np.full(100, 7, np.uint64))))
  np.testing.assert_array_equal(np.unique(pairs, axis=0), np.argwhere(np.triu(np.ones((100, 100)), 1)))
  assert len(pairs) == 4950


def test_similarity_and_hash():
  small = perceptual.thumbnail(picture(0))
  assert small.shape == (32, 32) and small.dtype == np.uint8
  assert perceptual.similarity(small, small) == pytest.approx(1)
  darker = (small * 0.5).astype(np.uint8)
  assert perceptual.similarity(small, darker) > 0.99 and perceptual.similarity(small, 255 - small) == pytest.approx(-1)
  assert perceptual.similarity(small, np.full_like(small, 9)) == 0
  assert abs(perceptual.similarity(small, perceptual.thumbnail(picture(1)))) < 0.7
  from scipy import fft
  coefficients = fft.dctn(small.astype(float), norm='ortho')[:8, :8].ravel()
  coefficients[0] = 0
  bits = np.unpackbits(np.array([perceptual.perceptual_hash(small)], np.uint64).view(np.uint8))
  np.testing.assert_array_equal(bits, coefficients > np.median(coefficients))


def test_only_training_records_are_excluded():
  same, other = encode(picture(0)), encode(picture(1))
  train = fake_source(records=[{'image': same, 'label': 0}, {'image': other, 'label': 1}, {'image': same, 'label': 0},
                               {'image': same, 'label': 1}])
  test = fake_source(records=[{'image': same, 'label': 0}, {'image': same, 'label': 2}])
  scanned = scan_lib.scan([train, test])
  assert duplicates.find(scanned, 0.98).groups == [[0, 2, 3, 4, 5]]
  reasons = duplicates.choose_excluded(scanned, [[0, 2, 3, 4, 5]], {0})
  assert set(reasons) == {0, 2, 3}  # Also the two that agree with a record of test: which is right is unknown.
  assert all(reason.startswith('conflicting label') for reason in reasons.values())
  assert reasons[0].endswith('(class 0, class 2)')
  assert duplicates.choose_excluded(scanned, [[4, 5]], {0}) == {}


def test_plain_images_are_only_exact_duplicates():
  records = [{'image': encode(np.full((9, 9, 3), value, np.uint8)), 'label': 0} for value in (10, 10, 11, 200)]
  found = duplicates.find(scan_lib.scan([fake_source(records=records)]), 0.9)
  assert found.groups == [[0, 1]] and not found.near


def test_scan_of_many_chunks_keeps_the_order():
  source = fake_source(count=300)
  scanned = scan_lib.scan([source, source], threads=3)
  assert [scanned.labels[label][0] for label in scanned.records['label']] == 2 * [index % 4 for index in range(300)]
  assert scanned.name(299) == 'train/299' == scanned.name(599)
  np.testing.assert_array_equal(scanned.thumbnails[301], perceptual.thumbnail(scanned.image(1)))


def test_labels_without_a_class_and_empty_classes():
  source = fake_source(records=[{'image': encode(picture(seed)), 'label': label} for seed, label in enumerate([0, 9])])
  scanned = scan_lib.scan([source])
  summary = report.summarize(scanned, duplicates.find(scanned, 0.9), {})
  assert summary['empty_classes'] == {'train': ['class 1', 'class 2', 'class 3']}
  assert summary['splits']['train']['labels_without_class'] == {'9': 1}
  assert 'train: labels without a class' in report.to_text(summary)


@pytest.mark.parametrize('options, message', [
    ({'similarity': 2.0}, '--similarity: expected 0.5..1, got 2.0'),
    ({'train': 'trian'}, r"--train: expected a split of tiny_shapes, one of \['test', 'train'\], got 'trian'")])
def test_bad_arguments(data_dir, options, message):
  with pytest.raises(UserError, match=message):
    audit.audit('tiny_shapes', data_dir, **options)


def test_command_line(data_dir, tmp_path):
  command = [sys.executable, '-X', 'importtime', '-m', 'vit_jax.audit', 'digits', f'--data_dir={data_dir}', '--json']
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  summary = json.loads(done.stdout)
  assert summary['splits']['train']['records'] == 1497 and summary['duplicates']['groups_with_same_pixels'] == 0
  assert ' jax\n' not in done.stderr and ' tensorflow\n' not in done.stderr
  done = subprocess.run([*command[:1], *command[3:], '--train=al'], capture_output=True, text=True)
  assert done.returncode == 1 and done.stderr.startswith('error: --train: expected a split of digits'), done.stderr


def test_former_command_says_its_new_name():
  done = subprocess.run([sys.executable, '-m', 'vit_jax.data.audit', 'digits'], capture_output=True, text=True)
  assert done.returncode == 1 and not done.stdout
  assert 'python -m vit_jax.audit' in done.stderr and 'Traceback' not in done.stderr


def test_list_is_written_whole_or_not_at_all(tmp_path):
  write = lambda path, record: exclude.write(str(path), {record: 'by hand'}, {'train': 16 * '0'}, 'mine', '')
  write(tmp_path / 'list.txt', 'train/1')
  with pytest.raises(UserError, match="'train/a.nb': a file name with a line break cannot be listed; rename the file"):
    write(tmp_path / 'list.txt', 'train/a\nb')
  (tmp_path / 'file').touch()
  with pytest.raises(FileError, match='file/list.txt: cannot write the exclusion list: '):
    write(tmp_path / 'file' / 'list.txt', 'train/2')
  assert (tmp_path / 'list.txt').read_text().splitlines()[-1] == 'train/1\tby hand'
  assert sorted(path.name for path in tmp_path.iterdir()) == ['file', 'list.txt']
