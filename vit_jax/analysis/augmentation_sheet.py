"""Contact sheets of what a model sees: examples as training augments and mixes them, or every operation by itself."""
from collections.abc import Iterator, Mapping, Sequence
import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from vit_jax.base.errors import FileError, UserError
from vit_jax.base.files import local
from vit_jax.base.pictures import Cell
from vit_jax.data.images.decode import decode
from vit_jax.data.images.pillow import from_pillow, to_pillow
from vit_jax.data.loading.dataset import Dataset
from vit_jax.data.transforms import randaugment
from vit_jax.data.transforms.spec import parse
from vit_jax.objectives import batch_mixing
from vit_jax.objectives.batch_mixing import MixConfig
from vit_jax.run import config as config_lib
from vit_jax.training.step import example_keys

Rows = list[list[Cell | None]]

# Magnitudes of RandAugment and strengths of TrivialAugment: as many of each, for they are the halves of a row.
_MAGNITUDES = (0, 10, 15)
_STRENGTHS = (5, 15, 30)
_SPECS = (
    'inception_crop', 'resize_small(256)|random_crop', 'flip', 'pad_crop(32)', 'affine(20, 0.1, 0.2)',
    'random_erasing(1.0)', 'color_jitter(0.4, 0.4, 0.4, 0.1)', 'color_jitter(hue=0.5)', 'randaugment(2, 10)',
    'trivial_augment', 'resize_small(256)|central_crop',
)
_WHOLE_PHOTO = ('inception', 'resize_small')  # specs that start with one of these take photos of any shape
_MIXTURES = (MixConfig(mixup=0.8), MixConfig(cutmix=1.0), MixConfig(mixup=0.8, cutmix=1.0))


def examples(recipe: config_lib.Recipe, count: int, views: int) -> tuple[Rows, list[str]]:
  """Return what the model sees of some examples, spread evenly over the training split.

  Args:
    recipe: see `configs/`.
    count: number of examples.
    views: how often each is shown as training sees it, in consecutive epochs.

  Returns:
    (rows, titles) for `pictures.draw`: a row per example, first as evaluation sees it, then as training does, augmented
    and mixed; captions give the classes with their weights.

  Raises:
    UserError: a bad config or number.
  """
  config = config_lib.read(recipe)
  if count < 1 or views < 1:
    raise UserError(f'--count, --draws: must be at least 1; got {count}, {views}')
  # An even batch, because mixing pairs its images; it may reach into the next epoch.
  data_config = dataclasses.replace(config.data, batch_size=count + count % 2, repeats=1, cache=False)
  data = Dataset(data_config, config.seed)
  if count > len(data.source):
    raise UserError(f'--count: must be at most {len(data.source)}, the number of training examples; got {count}')
  data = data.restricted_to(np.linspace(0, len(data.source) - 1, count).astype(int).tolist())
  names = data.source.class_names
  original = next(iter(data.eval_train_split(count)))
  rows: Rows = [[(image, _caption(label, names))]
                for image, label in zip(original['image'], original['label'], strict=True)]
  batches = _mixed_batches(data, config.mix, config.seed)
  while min(map(len, rows)) <= views:
    batch = next(batches)
    for image, label, example in zip(batch['image'], batch['label'], batch['id'], strict=True):
      rows[example].append((image, _caption(label, names)))
  titles = ['evaluation', *(f'training {view}' for view in range(1, views + 1))]
  return [row[:views + 1] for row in rows], titles


def _mixed_batches(data: Dataset, config: MixConfig, seed: int) -> Iterator[Mapping[str, Any]]:
  """Yield training batches, mixed as the step mixes them, but with uint8 images."""
  mixing = batch_mixing.build(config, data.source.num_classes)
  for step, batch in enumerate(data.train_batches()):
    if mixing is None:
      yield batch
      continue
    arrays: dict[str, Any] = dict(batch, image=batch['image'].astype(np.float32))
    keys = example_keys(seed, step, jnp.asarray(batch['rng']))
    mixed = {key: np.asarray(value) for key, value in mixing(arrays, keys).items()}
    yield dict(mixed, image=np.rint(mixed['image']).astype(np.uint8))


