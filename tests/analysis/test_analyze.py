"""Figures of small models against direct computation, and what the command writes."""
import csv
from html.parser import HTMLParser

from flax import nnx
import jax
import numpy as np
from PIL import Image
import pytest

from tests import golden_files
from vit_jax import analyze
from vit_jax.analysis import filters, inputs, measure, position_similarity, probe, rollout
from vit_jax.analysis.report import folder, page
from vit_jax.base.errors import UserError
from vit_jax.base.preprocessing import Preprocessing
from vit_jax.models.config import ViTConfig
from vit_jax.models.vit import VisionTransformer
from vit_jax.statistics import attention, cka, tokens

RNG = np.random.default_rng(0)


def make_model(**fields):
  config = ViTConfig(**{**dict(width=8, depth=2, heads=2, mlp_dim=16, patch_size=4, image_size=(8, 12), num_classes=3),
                        **fields})
  model = VisionTransformer(config, rngs=nnx.Rngs(0))
  model.preprocessing = Preprocessing()
  return model


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  """Two class folders of 8 images each: bright above or bright below."""
  folder = tmp_path_factory.mktemp('photos')
  for number in range(16):
    pixels = RNG.integers(0, 100, (20, 20, 3), dtype=np.uint8)
    half = slice(0, 10) if number % 2 else slice(10, 20)
    pixels[half] += 150
    path = folder / ('above' if number % 2 else 'below <b>') / f'{number:02}.png'
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path)
  return folder


class Page(HTMLParser):
  """Collects what a page links to, its pictures and its text; tags must be closed in order."""

  def __init__(self, text):
    super().__init__()
    self.links, self.pictures, self.words, self.open = [], [], [], []
    self.feed(text)
    self.close()

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    self.links += [attrs[name] for name in ('href', 'src') if name in attrs and not attrs[name].startswith('data:')]
    self.pictures += [attrs['src']] if tag == 'img' else []
    self.open += [] if tag in ('meta', 'img') else [tag]

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.words.append(data)


@pytest.mark.parametrize('fields', [dict(registers=1), dict(pool='gap')])
def test_batches_give_the_statistics_of_all_images(fields):
  """Seven images, in batches of 4 and 3; a batch is padded, which must not count."""
  model = make_model(**fields)
  pixels = RNG.integers(0, 256, (7, 8, 12, 3), dtype=np.uint8)
  batches = [inputs.Batch([str(k) for k in range(len(part))], [part]) for part in (pixels[:4], pixels[4:])]
  (found,), (similar,), paths = measure.measure([model], batches, 4, measure.QUANTITIES)
  assert len(paths) == 7
  images, config = pixels / np.float32(255) * 2 - 1, model.config
  prefix = config.num_prefix_tokens
  direct = nnx.jit(lambda model: (model.attention_weights(images), [model.features(images, layer) for layer in range(3)]))
  weights, features = jax.device_get(direct(model))
  distance = attention.mean_distance(weights, (2, 3), (4, 4), prefix)
  np.testing.assert_allclose(found.distance, np.mean(distance, axis=1), rtol=1e-4)
  np.testing.assert_allclose(found.entropy, np.mean(attention.entropy(weights), axis=1), rtol=1e-4)
  for layer, x in enumerate(features):
    norms = np.asarray(tokens.norms(x[:, prefix:]))
    expected = [*(np.quantile(norms, q, axis=1).mean() for q in (0.05, 0.5, 0.95)), norms.max(axis=1).mean()]
    np.testing.assert_allclose(found.norms[layer, :4], expected, rtol=1e-4)
    np.testing.assert_allclose(found.pooled[layer], x[:, prefix:].mean(axis=1), atol=1e-5)
  assert len(found.class_tokens) == (3 if config.class_token else 0)
  # Three images are too few: only the first batch counts.
  expected = [[cka.linear(x[:4], y[:4], debiased=True) for y in features] for x in features]
  np.testing.assert_allclose(similar, expected, rtol=1e-2, atol=1e-3)


