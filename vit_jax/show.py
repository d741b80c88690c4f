"""Draws what the model will see: `python -m vit_jax.show --config=configs/digits.py --output=sheet.png`.

A row for each of some examples, spread evenly over the training split: on the left as evaluation sees it, then as
training does in one epoch after another, augmented and mixed as the config says; the classes' shares stand below.
Nothing is trained.
--operations draws all operations at several strengths instead, on the photographs that are given as arguments.
"""
from absl import app
from absl import flags
from ml_collections.config_flags import config_flags
import numpy as np

from vit_jax.run import cli as commands
from vit_jax.main import RecipeParser


def examples(config, count, draws):
  """What the model will see of some examples.

  Args:
    config: ConfigDict or dict, see `configs/`.
    count: examples.
    draws: of each, in training.

  Returns:
    (rows, titles) for `contact_sheet.draw`.

  Raises:
    ValueError: a bad config or number.
  """
  from vit_jax.run import config as config_lib
  from vit_jax.data.loading.dataset import Dataset
  from vit_jax.data.loading import pipeline
  config = config_lib.resolve(config)
  # An even batch, as mixing pairs its images: it may reach into the next epoch.
  keys = dict(config.data.to_dict(), batch_size=count + count % 2, repeats=1, cache=False)
  data = Dataset(config.seed, 0, 1, **keys)
  if not 1 <= count <= len(data.source) or draws < 1:
    raise ValueError(f'expected --count to be 1..{len(data.source)} and --draws at least 1, got {count} and {draws}')
  data.source = data.source.keep(np.linspace(0, len(data.source) - 1, count).astype(int).tolist())
  evaluation = next(iter(pipeline.eval_batches(data.source, batch_size=count, image_size=data.image_size,
                                               transform=keys['eval_transform'])))
  rows = [[(image, _named(label, data.source.class_names))] for image, label in
          zip(evaluation['image'], evaluation['label'])]
  by_id = dict(zip(evaluation['id'].tolist(), rows))
  stream = _mixed(data, config)
  while min(map(len, rows)) <= draws:
    batch = next(stream)
    for image, label, example in zip(batch['image'], batch['label'], batch['id'].tolist()):
      by_id[example].append((image, _named(label, data.source.class_names)))
  return [row[:draws + 1] for row in rows], ['evaluation', *(f'training {draw}' for draw in range(1, draws + 1))]


def _mixed(data, config):
  """The training batches, mixed as the step mixes them, images uint8 still."""
  from vit_jax.objectives import batch_mixing as mix
  from vit_jax.training.step import example_keys
  mixing = mix.build(data.source.num_classes, **config.mix)
  for step, batch in enumerate(data.train_batches()):
    if mixing:
      batch = dict(batch, image=batch['image'].astype(np.float32))
      batch = {name: np.asarray(x) for name, x in mixing(batch, example_keys(config.seed, step, batch['rng'])).items()}
      batch['image'] = np.rint(batch['image']).astype(np.uint8)
    yield batch


def _named(label, class_names):
  """A label in words: 'cat', or of a mixture 'cat 70 %' and 'dog 30 %', the largest first, one a line."""
  shares = np.bincount([label], minlength=len(class_names)) if np.ndim(label) == 0 else np.asarray(label)
  seen = [k for k in np.argsort(-shares, kind='stable') if shares[k] >= 0.005][:2]
  whole = all(shares[k] > 0.995 for k in seen)
  return '\n'.join(class_names[k] if whole else f'{class_names[k]} {100 * shares[k]:.0f} %' for k in seen) or 'no class'


