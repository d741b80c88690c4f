"""Evaluation as timm and Hugging Face do it, to the pixel, and the config files that describe it."""
import dataclasses
import json
import re

import numpy as np
import pytest

from tests import golden_files
from vit_jax.base.errors import UserError
from vit_jax.base.preprocessing import Preprocessing
from vit_jax.data.transforms import evaluation, spec
from vit_jax.pretrained.files.tensors import Tensors
from vit_jax.pretrained.formats.huggingface import preprocessing as huggingface
from vit_jax.pretrained.formats.timm import preprocessing as timm

FORMATS = {'timm': timm, 'huggingface': huggingface}
CASES = json.loads((golden_files.GOLDEN / 'eval_transforms.json').read_text())
IMAGES = golden_files.arrays_of(golden_files.GOLDEN / 'eval_transforms.npz')


def photo(rows, columns, channels):
  """Ramps and fine texture, in whole numbers; tests/golden/eval_transforms.md."""
  r, c, k = np.ogrid[:rows, :columns, :channels]
  ramps = r * 640 // rows + c * 427 // columns * (k + 1) // 2
  return ((ramps + (r * c + 7 * k) % 61 + (r * r // 5 + c * 3) % 29) % 256).astype(np.uint8)


def no_tensors():
  return Tensors('file', shapes={}, dtypes={}, fetch=lambda name: np.zeros(0))


def read(library, config, size=(24, 24), channels=3):
  """Return (preprocessing, notes)."""
  notes = []
  return FORMATS[library].read(no_tensors(), config, size, channels, notes), notes


def written(library, preprocessing, size=(24, 24)):
  """Return (config keys, notes)."""
  weights, notes = golden_files.read('vit_token'), []
  weights = dataclasses.replace(weights, config=dataclasses.replace(weights.config, image_size=size, patch_size=(1, 1)),
                                preprocessing=preprocessing)
  return FORMATS[library].write(weights, notes), notes


@pytest.mark.parametrize('case', CASES, ids=lambda case: f"{case['name']}_{case['library']}_{case['shape']}")
def test_images_equal_the_librarys_to_the_pixel(case):
  size = tuple(case['image_size'])
  preprocessing, _ = read(case['library'], case['config'], size, case['shape'][2])
  image = spec.parse(preprocessing.transform, size)(photo(*case['shape']), np.random.default_rng(0))
  np.testing.assert_array_equal(image, IMAGES[case['name']], strict=True)


@pytest.mark.parametrize('case', CASES, ids=lambda case: case['name'])
def test_what_is_written_means_what_was_read(case):
  size, channels = tuple(case['image_size']), case['shape'][2]
  before, _ = read(case['library'], case['config'], size, channels)
  config, notes = written(case['library'], before, size)
  after, _ = read(case['library'], config, size, channels)
  assert after == before and not notes


@pytest.mark.parametrize('config, mean, std', [
    ({}, 0.5, 0.5),
    (dict(image_mean=[0.1, 0.2, 0.3], image_std=[0.5] * 3), (0.1, 0.2, 0.3), 0.5),
    (dict(do_normalize=False), 0.0, 1.0),
    (dict(do_normalize=False, rescale_factor=1 / 127.5), 0.0, 0.5),
    (dict(rescale_factor=1 / 127.5, image_mean=1.0, image_std=1.0), 0.5, 0.5),
    (dict(do_rescale=False, image_mean=[51.0] * 3, image_std=[102.0] * 3), 0.2, 0.4),
    (dict(image_processor_type='CLIPImageProcessor'), (0.48145466, 0.4578275, 0.40821073),
     (0.26862954, 0.26130258, 0.27577711)),
])
def test_huggingface_normalization(config, mean, std):
  """`x · rescale_factor`, then `(x - mean) / std`; we scale by 1 / 255."""
  preprocessing, _ = read('huggingface', dict(config, size=24))
  np.testing.assert_allclose(preprocessing.mean, mean, rtol=1e-12)
  np.testing.assert_allclose(preprocessing.std, std, rtol=1e-12)


@pytest.mark.parametrize('config, transform', [
    (dict(feature_extractor_type='ViTFeatureExtractor', size=24), 'resize'),
    (dict(feature_extractor_type='CLIPFeatureExtractor', size=24, crop_size=24, resample=3),
     "resize_small(24, interpolation='bicubic', rounding='down')|central_crop(rule='huggingface')"),
    (dict(image_processor_type='ConvNextImageProcessor', size=dict(shortest_edge=24), crop_pct=0.75),
     "resize_small(32, interpolation='bicubic', rounding='down')|central_crop(rule='huggingface')"),
    (dict(image_processor_type='ViTImageProcessorFast', size=dict(height=24, width=24), resample=1),
     "resize(interpolation='lanczos')"),
    (dict(image_processor_type='DeiTImageProcessor', size=dict(height=32, width=32), crop_size=24),
     "resize(interpolation='bicubic', to=(32, 32))|central_crop(rule='huggingface')"),
])
def test_huggingface_defaults_are_those_of_the_class(config, transform):
  preprocessing, notes = read('huggingface', config)
  assert preprocessing.transform == transform and not notes


def test_large_images_of_convnext_are_not_cropped():
  config = dict(image_processor_type='ConvNextImageProcessor', size=dict(shortest_edge=384))
  assert read('huggingface', config, (384, 384))[0].transform == "resize(interpolation='bicubic')"


@pytest.mark.parametrize('library, config, note', [
    ('huggingface', None, 'no preprocessor_config.json: assumed'),
    ('huggingface', dict(do_flip_channel_order=True), 'do_flip_channel_order'),
    ('huggingface', dict(do_pad=True), 'do_pad'),
    ('huggingface', dict(rescale_offset=True), 'rescale_offset'),
    ('huggingface', dict(do_resize=False), 'do_resize: .*says false'),
    ('huggingface', dict(size=dict(shortest_edge=24)), 'do_center_crop'),
    ('huggingface', dict(size=dict(shortest_edge=24, longest_edge=30), do_center_crop=True, crop_size=24),
     'longest_edge 30'),
    ('huggingface', dict(size=48), r'size: .* of 48×48, the model has 24×24.*image_size=\(48, 48\)'),
    ('huggingface', dict(image_processor_type='My'), "image_processor_type: 'My' is unknown"),
    ('huggingface', dict(image_processor_type='Siglip2ImageProcessor'), 'keeps the aspect ratio'),
    ('timm', {}, 'no pretrained_cfg .*assumed mean 0.5.*preprocessing=dict'),
    ('timm', dict(interpolation='random'), "interpolation: unknown 'random'"),
])
def test_what_is_assumed_or_not_done_is_named(library, config, note):
  notes = read(library, config if config is None or library == 'timm' else dict(dict(size=24), **config))[1]
  assert any(re.search(note, line) and re.search('assumed|ignored', line) for line in notes)


def test_another_image_size_keeps_the_margin():
  """DINOv2 has positions for 518 pixels, and a processor that prepares 224."""
  config = dict(image_processor_type='BitImageProcessor', size=dict(shortest_edge=256), crop_size=224, resample=3)
  found = read('huggingface', config, (518, 518))[0].transform
  assert found == "resize_small(592, interpolation='bicubic', rounding='down')|central_crop(rule='huggingface')"
  assert evaluation.for_image_size(found, (518, 518), (224, 224)) == found.replace('592', '256')


@pytest.mark.parametrize('crop_pct', [0.875, 0.88, 0.9, 0.94, 0.95, 0.96, 0.965, 1.0])
@pytest.mark.parametrize('new', [(256, 256), (384, 384), (384, 512)])
@pytest.mark.parametrize('crop_mode', ['center', 'squash', 'border'])
def test_a_model_of_another_size_is_evaluated_as_timm_would(crop_pct, new, crop_mode):
  config = dict(crop_pct=crop_pct, crop_mode=crop_mode)
  before, expected = (read('timm', config, size)[0].transform for size in ((224, 224), new))
  assert evaluation.for_image_size(before, (224, 224), new) == expected


@pytest.mark.parametrize('library, config, message', [
    ('huggingface', dict(size='big'), "size: expected pixels, or height and width, .* got 'big'"),
    ('huggingface', dict(size=dict(shortest_edge=0)), 'shortest_edge .*got 0'),
    ('huggingface', dict(size=24, resample=9), 'resample: expected 0 to 5 .*got 9'),
    ('huggingface', dict(size=24, rescale_factor=0), 'rescale_factor: .*got 0'),
    ('huggingface', dict(size=24, image_std=[1, 0, 1]), 'std'),
    ('huggingface', dict(size=dict(shortest_edge=24), crop_pct=2), 'crop_pct: .*got 2'),
    ('timm', dict(crop_pct=-1), 'crop_pct: .*got -1'),
    ('timm', dict(mean=['a']), "mean=\\('a',\\)"),
])
def test_bad_configs(library, config, message):
  with pytest.raises(UserError, match=message):
    read(library, config)


@pytest.mark.parametrize('library, transform, note', [
    ('huggingface', 'resize_small(32)|central_crop', 'rounds the longer side down'),
    ('huggingface', "resize|central_crop('torchvision')", 'rounds the offset'),
    ('huggingface', 'inception_crop', 'written as a resize'),
    ('huggingface', "resize_ratio((24, 24), fit='inside')|central_crop('torchvision')", 'written as a resize'),
    ('timm', 'resize_small(32)|central_crop', 'rounds the longer side down and rounds half'),
    ('timm', "resize_ratio((24, 24), fit='inside')|central_crop('torchvision', 1)", 'fills with the mean'),
    ('timm', 'inception_crop', 'written as a resize'),
])
def test_what_a_library_does_differently_is_named(library, transform, note):
  assert any(note in line for line in written(library, Preprocessing(transform))[1])


@pytest.mark.parametrize('channels, values, expected, noted', [
    (1, [0.25, 0.5, 0.75], 0.5, True), (1, [0.5] * 3, 0.5, False),
    (4, [0.25, 0.5, 0.75], (0.25, 0.5, 0.75, 0.25), True),
    (3, [0.25, 0.5, 0.75], (0.25, 0.5, 0.75), False), (3, [0.25], 0.25, False),
])
def test_statistics_of_other_channels_are_adapted(channels, values, expected, noted):
  preprocessing, notes = read('timm', dict(mean=values, std=[0.5]), channels=channels)
  assert preprocessing.mean == expected and any(line.startswith('mean: ') for line in notes) == noted


def test_old_timm_configs_are_flat():
  flat = dict(architecture='vit_tiny_patch16_224', num_classes=10, crop_pct=1.0, mean=[0.25] * 3, std=[0.5] * 3)
  assert read('timm', timm.find(flat))[0].mean == 0.25
  assert not timm.find(dict(num_heads=3)) and timm.find(dict(pretrained_cfg=dict(crop_pct=1.0))) == dict(crop_pct=1.0)
