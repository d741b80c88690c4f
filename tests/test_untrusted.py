"""The smallest hostile files: they run no code, exhaust nothing, and reach a terminal or a page as plain text."""
import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib

import numpy as np
import pytest
import tensorstore

from tests.conftest import encode
import vit_jax
from vit_jax import audit
from vit_jax.analysis.report import page
from vit_jax.base.errors import UserError
from vit_jax.data.images.decode import DecodeError, decode
from vit_jax.data.sources import registry
from vit_jax.data.transforms import spec
from vit_jax.evaluators import tables
from vit_jax.inference import report
from vit_jax.pretrained.files.reader import open_file
from vit_jax.run import evaluation
from vit_jax.rundir.layout import RunDir

ROOT = pathlib.Path(__file__).parent.parent
GOLDEN = ROOT / 'tests' / 'golden' / 'runs' / 'plain'
HOSTILE = 'ant\x1b[2J\x9b31m\x07'
CONTROL = {character for character in map(chr, (*range(32), *range(127, 160))) if character not in '\n\t'}


def assert_plain(text):
  assert not CONTROL & set(text)
  assert r'ant\u001b[2J\u009b31m' in text


# Datasets: descriptions that name code or claim too much.


@pytest.fixture
def dataset(data_dir, tmp_path):
  """Return a folder with a prepared dataset of a stranger, which has no code in TFDS."""
  shutil.copytree(f'{data_dir}/tiny_shapes', tmp_path / 'strangers')
  info = next((tmp_path / 'strangers').glob('*/dataset_info.json'))
  info.write_text(info.read_text().replace('tiny_shapes', 'strangers'))
  for shard in info.parent.glob('*tiny_shapes*'):
    shard.rename(shard.with_name(shard.name.replace('tiny_shapes', 'strangers')))
  assert len(registry.open_source('strangers', 'train', os.fspath(tmp_path))) == 7
  return tmp_path


def rewrite(dataset, change):
  """Apply a function to the values in features.json."""
  path = next(dataset.glob('strangers/*/features.json'))
  path.write_text(json.dumps(change(json.loads(path.read_text()))))
  return path


@pytest.mark.parametrize('change', [
    lambda value: value | {'pythonClassName': 'evil.Features'},
    lambda value: {'python_class_name': 'evil.Features', 'featuresDict': value['featuresDict']},
    lambda value: {'type': 'evil.Features', 'content': {}},
    lambda value: {'featuresDict': {'features': {'image': {'pythonClassName': 'evil.Features'}}},
                   'pythonClassName': value['pythonClassName']}])
def test_a_dataset_that_names_code_does_not_run_it(dataset, change):
  path = rewrite(dataset, change)
  (dataset / 'evil.py').write_text("import pathlib\npathlib.Path('it_ran').touch()")
  code = "from vit_jax.data.sources import registry\nregistry.open_source('strangers', 'train', '.')"
  done = subprocess.run([sys.executable, '-c', code], cwd=dataset, env=dict(os.environ, PYTHONPATH=f'{ROOT}:.'), text=True,
                        stderr=subprocess.PIPE)
  assert f"UserError: {path}: not the features of a dataset: it names the code 'evil.Features'" in done.stderr
  assert not (dataset / 'it_ran').exists()


def claim_classes(value, number):
  value['featuresDict']['features']['label']['classLabel'] = {'numClasses': number}
  return value


@pytest.mark.parametrize('change, message', [
    (lambda value: claim_classes(value, '1000000000000'), 'claims 1,000,000,000,000 classes'),
    (lambda value: claim_classes(value, 'many'), 'invalid literal'), (lambda value: claim_classes(value, [3]), 'int')])
def test_a_dataset_that_claims_too_much(dataset, change, message):
  path = rewrite(dataset, change)
  with pytest.raises(UserError, match=f'{path}: not the features of a dataset: .*{message}'):
    registry.open_source('strangers', 'train', os.fspath(dataset))


@pytest.mark.parametrize('text', ['[' * 100_000, '{"a": ' * 100_000, '[]' + ' ' * (16 << 20), '1' * 10_000, '\x1b'])
def test_json_that_is_deep_or_long(dataset, tmp_path, text):
  path = next(dataset.glob('strangers/*/features.json'))
  path.write_text(text)
  with pytest.raises(UserError, match=f'{path}: not the features of a dataset'):
    registry.open_source('strangers', 'train', os.fspath(dataset))
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / 'config.json').write_text(text)
  with pytest.raises(UserError, match='config.json: damaged'):
    RunDir(tmp_path / 'run').read_config()


