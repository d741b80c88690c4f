"""The loader: order, augmentation, processes, resume, evaluation, errors."""
import json

import numpy as np
import pytest

from tests.conftest import encode, fake_source
from tests.data.batches import RANDOM, assert_same, evaluate, join, take, train
from vit_jax.data.loading import examples
from vit_jax.data.sources import registry
from vit_jax.training.step import hash_examples


@pytest.mark.parametrize('channels', [1, 3])
def test_shapes_and_types(channels):
  batch, = take(train(fake_source(channels=channels)), 1)
  expected = {'image': ((8, 6, 5, channels), np.uint8), 'label': ((8,), np.int32),
              'id': ((8,), np.int32), 'rng': ((8,), np.uint32)}
  assert {key: (value.shape, value.dtype) for key, value in batch.items()} == expected
  np.testing.assert_array_equal(batch['label'], batch['id'] % 4)


def test_images_belong_to_their_ids():
  source = fake_source(10)
  originals = np.concatenate([batch['image'] for batch in evaluate(source, batch_size=10)])
  for batch in take(train(source, transform='resize'), 5):
    np.testing.assert_array_equal(batch['image'], originals[batch['id']])


@pytest.mark.parametrize('process_count', [2, 4])
def test_processes_together_load_the_single_process_stream(process_count):
  source = fake_source(11)
  parts = [take(train(source, process_index=index, process_count=process_count), 6)
           for index in range(process_count)]
  assert_same(join(parts), take(train(source), 6))


def test_threads_and_cache_change_nothing():
  source = fake_source(11)
  expected = take(train(source, threads=0), 6)
  assert_same(take(train(source, threads=3), 6), expected)
  assert_same(take(train(source, cache=True), 6), expected)