def test_components_of_filters_that_differ_in_two_directions():
  """Filters are a mean plus a lot of one picture and a little of another; these two are the components."""
  model = make_model(width=40, heads=4)
  first, second = np.linalg.qr(RNG.normal(size=(48, 2)))[0].T
  amounts = RNG.normal(size=(40, 2))
  amounts = np.linalg.qr(amounts - amounts.mean(axis=0))[0] * [5, 1]
  kernel = 7 + amounts @ np.stack([first, second])
  model.patch_embed.kernel[...] = kernel.T.reshape(4, 4, 3, 40)
  found = filters.components(model, 2)
  for component, expected in zip(found, (first, second), strict=True):
    expected = expected * np.sign(expected[np.abs(expected).argmax()])
    np.testing.assert_allclose(component.ravel(), expected, atol=1e-4)
  pictures = filters.to_pictures(found)
  assert pictures.min() == 0 and pictures.max() == 1 and pictures.shape == (2, 4, 4, 3)


@pytest.mark.parametrize('channels', [1, 2, 5])
def test_filters_of_any_number_of_channels(channels):
  found = filters.components(make_model(channels=channels))
  assert found.shape == (7, 4, 4, channels)  # 8 filters
  assert filters.to_pictures(found).shape == (7, 4, 4, 3)


@pytest.mark.parametrize('fields', [{}, dict(position='learned2d'), dict(position='sincos2d'),
                                    dict(position_at='shared'), dict(position='learned2d', position_at='shared')])
def test_grid_of_positions_is_what_the_model_adds(fields):
  model = make_model(**fields)
  position = model.position if model.config.position_at == 'stem' else model.encoder.position
  np.testing.assert_allclose(position_similarity.grid_of(model), position()[0], atol=1e-6)
  assert position_similarity.grid_of(make_model(position='none')) is None


def test_rollout_of_a_model_and_its_overlay():
  model = make_model(registers=2)
  image = RNG.integers(0, 256, (8, 12, 3), dtype=np.uint8)
  found = rollout.make_rollout(model)(image)
  weights = model.attention_weights(image[None] / np.float32(255) * 2 - 1)
  np.testing.assert_allclose(found, attention.rollout_map(attention.rollout(weights)[0], (2, 3), 3), atol=1e-6)
  # The brightest place of the mask leaves the image as it is, the darkest is black; pixels without a patch are black.
  white = np.full((9, 12, 3), 255, np.uint8)
  drawn = rollout.overlay(white, np.array([[0.0, 0.1, 0.2], [0.1, 0.5, 1.0]]), (4, 4))
  assert drawn.max() == 255 and not drawn[0, 0].any() and not drawn[8].any()
  assert (drawn[7, 11] > drawn[7, 0]).all() and (drawn[7, 11] > drawn[0, 11]).all()


def test_probe():
  """Two classes that one feature separates, and features of noise."""
  classes = ['ant', 'bee'] * 40
  noise = RNG.normal(size=(80, 3))
  clear = noise + np.array([[0, 0, 0], [9, 0, 0]] * 40)
  found = probe.accuracies([noise, clear], classes)
  assert found[1] == 1.0 and found[0] < 0.8
  train, test = probe.split(classes)
  assert not set(train) & set(test) and len(test) == 20 and len({classes[k] for k in test}) == 2
  assert 'two class folders' in probe.why_not(['ant'] * 9)
  assert 'two images of each class' in probe.why_not(['ant', 'ant', 'bee'])


