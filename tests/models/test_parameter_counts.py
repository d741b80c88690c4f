"""Parameters of every named variant of every kind: published numbers, and closed forms; nothing is allocated."""
import math

import pytest

from vit_jax.models.bit.config import BiTConfig
from vit_jax.models.bit.shape import DEPTHS
from vit_jax.models.config import VARIANTS, ViTConfig
from vit_jax.models.mixer.config import VARIANTS as MIXERS
from vit_jax.models.mixer.config import MixerConfig
from vit_jax.pretrained.formats.weights import shapes

PATCHES = {'Ti': (16,), 'S': (16, 32), 'B': (8, 16, 32), 'L': (16, 32), 'So400m': (14, 16), 'H': (14,), 'g': (14, 16),
           'G': (14,)}
VITS = [f'{name}/{patch}' for name, patches in PATCHES.items() for patch in patches]

# 1,000 classes, 224 pixels: google-research/vision_transformer, vit_jax/models_test.py.
PUBLISHED = {
    'Ti/16': 5_717_416, 'S/16': 22_050_664, 'S/32': 22_878_952, 'B/8': 86_576_872, 'B/16': 86_567_656,
    'B/32': 88_224_232, 'L/16': 304_326_632, 'L/32': 306_535_400, 'H/14': 632_045_800, 'R+Ti/16': 6_337_704,
    'R26+S/32': 36_431_912, 'R26+B/32': 101_383_976, 'R50+B/16': 98_659_112, 'R50+L/32': 328_994_856}
PUBLISHED_MIXERS = {'B/16': 59_880_472, 'B/32': 60_293_428, 'L/16': 208_196_168}
# timm 1.0.31's resnetv2_*_bit.
PUBLISHED_BITS = {'R50x1': 25_549_352, 'R50x3': 217_319_080, 'R101x1': 44_541_480, 'R101x3': 387_934_888}
# Millions without a head as printed in "Scaling Vision Transformers" (arXiv 2106.04560), table 2.
PRINTED = {'g/14': 1011, 'G/14': 1843}


def count(config):
  return sum(map(math.prod, shapes(config).values()))


def vit(name, classes=1000):
  """Patches, class token, positions; blocks; last norm and head."""
  size, patch = name.split('/')
  width, mlp_dim = VARIANTS[size]['width'], VARIANTS[size]['mlp_dim']
  tokens = (224 // int(patch)) ** 2 + 1
  block = 4 * (width**2 + width) + 2 * width * mlp_dim + mlp_dim + width + 4 * width
  return ((int(patch) ** 2 * 3 + 1 + 1 + tokens) * width + VARIANTS[size]['depth'] * block + 2 * width
          + (width + 1) * classes)


def mixer(name, classes=1000):
  size, patch = name.split('/')
  row, tokens = MIXERS[size], (224 // int(patch)) ** 2
  width = row['width']
  mlp = lambda features, hidden: 2 * features * hidden + features + hidden
  block = mlp(tokens, row['token_mlp_dim']) + mlp(width, row['channel_mlp_dim']) + 4 * width
  return (int(patch) ** 2 * 3 + 1) * width + row['depth'] * block + 2 * width + (width + 1) * classes


def bit(name, classes=1000):
  """Root; pre-activation units of three convolutions, each after a norm, with a projection in the first of a stage."""
  depth, factor = name[1:].split('x')
  width = 64 * int(factor)
  total, inputs = 7 * 7 * 3 * width, width
  for stage, units in enumerate(DEPTHS[int(depth)]):
    middle = width * 2**stage
    for unit in range(units):
      total += 2 * inputs + 2 * 2 * middle + inputs * middle + 9 * middle**2 + 4 * middle**2
      total += inputs * 4 * middle if unit == 0 else 0
      inputs = 4 * middle
  return total + 2 * inputs + (inputs + 1) * classes


def test_every_size_is_here():
  assert set(PATCHES) == set(VARIANTS)


@pytest.mark.parametrize('name', [*VITS, *(name for name in PUBLISHED if name.startswith('R'))])
def test_vision_transformers_and_hybrids(name):
  found = count(ViTConfig(variant=name))
  assert found == PUBLISHED.get(name, found)
  assert name.startswith('R') or found == vit(name)
  if name in PRINTED:
    assert round(count(ViTConfig(variant=name, num_classes=None)) / 1e6) == PRINTED[name]


@pytest.mark.parametrize('name', [f'{size}/{patch}' for size in MIXERS for patch in (16, 32)])
def test_mixers(name):
  found = count(MixerConfig(variant=name))
  assert found == PUBLISHED_MIXERS.get(name, found) == mixer(name)


@pytest.mark.parametrize('name', ['R26x1', 'R50x1', 'R50x3', 'R101x1', 'R101x3', 'R152x1', 'R152x2', 'R152x4', 'R200x3'])
def test_bit_resnets(name):
  found = count(BiTConfig(variant=name))
  assert found == PUBLISHED_BITS.get(name, found) == bit(name)