def test_seed_determines_order_and_augmentation():
  source = fake_source(40)
  first, again, other = (take(train(source, seed=seed), 4) for seed in (3, 3, 4))
  assert_same(first, again)
  assert any((a['id'] != b['id']).any() for a, b in zip(first, other, strict=True))
  assert any((a['rng'] != b['rng']).any() for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize('process', [(0, 1), (1, 2)])
def test_resume_continues_exactly(process):
  source = fake_source(11)
  options = dict(zip(('process_index', 'process_count'), process, strict=True))
  iterator = iter(train(source, **options))
  for _ in range(3):
    next(iterator)
  state = json.loads(json.dumps(iterator.get_state()))
  expected = [next(iterator) for _ in range(4)]
  fresh = iter(train(source, **options))
  next(fresh)  # the position is set, not added to
  fresh.set_state(state)
  assert fresh.get_state() == state
  assert_same([next(fresh) for _ in range(4)], expected)


def test_state_is_the_same_on_any_number_of_processes():
  source, states, batches = fake_source(11), [], []
  for index, count in ((0, 1), (0, 4), (3, 4)):
    iterator = iter(train(source, process_index=index, process_count=count))
    next(iterator), next(iterator)
    states.append(iterator.get_state())
  assert states[0] == states[1] == states[2]
  for index in range(2):  # started on one process, continued on two
    iterator = iter(train(source, process_index=index, process_count=2))
    iterator.set_state(states[0])
    batches.append([next(iterator)])
  assert_same(join(batches), take(train(source), 3)[2:])


@pytest.mark.parametrize('process_count', [1, 2, 3, 8])
def test_processes_load_every_example_of_an_epoch_once(process_count):
  source = fake_source(48)
  parts = [take(train(source, batch_size=24, process_index=index, process_count=process_count), 4)
           for index in range(process_count)]
  ids = [np.concatenate([batch['id'] for batch in part]).reshape(2, -1) for part in parts]
  for epoch in range(2):
    np.testing.assert_array_equal(np.sort(np.concatenate([part[epoch] for part in ids])), np.arange(48))


@pytest.mark.parametrize('repeats', [1, 2])
def test_a_stream_resumed_on_other_processes_is_the_uninterrupted_one(repeats):
  """The hash in the checkpoint is the same, and so is every image."""
  source, options = fake_source(13), dict(repeats=repeats, seed=5)
  expected = take(train(source, **options), 9)
  batches, state = [], {'next_index': 0}
  for process_count in (1, 2, 4):
    iterators = [iter(train(source, process_index=index, process_count=process_count, **options))
                 for index in range(process_count)]
    for iterator in iterators:
      iterator.set_state(state)
    batches += join([[next(iterator) for _ in range(3)] for iterator in iterators])
    state = json.loads(json.dumps(iterators[-1].get_state()))
  assert_same(batches, expected)
  seen = [np.uint32(0)] * 2
  for one, other in zip(batches, expected, strict=True):
    seen = [hash_examples(hashed, batch, None) for hashed, batch in zip(seen, (one, other), strict=True)]
  assert seen[0] == seen[1] != 0


def test_augmentation_depends_on_seed_epoch_and_example_only():
  """It does not depend on the batch size, so not on the position in the stream."""
  source, finished = fake_source(12), []
  for batch_size in (3, 8):
    batches = take(train(source, batch_size=batch_size), 24 // batch_size)
    finished.append({key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]})
  for epoch in (slice(0, 12), slice(12, 24)):
    one, other = ({key: values[key][epoch] for key in values} for values in finished)
    np.testing.assert_array_equal(one['id'], other['id'])
    np.testing.assert_array_equal(one['image'], other['image'])
    np.testing.assert_array_equal(one['rng'], other['rng'])


@pytest.mark.parametrize('repeats', [2, 4])
def test_copies_are_not_neighbors_and_are_augmented_differently(repeats):
  source = fake_source(40)
  for batch in take(train(source, batch_size=40, transform='pad_crop(3)', repeats=repeats), 2):
    copies = {key: values.reshape(repeats, 40 // repeats, *values.shape[1:]) for key, values in batch.items()}
    for copy in range(1, repeats):
      np.testing.assert_array_equal(copies['id'][copy], copies['id'][0])
      assert not (copies['rng'][copy] == copies['rng'][0]).any()
      assert (copies['image'][copy] != copies['image'][0]).any(axis=(1, 2, 3)).sum() > 5
    assert (batch['id'][::2] != batch['id'][1::2]).all()  # mixup pairs neighbors


def test_copies_are_decoded_once(monkeypatch):
  source, decoded, opened = fake_source(12), [], examples.decode.open_image
  monkeypatch.setattr(examples.decode, 'open_image', lambda *args: decoded.append(args) or opened(*args))
  batch, = take(train(source, batch_size=24, repeats=3, threads=0), 1)
  # The chunks of 16 split one group of three copies.
  assert len(np.unique(batch['id'])) == 8 and len(decoded) <= 9


def test_with_repeats_an_epoch_still_holds_each_example_once():
  ids = [batch['id'][:4] for batch in take(train(fake_source(12), batch_size=12, repeats=3), 6)]
  np.testing.assert_array_equal(np.sort(np.concatenate(ids[:3])), np.arange(12))
  np.testing.assert_array_equal(np.sort(np.concatenate(ids[3:])), np.arange(12))


@pytest.mark.parametrize('process_count', [2, 4])
def test_processes_split_batches_with_copies(process_count):
  source = fake_source(11)
  parts = [take(train(source, repeats=4, process_index=index, process_count=process_count), 6)
           for index in range(process_count)]
  assert_same(join(parts), take(train(source, repeats=4), 6))


@pytest.mark.parametrize('repeats', [0, 3])
def test_repeats_divide_the_batch(repeats):
  with pytest.raises(ValueError, match=f'multiple of data.repeats.*batch_size 8 and repeats {repeats}'):
    train(fake_source(), repeats=repeats)


def test_a_stream_of_millions_resumes_at_once():
  reads = []

  class Fake:
    def __len__(self):
      return 14_000_000

    def __getitem__(self, index):
      reads.append(index)
      return {'image': encoded, 'label': 0}

  encoded = encode(np.zeros((6, 5, 3), np.uint8))
  iterator = iter(train(fake_source(records=Fake()), threads=0))
  iterator.set_state({'next_index': 5_000_000_000})
  assert not reads
  assert sorted(next(iterator)['id']) == sorted(reads) and len(reads) == 8


def test_resume_does_not_replay():
  reads = []

  class Counting(list):
    def __getitem__(self, index):
      reads.append(index)
      return super().__getitem__(index)

  source = fake_source(11)
  source = fake_source(records=Counting(source.read(range(11))))
  iterator = iter(train(source, threads=0))
  iterator.set_state({'next_index': 10 ** 9})
  next(iterator)
  assert len(reads) == 8


def test_each_epoch_is_another_permutation():
  source = fake_source(12)
  ids = np.concatenate([batch['id'] for batch in take(train(source, batch_size=4), 30)])
  epochs = ids.reshape(10, 12)
  np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(12), (10, 1)))
  assert len({tuple(epoch) for epoch in epochs.tolist()}) > 8


def test_augmentation_and_random_bits_differ_between_epochs():
  batches = take(train(fake_source(4), batch_size=4), 6)
  orders = [np.argsort(batch['id']) for batch in batches]
  bits = [batch['rng'][order] for batch, order in zip(batches, orders, strict=True)]
  assert len(np.unique(bits)) == 24
  images = [batch['image'][order] for batch, order in zip(batches, orders, strict=True)]
  assert len({image[0].tobytes() for image in images}) > 2


def test_random_bits_do_not_depend_on_the_transform():
  source = fake_source(11)
  for one, other in zip(take(train(source), 3), take(train(source, transform='resize'), 3), strict=True):
    np.testing.assert_array_equal(one['rng'], other['rng'])


@pytest.mark.parametrize('count, process_count', [(1, 1), (7, 2), (8, 4), (9, 4), (21, 2)])
@pytest.mark.parametrize('cache', [False, True])
def test_evaluation_counts_each_example_once(count, process_count, cache):
  source = fake_source(count)
  passes = [list(evaluate(source, cache=cache, process_index=index, process_count=process_count))
            for index in range(process_count)]
  assert [len(part) for part in passes] == [-(-count // 8)] * process_count
  batches = join(passes)
  mask = np.concatenate([batch['mask'] for batch in batches])
  ids = np.concatenate([batch['id'] for batch in batches])
  assert mask.dtype == np.bool_ and len(mask) == -(-count // 8) * 8
  np.testing.assert_array_equal(ids[mask], np.arange(count))
  images = np.concatenate([batch['image'] for batch in batches])
  assert images.shape == (len(mask), 6, 5, 3) and not images[~mask].any()
  assert all(not batch[key][~batch['mask']].any() for batch in batches for key in batch)


def test_evaluation_repeats_even_where_the_transform_is_random():
  batches = evaluate(fake_source(11), transform=RANDOM)
  assert_same(list(batches), list(batches))


@pytest.mark.parametrize('make', [train, evaluate])
@pytest.mark.parametrize('threads', [0, 2])
@pytest.mark.parametrize('cache', [False, True])
@pytest.mark.parametrize('bad, message', [
    ({'label': 4}, r'expected a label in 0\.\.3, got 4'),
    ({'label': -1}, 'got -1 .TFDS stores -1 if a split has no labels'),
    ({'image': b'broken'}, "b'broken' that cannot be decoded"),
])
def test_bad_records_are_named(make, threads, cache, bad, message):
  records = fake_source(10).read(range(10))
  records[7] |= bad
  with pytest.raises(ValueError, match=f"record 7 of dataset 'fake', split 'train': .*{message}"):
    take(make(fake_source(records=records), threads=threads, cache=cache), 2)


def test_an_image_that_the_transform_cannot_take_is_named():
  records = fake_source(10).read(range(10))
  records[3]['image'] = encode(np.zeros((2, 2, 3), np.uint8))
  with pytest.raises(ValueError, match='(?s)record 3 of .*central_crop: .*got .2, 2.'):
    take(evaluate(fake_source(records=records), transform='central_crop'), 2)


@pytest.mark.parametrize('make', [train, evaluate])
@pytest.mark.parametrize('options, message', [
    ({'batch_size': 6, 'process_count': 4}, 'data.batch_size: .* processes, 4; got 6. Try 8.'),
    ({'batch_size': 0}, 'got 0'),
    ({'process_index': 2, 'process_count': 2}, 'got process_index 2 and process_count 2'),
    ({'process_count': 0}, 'got process_index 0 and process_count 0'),
    ({'transform': 'sharpen'}, "unknown 'sharpen'"),
    ({'image_size': 8}, 'image_size'),
])
def test_bad_options_are_found_before_anything_is_read(make, options, message):
  with pytest.raises(ValueError, match=message):
    make(fake_source(records=[{'image': b'broken', 'label': 0}]), cache=True, **options)


def test_a_dataset_from_disk(data_dir):
  source = registry.open_source('digits', 'train', data_dir)
  batches = train(source, batch_size=100, image_size=(8, 8), cache=True)
  ids = np.concatenate([batch['id'] for batch in take(batches, 15)])[:1497]
  np.testing.assert_array_equal(np.sort(ids), np.arange(1497))
  shapes = registry.open_source('tiny_shapes', 'test', data_dir)
  batch, = evaluate(shapes)
  assert batch['image'].shape == (8, 6, 5, 3) and batch['mask'].sum() == 3