def test_command_on_two_models(photos, tmp_path, capsys):
  """A Vision Transformer beside a Mixer, which has no attention; an image that is none; a second run replaces."""
  (photos / 'above' / 'broken.png').write_bytes(b'no image')
  first, second = golden_files.MODELS['vit_token'], golden_files.MODELS['mixer']
  output = tmp_path / 'deep' / 'analysis'
  unreadable = analyze.run(str(first), str(photos), str(output), source2=str(second), count=17, batch_size=8)
  printed = capsys.readouterr()
  (photos / 'above' / 'broken.png').unlink()
  assert unreadable == 1 and 'broken.png' in printed.err and 'Wrote' in printed.out
  names = {path.name for path in output.iterdir()}
  assert names == {'index.html', 'numbers.npz', 'numbers.csv', *(f'{name}.png' for name in analyze.FIGURES)}
  for name in analyze.FIGURES:
    with Image.open(output / f'{name}.png') as picture:
      assert np.asarray(picture.convert('L')).std() > 5, name
  text = (output / 'index.html').read_text()
  parsed = Page(text)
  assert parsed.links == [f'#{name}' for name in analyze.FIGURES] and not parsed.open and 'http' not in text
  assert len(parsed.pictures) == 8 and all(src.startswith('data:image/png;base64,') for src in parsed.pictures)
  words = ' '.join(parsed.words)
  assert "a model of kind 'mixer' has no attention" in words and '16 from' in words
  with np.load(output / 'numbers.npz') as numbers:
    assert numbers['distance/distance'].shape == (2, 3) and 'distance/distance_2' not in numbers
    assert numbers['cka/cka_between'].shape == (3, 3) and numbers['rollout/maps'].shape == (6, 4, 4)
    np.testing.assert_allclose(np.diag(numbers['cka/cka']), 1, atol=1e-6)
    distance = numbers['distance/distance']
  with (output / 'numbers.csv').open() as file:
    rows = [row for row in csv.DictReader(file) if row['figure'] == 'distance']
  assert [float(row['value']) for row in rows] == pytest.approx(distance.ravel(), rel=1e-5)
  (output / 'mine.txt').write_text('stays')
  analyze.run(str(first), str(photos), str(output), figures=('filters',), count=3)
  assert {path.name for path in output.iterdir()} == {'index.html', 'numbers.npz', 'numbers.csv', 'filters.png',
                                                      'mine.txt'}


def test_a_folder_that_was_not_written_by_the_command_is_left_alone(photos, tmp_path):
  (tmp_path / 'index.html').write_text('<html></html>')
  with pytest.raises(UserError, match='--output: .* exists already'):
    analyze.run('model.npz', str(photos), str(tmp_path))
  assert (tmp_path / 'index.html').read_text() == '<html></html>'


@pytest.mark.parametrize('options, message', [
    (dict(figures=('filter',)), "--figures: unknown 'filter'"),
    (dict(count=0), '--count: must be at least 1'),
    (dict(batch_size=3), "--batch_size: the figure 'cka'"),
    (dict(batch_size=0, figures=('norms',)), '--batch_size: must be at least 1'),
])
def test_bad_options(photos, tmp_path, options, message):
  with pytest.raises(UserError, match=message):
    analyze.run('model.npz', str(photos), str(tmp_path / 'new'), **options)


def test_folders_without_readable_images(tmp_path):
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'bad').mkdir()
  (tmp_path / 'bad' / 'a.png').write_bytes(b'no image')
  model = str(golden_files.MODELS['vit_token'])
  with pytest.raises(UserError, match='there are no images'):
    analyze.run(model, str(tmp_path / 'empty'), str(tmp_path / 'new'))
  with pytest.raises(UserError, match='--images: expected a folder'):
    analyze.run(model, str(tmp_path / 'missing'), str(tmp_path / 'new'))
  with pytest.raises(UserError, match='none of 1 image could be read'):
    analyze.run(model, str(tmp_path / 'bad'), str(tmp_path / 'new'), figures=('norms',))
  assert not (tmp_path / 'new').exists()


def test_names_are_escaped():
  facts = [('model', '<script>alert(1)</script>')]
  text = page.render('a & b', facts, [page.Section('x', '<i>', 't', 's', b'png', ['"m": r'])])
  assert '<script>' not in text and '<i>' not in text and 'a &amp; b' in text


def test_the_list_of_figures_is_that_of_the_table():
  assert tuple(folder.FIGURES) == analyze.FIGURES