def test_arrays_that_claim_more_than_there_is_memory(tmp_path):
  """A zip archive of 500 bytes whose directory and array headers agree on 100 TB."""
  path = tmp_path / 'bomb.npz'
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    for name, dtype, shape in (('images', '|u1', (10**8, 1000, 1000)), ('labels', '<i8', (10**8,))):
      with archive.open(f'{name}.npy', 'w', force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, dict(descr=dtype, fortran_order=False, shape=shape))
      entry = archive.getinfo(f'{name}.npy')
      entry.file_size += int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize
  assert path.stat().st_size < 1000
  with pytest.raises(UserError, match=r'bomb.npz: 186,265.3 GiB of memory are needed, .* are free'):
    registry.open_source(f'npz:{path}', 'all')


def test_arrays_that_claim_more_than_the_archive_holds(tmp_path):
  with zipfile.ZipFile(tmp_path / 'bomb.npz', 'w') as archive:
    for name, dtype, shape in (('images', '|u1', (10**8, 1000, 1000)), ('labels', '<i8', (10**8,))):
      with archive.open(f'{name}.npy', 'w') as file:
        np.lib.format.write_array_header_1_0(file, dict(descr=dtype, fortran_order=False, shape=shape))
  with pytest.raises(UserError, match=r'the array images is damaged.*\(100000000, 1000, 1000\) does not take \d+ bytes'):
    registry.open_source(f'npz:{tmp_path}/bomb.npz', 'all')


# Images.