def operations(photos, size=224):
  """Every operation at several strengths, on two photographs.

  Args:
    photos: two arrays, (H, W, 3) uint8.
    size: rows and columns that operations see, pixels (some count in pixels); half as many are shown.

  Returns:
    Rows for `contact_sheet.draw`: RandAugment's operations on the left, TrivialAugment's on the right; then the other
    transforms, two a row, and mixtures.
  """
  from vit_jax.data.transforms import randaugment
  from vit_jax.data.transforms.spec import parse
  square = parse(f'resize_small({size})|central_crop', (size, size))
  images = [square(photo, None) for photo in photos]
  left, right = randaugment.RANDAUGMENT, randaugment.TRIVIAL_WIDE
  rows = [_at_strengths('RandAugment', name, left, _MAGNITUDES, images)
          + _at_strengths('TrivialAugment', name, right, _STRENGTHS, images) for name in {**left, **right}]
  drawn = [_drawn(spec, photos if spec.startswith(('inception', 'resize_small')) else images, size) for spec in _SPECS]
  drawn += [_mixtures(images, **strength) for strength in _MIXTURES]
  rows += [first + second for first, second in zip(drawn[::2], drawn[1::2])]
  shrink = parse('resize', (size // 2, size // 2))
  return [[cell and (shrink(cell[0], None), cell[1]) for cell in row] for row in rows]


def _at_strengths(policy, name, table, strengths, images):
  """Cells of one operation; empty ones where a table has none of this name."""
  from vit_jax.data.images.pillow import from_pillow, to_pillow
  if name not in table:
    return [None] * len(strengths) * len(images)
  applied = lambda image, strength: table[name](to_pillow(image), strength, np.random.default_rng(0))
  return [(from_pillow(applied(image, strength)), f'{policy}\n{name} {strength}') for image in images for strength in strengths]


def _drawn(spec, images, size):
  """Cells of one transform's draws."""
  from vit_jax.data.transforms.spec import parse
  transform = parse(spec, (size, size))
  return [(transform(image, np.random.default_rng(seed)), spec) for image in images for seed in range(len(_STRENGTHS))]


def _mixtures(images, **strength):
  """Cells of one kind of mixing of two images, each with its own part."""
  from vit_jax.objectives import batch_mixing as mix
  from vit_jax.training.step import example_keys
  mixing, cells = mix.build(2, **strength), []
  for step in range(len(_STRENGTHS)):
    batch = dict(image=np.stack(images).astype(np.float32), label=np.arange(2))
    after = mixing(batch, example_keys(0, step, np.arange(2)))
    images_, shares = np.rint(np.asarray(after['image'])).astype(np.uint8), np.diag(np.asarray(after['label']))
    cells.append([(image, f"{' '.join(strength)} {100 * share:.0f} %") for image, share in zip(images_, shares)])
  return [cell for image in zip(*cells) for cell in image]


def main(argv):
  """Draws, writes and says where."""
  values = flags.FLAGS

  def write():
    from vit_jax.base import pictures as contact_sheet
    if values.operations:
      sheet = contact_sheet.draw(operations(_photos(argv[1:])))
    elif values.config is None or len(argv) > 1:
      raise app.UsageError('expected --config=RECIPE, or --operations and two photographs')
    else:
      sheet = contact_sheet.draw(*examples(values.config, values.count, values.draws))
    contact_sheet.save(sheet, values.output)
    print(f'Wrote {values.output}, {sheet.width} × {sheet.height} pixels.')

  commands.call(write)


def _photos(paths):
  from vit_jax.data.images.decode import decode
  if len(paths) != 2:
    raise ValueError(f'expected two photographs, such as: --operations one.jpg two.jpg; got {len(paths)}')
  photos = []
  for path in paths:
    with open(path, 'rb') as file:
      photos.append(decode(file.read(), 3, True))
  return photos


# As many of one as of the other: the halves of a row.
_MAGNITUDES = (0, 10, 15)
_STRENGTHS = (5, 15, 30)
_SPECS = (
    'inception_crop', 'resize_small(256)|random_crop', 'flip', 'pad_crop(32)', 'affine(20, 0.1, 0.2)',
    'random_erasing(1.0)', 'color_jitter(0.4, 0.4, 0.4, 0.1)', 'color_jitter(hue=0.5)', 'randaugment(2, 10)', 'trivial_augment',
    'resize_small(256)|central_crop',
)
_MIXTURES = (dict(mixup=0.8), dict(cutmix=1.0), dict(mixup=0.8, cutmix=1.0))

if __name__ == '__main__':  # flags are the process's: not on import, as from a test or notebook
  config_flags.DEFINE_config_file(
      'config', None, 'Recipe, a file of configs/; --config.SECTION.KEY=VALUE overrides a key.', lock_config=False,
      accept_new_attributes=True)
  flags.FLAGS['config'].parser = RecipeParser('config', lock_config=False)
  flags.DEFINE_integer('count', 8, 'Examples, a row each.')
  flags.DEFINE_integer('draws', 6, 'How often each is drawn as training sees it.')
  flags.DEFINE_bool('operations', False, 'Draw all operations on two photographs instead.')
  flags.DEFINE_string('output', 'sheet.png', 'Where the picture goes; .png or .jpg.')
  app.run(main)