def _caption(label: np.ndarray, class_names: Sequence[str]) -> str:
  """Return a label in words: 'cat', or for a mixture 'cat 70 %' and 'dog 30 %', one per line, the largest first."""
  weights = np.bincount([label], minlength=len(class_names)) if np.ndim(label) == 0 else np.asarray(label)
  shown = [k for k in np.argsort(-weights, kind='stable') if weights[k] >= 0.005][:2]
  pure = all(weights[k] > 0.995 for k in shown)
  lines = [class_names[int(k)] + ('' if pure else f' {100 * weights[k]:.0f} %') for k in shown]
  return '\n'.join(lines) or 'no class'


def operations(photos: Sequence[np.ndarray], size: int = 224) -> Rows:
  """Return every operation at several strengths, applied to two photos.

  Args:
    photos: two arrays, (H, W, 3) uint8.
    size: rows and columns that the operations see, in pixels (some arguments are in pixels); shown at half the size.

  Returns:
    Rows for `pictures.draw`: RandAugment's operations on the left, TrivialAugment's on the right; then the other
    transforms, two per row, and mixtures.
  """
  square = parse(f'resize_small({size})|central_crop', (size, size))
  images = [square(photo, _rng(0)) for photo in photos]
  left, right = randaugment.RANDAUGMENT, randaugment.TRIVIAL_WIDE
  rows = [_at_strengths('RandAugment', name, left, _MAGNITUDES, images)
          + _at_strengths('TrivialAugment', name, right, _STRENGTHS, images) for name in {**left, **right}]
  halves = [_transformed(spec, photos if spec.startswith(_WHOLE_PHOTO) else images, size) for spec in _SPECS]
  halves += [_mixtures(images, config) for config in _MIXTURES]
  rows += [first + second for first, second in zip(halves[::2], halves[1::2], strict=True)]
  shrink = parse('resize', (size // 2, size // 2))
  return [[cell and (shrink(cell[0], _rng(0)), cell[1]) for cell in row] for row in rows]


def read_photos(paths: Sequence[str]) -> list[np.ndarray]:
  """Return the pixels of two photos, (H, W, 3) uint8.

  Raises:
    UserError: not two paths, or not images.
    FileError: a file that cannot be read.
  """
  if len(paths) != 2:
    raise UserError(f'--operations: expected two photos, such as --operations one.jpg two.jpg; got {len(paths)}')
  photos = []
  for path in paths:
    try:
      photos.append(decode(local(path).read_bytes(), 3, upright=True))
    except OSError as error:
      raise FileError(f'{path}: cannot read the photo: {error}') from error
    except UserError as error:
      raise UserError(f'{path}: {error}') from error
  return photos


def _at_strengths(policy: str, name: str, table: Mapping[str, Any], strengths: Sequence[int],
                  images: Sequence[np.ndarray]) -> list[Cell | None]:
  """Return the cells of one operation; empty ones if the policy does not have it."""
  if name not in table:
    return [None for _ in strengths for _ in images]
  return [(from_pillow(table[name](to_pillow(image), strength, _rng(0))), f'{policy}\n{name} {strength}')
          for image in images for strength in strengths]


def _transformed(spec: str, images: Sequence[np.ndarray], size: int) -> list[Cell | None]:
  """Return the cells of one transform, with several seeds."""
  transform = parse(spec, (size, size))
  return [(transform(image, _rng(seed)), spec) for image in images for seed in range(len(_STRENGTHS))]


def _mixtures(images: Sequence[np.ndarray], config: MixConfig) -> list[Cell | None]:
  """Return the cells of one kind of mixing of two images, each with its own weight."""
  mixing = batch_mixing.build(config, num_classes=2)
  assert mixing is not None
  kinds = ' '.join(name for name, alpha in dataclasses.asdict(config).items() if alpha is not None)
  columns = []
  for step in range(len(_STRENGTHS)):
    batch = {'image': jnp.asarray(np.stack(images), jnp.float32), 'label': jnp.arange(2)}
    mixed = mixing(batch, example_keys(0, step, jnp.arange(2)))
    pixels, weights = np.rint(np.asarray(mixed['image'])).astype(np.uint8), np.diag(np.asarray(mixed['label']))
    columns.append([(image, f'{kinds} {100 * weight:.0f} %') for image, weight in zip(pixels, weights, strict=True)])
  return [cell for row in zip(*columns, strict=True) for cell in row]


def _rng(seed: int) -> np.random.Generator:
  return np.random.default_rng(seed)