def png(width, height, bits):
  """Return a black grayscale PNG."""
  chunk = lambda kind, content: (struct.pack('>I', len(content)) + kind + content
                                 + struct.pack('>I', zlib.crc32(kind + content)))
  pixels = zlib.compress(bytes((1 + -(-width * bits // 8)) * height), 9)
  return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, bits, 0, 0, 0, 0))
          + chunk(b'IDAT', pixels) + chunk(b'IEND', b''))


@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
@pytest.mark.parametrize('width, height', [(60_000, 60_000), (13_000, 13_000), (7_000, 7_000)])
def test_small_files_of_many_pixels(width, height):
  bomb = png(width, height, 1) if width < 60_000 else png(8, 8, 1).replace(
      struct.pack('>II', 8, 8), struct.pack('>II', width, height))
  with pytest.raises(DecodeError, match='claim to be an image of .* pixels|DecompressionBomb|cannot be decoded'):
    decode(bomb, 3)
  jpeg = bytearray(encode(np.zeros((8, 8), np.uint8), 'JPEG'))
  at = jpeg.index(b'\xff\xc0')
  jpeg[at + 5:at + 9] = struct.pack('>HH', min(height, 65_535), min(width, 65_535))
  with pytest.raises(DecodeError):
    decode(bytes(jpeg), 3)


def test_large_images_in_large_files_are_decoded():
  noise = np.random.default_rng(0).integers(0, 256, (6_000, 6_000), np.uint8)
  assert decode(encode(noise, 'BMP'), 1).shape == (6_000, 6_000, 1)


@pytest.mark.parametrize('transform', ['resize_small(256)|central_crop', 'resize_small(60000)|central_crop',
                                       'resize_ratio((256, 256))|central_crop', 'pad_crop(100000)|resize'])
def test_a_line_of_pixels_is_not_enlarged_to_gigabytes(transform):
  image = decode(png(200_000, 1, 1), 3)
  with pytest.raises(UserError, match='a transform would make an image of .* pixels; at most 33,554,432'):
    spec.parse(transform, (224, 224))(image, np.random.default_rng(0))


@pytest.mark.parametrize('text', ['(' * 300 + 'flip' + ')' * 300, '-' * 100_000 + '1', f'resize({"-" * 1_900}1)',
                                  '|'.join(['flip'] * 100_000), 'flip\0'])
def test_transforms_that_nest_or_repeat_too_much(text):
  with pytest.raises(UserError, match='^transform .*') as caught:
    spec.parse(text, (8, 8))
  assert len(str(caught.value)) < 8_000


def test_an_image_size_that_fits_no_memory():
  with pytest.raises(UserError, match='at most 33,554,432'):
    spec.parse('resize', (100_000, 100_000))


# Checkpoints and weights.


@pytest.fixture
def run(tmp_path):
  shutil.copytree(GOLDEN, tmp_path / 'run')
  return tmp_path / 'run'


def rewrite_record(run, change):
  path = run / 'checkpoints' / '4' / 'run' / 'metadata'
  values = json.loads(path.read_text())
  change(values)
  path.write_text(json.dumps(values))


@pytest.mark.parametrize('change', [
    lambda record: record['config'].pop('model'), lambda record: record.update(config='text'),
    lambda record: record.update(class_names={'a': 1}), lambda record: record.update(class_names=[1]),
    lambda record: record.update(image_size=[8]), lambda record: record.update(image_size=['8', 8]),
    lambda record: record.pop('image_size'), lambda record: record.update(digests=[1]),
    lambda record: record.update(metrics='0.5'), lambda record: record['config'].update(normalization=None),
    lambda record: record['config']['model'].update(depth=10**9), lambda record: record['config']['model'].update(heads='2')])
def test_records_of_the_wrong_form_are_one_line(run, change):
  rewrite_record(run, change)
  with pytest.raises(UserError):
    vit_jax.load(run)


@pytest.mark.parametrize('section, key, value, message', [
    ('data', 'batch_size', 10**12, 'data.batch_size: .* GiB of memory are needed'),
    ('data', 'threads', 10**6, 'data.threads: must be at most 1,024'),
    ('data', 'image_size', 10**6, 'at most 33,554,432'), ('model', 'depth', 10**9, 'the config is not that of the checkpoint'),
    ('model', 'mlp_dim', 10**9, 'the config is not that of the checkpoint'),
    ('data', 'name', 'npz:/etc/passwd', '/etc/passwd: cannot be read as an .npz file'),
    ('data', 'eval_transform', 'resize(to=(100000, 100000))|central_crop', 'at most 33,554,432')])
def test_configs_of_strangers(run, data_dir, section, key, value, message):
  config = json.loads((run / 'config.json').read_text())
  config[section][key] = value
  (run / 'config.json').write_text(json.dumps(config))
  with pytest.raises(UserError, match=message):
    evaluation.evaluate(run, data_dir=data_dir)


def test_a_small_checkpoint_that_claims_huge_arrays(run):
  """Its arrays have more chunks than there are, which would be filled in with zeros."""
  width, state = 10**9, run / 'checkpoints' / '4' / 'state'
  store = tensorstore.KvStore.open({'driver': 'ocdbt', 'base': f'file://{state}/'}).result()
  for name, axis in (('up.kernel', 2), ('up.bias', 1), ('down.kernel', 1)):
    key = f'params.encoder.blocks.mlp.{name}/.zarray'
    values = json.loads(store.read(key).result().value)
    values['shape'][axis] = width
    store.write(key, json.dumps(values)).result()
  rewrite_record(run, lambda record: record['config']['model'].update(mlp_dim=width))
  with pytest.raises(UserError, match=r'checkpoints/4: its arrays claim 136,\d\d\d,\d\d\d,\d\d\d bytes, in files of \d\d\d,'):
    vit_jax.load(run)


def test_a_sparse_file_of_weights(tmp_path):
  """It takes one block of the disk and seems to have 2 TB."""
  elements = 1 << 39
  header = json.dumps({'x': {'dtype': 'F32', 'shape': [elements], 'data_offsets': [0, 4 * elements]}}).encode()
  path = tmp_path / 'model.safetensors'
  path.write_bytes(struct.pack('<Q', len(header)) + header)
  try:
    os.truncate(path, 8 + len(header) + 4 * elements)
  except OSError:
    pytest.skip('the file system has no files of this size')
  with open_file(path) as tensors, pytest.raises(UserError, match='model.safetensors: x: 2,048.0 GiB of memory are needed'):
    tensors.read('x', (elements,))


# Names on terminals and pages.


def test_hostile_class_names_of_a_dataset(tmp_path, capsys):
  for name in (HOSTILE, 'bee'):
    (tmp_path / 'images' / name).mkdir(parents=True)
    (tmp_path / 'images' / name / f'{name}.png').write_bytes(encode(np.zeros((8, 8), np.uint8)))
  audit.run(f'folder:{tmp_path}/images')
  assert_plain(capsys.readouterr().out)
  audit.run(f'folder:{tmp_path}/images', as_json=True)
  out = capsys.readouterr().out
  assert_plain(out)
  assert HOSTILE in json.loads(out)['splits']['all']['classes']


@pytest.mark.parametrize('form', sorted(report.FORMS))
def test_hostile_class_names_in_predictions(form, capsys):
  images = [f'{HOSTILE}.png', 'broken.png']
  outcomes = [(images[0], np.array([0.75, 0.25])), (images[1], DecodeError(HOSTILE))]
  report.print_predictions(iter(outcomes), images, [HOSTILE, 'bee'], form, 2)
  out, err = capsys.readouterr()
  assert_plain(out)
  assert_plain(err)
  if form == 'json':
    assert json.loads(out)['predictions'][0]['class'] == HOSTILE


def test_hostile_class_names_in_tables():
  assert_plain(tables._csv(['class', HOSTILE], [[HOSTILE, 1]]))
  assert_plain(tables._label(HOSTILE))


def test_hostile_errors_of_commands(tmp_path):
  path = tmp_path / HOSTILE
  done = subprocess.run([sys.executable, '-m', 'vit_jax.describe', path], cwd=ROOT, text=True, capture_output=True)
  assert done.returncode == 1 and done.stderr.startswith('error: ')
  assert_plain(done.stderr)


def test_hostile_names_on_a_page():
  name = '<script>alert(1)</script>"\'&'
  found = page.render(name, [(name, name)], [page.Section(name, name, name, name, b'png', [name]),
                                             page.Section(name, name, name, name, None, [name])])
  assert '<script>' not in found and found.count('&lt;script&gt;') >= 12
