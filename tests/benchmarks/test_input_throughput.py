"""The input benchmark on a few small photos."""
import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
import simplejpeg

from experiments.benchmarks import input_throughput, tensorflow_input
from tests.tiny import ROOT
from vit_jax.base.errors import UserError
from vit_jax.data.images import decode
from vit_jax.data.transforms.spec import parse


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  """A folder with JPEGs in it and in a subfolder."""
  folder = tmp_path_factory.mktemp('photos')
  (folder / 'ants').mkdir()
  rng = np.random.default_rng(0)
  for index in range(6):
    image = rng.integers(0, 256, (40 + index, 50, 3), dtype=np.uint8)
    (folder / ('ants' if index % 2 else '.') / f'{index}.JPEG').write_bytes(simplejpeg.encode_jpeg(image))
  return folder


@pytest.mark.skipif(importlib.util.find_spec('tensorflow') is not None, reason='would measure TensorFlow too')
def test_one_json_object_per_line(photos):
  done = subprocess.run([sys.executable, '-m', 'experiments.benchmarks.input_throughput', '--data', str(photos), '--rounds=1',
                         '--images=42', '--batch=3', '--threads=1', '--workers=1', '--json'],
                        cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  rows = [json.loads(line) for line in done.stdout.splitlines()]
  assert [(row['stage'], row['contender']) for row in rows] == [
      ('decode', 'whole image'), ('crop', 'decode, crop, resize'), ('augment', 'crop, resize, flip of decoded images'),
      ('pipeline', 'files, 1 thread'), ('pipeline', 'files, 1 worker'), ('pipeline', 'array_record, 1 thread'),
      ('pipeline', 'array_record, 1 worker'), ('pipeline', 'cached, 1 thread'), ('three copies', 'files, 1 thread')]
  for row in rows:
    assert 0 < row['cpu_low'] <= row['cpu'] <= row['cpu_high'] and 0 < row['wall_low'] <= row['wall'] <= row['wall_high']
    assert 'of_tf' not in row


def test_ratios_are_of_the_same_round():
  row = input_throughput._row(('crop', 'x'), [(30.0, 3.0), (10.0, 1.0), (20.0, 2.0)], [(10.0, 1.0), (10.0, 1.0), (4.0, 1.0)])
  assert (row['cpu'], row['cpu_low'], row['cpu_high'], row['of_tf'], row['of_tf_high'], row['wall_of_tf']) == (
      20.0, 10.0, 30.0, 3.0, 5.0, 2.0)
  assert '| crop | x | 20 (10–30) | 3.00 (1.00–5.00) | 2 (1–3) | 2.00 (1.00–3.00) |' in input_throughput.table([row])


def test_tensorflow_gets_the_boxes_of_our_crops(photos):
  """Cutting out the box gives what our transform returns."""
  encoded = (photos / '0.JPEG').read_bytes()
  pixels = decode.decode(encoded, 3)
  for seed in range(5):
    rng = lambda seed=seed: np.random.Generator(np.random.Philox(key=seed))
    top, left, rows, columns = tensorflow_input.crop_box(*pixels.shape[:2], rng())
    cropped = parse('inception_crop', (rows, columns))(pixels, rng())  # at its own size a crop is not resized
    np.testing.assert_array_equal(cropped, pixels[top:top + rows, left:left + columns])


def test_a_folder_without_photos_is_an_error(tmp_path):
  with pytest.raises(UserError, match=f'--data: no files .jpg or .jpeg in {tmp_path}'):
    input_throughput.measure(tmp_path)


def test_images_made_ahead_are_not_measured(photos):
  """A pool of 1 has ceil(16 / 3) batches of 3 begun, and one more ready: 21 images."""
  message = '--images: must be at least 42, twice what is made ahead in batches of 3; got 41'
  with pytest.raises(UserError, match=message):
    input_throughput.measure(photos, images=41, batch=3, threads=(1,), workers=())
