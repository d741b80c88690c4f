"""Batches against a plain implementation of the order, and against those of version 0.1."""
from collections.abc import Iterable
import hashlib

import numpy as np
import pytest

from tests.conftest import encode, fake_source
from tests.data.batches import evaluate, take, train
from vit_jax.data.images.decode import decode
from vit_jax.data.loading import loader
from vit_jax.data.loading.batch import Batch, batch_shapes
from vit_jax.data.sources import registry
from vit_jax.data.sources.base import Source
from vit_jax.data.transforms.spec import parse

MASK = (1 << 64) - 1
TRANSFORM = 'inception_crop|flip'


def splitmix64(x: int) -> int:
  """SplitMix64 in Python's integers (Vigna, splitmix64.c)."""
  x = x + 0x9E3779B97F4A7C15 & MASK
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
  x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
  return x ^ x >> 31


def permuted(place: int, count: int, key: int) -> int:
  """The swap-or-not shuffle of one place."""
  for number in range(64):
    round_key = splitmix64(number ^ key)
    partner = (round_key - place) % count
    if splitmix64(max(place, partner) ^ round_key) >> 63:
      place = partner
  return place


def example(source: Source, index: int, epoch: int, copy: int, seed: int, size: tuple[int, int]) -> Batch:
  """One example: decode all pixels, then transform them."""
  key = splitmix64(copy ^ splitmix64(index ^ splitmix64(epoch ^ splitmix64(seed << 8 | 1))))
  record = source[index]
  image = parse(TRANSFORM, size)(decode(record['image'], source.channels),
                                 np.random.Generator(np.random.Philox(key=key)))
  return Batch(image=image, label=record['label'], id=index, rng=splitmix64(key) & 0xFFFFFFFF)


def plain_train_batches(source: Source, seed: int, batch_size: int, repeats: int, size: tuple[int, int], count: int):
  """The first global batches of one process without threads, one example after the other."""
  for number in range(count):
    examples = []
    for position in range(batch_size):
      copy, place = divmod(position, batch_size // repeats)
      epoch, place = divmod(number * (batch_size // repeats) + place, len(source))
      index = permuted(place, len(source), splitmix64(epoch ^ splitmix64(seed << 8)))
      examples.append(example(source, index, epoch, copy, seed, size))
    yield {key: np.stack([one[key] for one in examples]) for key in examples[0]}


def jpegs(count: int) -> Source:
  """A source of JPEGs of different sizes."""
  rng = np.random.default_rng(3)
  images = [rng.integers(0, 256, (20 + index, 31 - index, 3), np.uint8) for index in range(count)]
  return fake_source(records=[{'image': encode(image, 'JPEG', quality=90), 'label': index % 4}
                              for index, image in enumerate(images)])


@pytest.mark.parametrize('repeats, process_count, options', [
    (1, 1, dict(threads=2)), (3, 1, dict(threads=0)), (1, 2, dict(workers=2)), (3, 2, dict(threads=2, cache=True))])
def test_train_batches_equal_plain_ones(repeats, process_count, options):
  source, size, seed = jpegs(11), (12, 10), 2 ** 32 - 1
  expected = list(plain_train_batches(source, seed, 24, repeats, size, 4))
  for process in range(process_count):
    batches = take(train(source, batch_size=24, image_size=size, transform=TRANSFORM, seed=seed, repeats=repeats,
                         process_index=process, process_count=process_count, **options), 4)
    local = slice(process * 24 // process_count, (process + 1) * 24 // process_count)
    for batch, plain in zip(batches, expected, strict=True):
      assert set(batch) == set(plain)
      for key in batch:
        np.testing.assert_array_equal(batch[key], plain[key][local], err_msg=key)


def test_eval_batches_equal_plain_ones():
  source, size = jpegs(11), (12, 10)
  examples = [example(source, index, 0, 0, 0, size) for index in range(11)]
  batches = list(evaluate(source, batch_size=4, image_size=size, transform=TRANSFORM))
  assert [batch['mask'].tolist() for batch in batches] == [[True] * 4, [True] * 4, [True] * 3 + [False]]
  for key in examples[0]:
    joined = np.concatenate([batch[key] for batch in batches])
    np.testing.assert_array_equal(joined[:11], np.stack([one[key] for one in examples]), err_msg=key)


def digests(batches: Iterable[Batch]) -> tuple[str, str]:
  """Hashes of the order with its random bits and masks, and of the pixels."""
  order, pixels = hashlib.sha256(), hashlib.sha256()
  for batch in batches:
    for key in ('id', 'label', 'rng', *(['mask'] if 'mask' in batch else [])):
      order.update(np.ascontiguousarray(batch[key]).tobytes())
    pixels.update(np.ascontiguousarray(batch['image']).tobytes())
  return order.hexdigest()[:16], pixels.hexdigest()[:16]


# Digits, three epochs (six batches with repeats), in two processes: what version 0.1 computed.
GOLDEN_TRAIN = {  # (repeats, batches, seed, process): hashes
    (1, 47, 0, 0): ('84d1505732f693b2', '917bc87abb015f0b'), (1, 47, 0, 1): ('5d5b965456247a5c', '12e525808fe542ef'),
    (1, 47, 1, 0): ('7f5bf8daff40118d', '30a03f1ad232153c'), (1, 47, 1, 1): ('e2ca6e63a4867a69', 'ef10c452da11e73b'),
    (3, 6, 0, 0): ('2183093d33971b8b', '239ce339800340d0'), (3, 6, 0, 1): ('f083f209f83f03e9', '00943583aea8c431'),
    (3, 6, 1, 0): ('598f07e9d913696e', 'b1d8538337f36ce8'), (3, 6, 1, 1): ('c9ded5b8fdbeea76', 'a8e5d9d5a5c0fe08')}
GOLDEN_EVAL = [('81d30b941faaff86', '5e8282d62aee9544'), ('9eb4f97b1bdf7d05', 'ea9cf677310a2f11')]
SETTINGS = dict(batch_size=96, image_size=(16, 16), transform=TRANSFORM, process_count=2)


@pytest.mark.parametrize('case', GOLDEN_TRAIN)
def test_train_batches_are_those_of_version_0_1(case, data_dir):
  repeats, count, seed, process = case
  batches = loader.train_batches(registry.open_source('digits', 'train', data_dir), repeats=repeats, seed=seed,
                                 process_index=process, **SETTINGS)
  assert digests(take(batches, count)) == GOLDEN_TRAIN[case]


@pytest.mark.parametrize('process', [0, 1])
def test_eval_batches_are_those_of_version_0_1(process, data_dir):
  batches = loader.eval_batches(registry.open_source('digits', 'test', data_dir), process_index=process, **SETTINGS)
  assert digests(batches) == GOLDEN_EVAL[process]


@pytest.mark.parametrize('name', ['tiny_shapes', 'tiny_scenes'])
def test_batch_shapes_are_those_of_a_batch(name, data_dir):
  source = registry.open_source(name, 'train', data_dir)
  batch, = take(train(source), 1)
  shapes = batch_shapes(source.info, batch_size=8, image_size=(6, 5))
  assert shapes == {key: (value.shape, value.dtype) for key, value in batch.items()}
