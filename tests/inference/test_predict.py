"""Predictions for images of every kind."""
import pathlib
import subprocess
import sys

from flax import nnx
import jax
import numpy as np
from PIL import Image
import pytest

from tests.conftest import encode
import vit_jax
from vit_jax.base.errors import UserError
from vit_jax.base.preprocessing import Preprocessing
from vit_jax.inference import predict as inference
from vit_jax.models.config import ViTConfig

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def make_model(channels=3, num_classes=5, transform='resize', mean=MEAN, std=STD):
  model = vit_jax.VisionTransformer(ViTConfig(image_size=(8, 12), patch_size=4, width=16, depth=2, heads=2, mlp_dim=32,
                                              channels=channels, num_classes=num_classes), rngs=nnx.Rngs(0))
  if model.head is not None:  # a new head is zero, and every image would get the same logits
    model.head.kernel[...] = 0.5 * jax.random.normal(jax.random.key(1), model.head.kernel.shape)
  model.preprocessing = Preprocessing(transform=transform, mean=mean, std=std)
  return model


def make_image(rows=8, columns=12, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), dtype=np.uint8)


@pytest.fixture(scope='module')
def model():
  return make_model()


def test_preprocess_is_the_models_own(model):
  image = make_image()
  expected = (image.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
  prepared = vit_jax.preprocess(model, image)
  assert prepared.shape == (1, 8, 12, 3) and prepared.dtype == np.float32
  np.testing.assert_allclose(prepared[0], expected, atol=1e-6)


def test_transform_is_applied():
  image = make_image(16, 48)
  model = make_model(transform='resize_small(8)|central_crop', mean=0.0, std=1.0)
  small = np.asarray(Image.fromarray(image).resize((24, 8), Image.Resampling.BILINEAR))
  np.testing.assert_allclose(vit_jax.preprocess(model, image)[0] * 255, small[:, 6:18], atol=1e-3)


def test_every_kind_of_image(model, tmp_path):
  image = make_image()
  path = tmp_path / 'image.png'
  path.write_bytes(encode(image))
  expected = vit_jax.preprocess(model, image)
  opaque = np.concatenate([image, np.full((8, 12, 1), 255, np.uint8)], axis=2)
  for kind in (path, str(path), path.read_bytes(), Image.fromarray(image), opaque):
    np.testing.assert_array_equal(vit_jax.preprocess(model, kind), expected)
  grey = image[:, :, 0]
  repeated = vit_jax.preprocess(model, np.repeat(grey[:, :, None], 3, axis=2))
  for kind in (grey, grey[:, :, None]):
    np.testing.assert_array_equal(vit_jax.preprocess(model, kind), repeated)


def test_photographs_are_turned_upright(model):
  exif = Image.Exif()
  exif[0x0112] = 6
  turned = make_image(12, 8)
  np.testing.assert_array_equal(vit_jax.preprocess(model, encode(turned, exif=exif)),
                                vit_jax.preprocess(model, turned.swapaxes(0, 1)[:, ::-1]))


def test_grey_models_see_grey():
  model = make_model(channels=1, mean=0.0, std=1.0)
  prepared = vit_jax.preprocess(model, make_image())
  assert prepared.shape == (1, 8, 12, 1)
  np.testing.assert_allclose(prepared[0, :, :, 0] * 255, make_image() @ [0.299, 0.587, 0.114], atol=1)


@pytest.mark.parametrize('image, message', [
    (np.zeros((8, 12, 3), np.float32), r'uint8 array .* got float32 of shape \(8, 12, 3\)'),
    (np.zeros((1, 8, 12, 3), np.uint8), r'got uint8 of shape \(1, 8, 12, 3\)'),
    (np.zeros((8, 12, 2), np.uint8), r'got uint8 of shape \(8, 12, 2\)'),
    (3.5, "got <class 'float'>"), (b'text', 'got 4 bytes .* cannot be decoded')])
def test_other_kinds_are_described(model, image, message):
  with pytest.raises(UserError, match=message):
    vit_jax.preprocess(model, image)


def test_a_model_must_say_how_its_images_are_prepared():
  bare = make_model()
  del bare.preprocessing
  with pytest.raises(UserError, match='set model.preprocessing = vit_jax.base.preprocessing.Preprocessing'):
    vit_jax.preprocess(bare, make_image())


@pytest.mark.parametrize('loss, reference', [('softmax', jax.nn.softmax), ('sigmoid', jax.nn.sigmoid)])
def test_probabilities_are_the_models_in_any_batches(model, loss, reference):
  images = [make_image(seed=seed) for seed in range(7)]
  expected = reference(model(np.concatenate([vit_jax.preprocess(model, image) for image in images])))
  for batch_size in (1, 3, 7, 32):
    probabilities = inference.predict(model, iter(images), batch_size, loss)
    assert probabilities.shape == (7, 5) and probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)
  assert np.ptp(expected, axis=0).max() > 0.01  # the images get different probabilities
  assert inference.predict(model, []).shape == (0, 5)


def test_one_program_for_all_batches(model, monkeypatch):
  shapes = []
  call = type(model).__call__
  monkeypatch.setattr(type(model), '__call__', lambda self, images: shapes.append(images.shape) or call(self, images))
  inference.predict(model, [make_image(seed=seed) for seed in range(7)], 3)
  assert shapes == [(3, 8, 12, 3)]  # traced once, the last batch padded


def test_unreadable_images_keep_their_place(model, tmp_path):
  broken = tmp_path / 'broken.png'
  broken.write_bytes(encode(make_image())[:60])
  images = [make_image(seed=0), broken, tmp_path / 'missing.png', make_image(seed=1), broken, broken]
  outcomes = list(inference.stream(model, images, batch_size=2))
  assert [outcome[0] is image for outcome, image in zip(outcomes, images, strict=True)] == [True] * 6
  assert [type(outcome).__name__ for _, outcome in outcomes] == [
      'ndarray', 'DecodeError', 'MissingFileError', 'ndarray', 'DecodeError', 'DecodeError']
  expected = inference.predict(model, [images[0], images[3]])
  np.testing.assert_allclose([outcomes[0][1], outcomes[3][1]], expected, atol=1e-6)
  with pytest.raises(UserError, match=r'image 1: .*broken.png: expected an encoded image'):
    inference.predict(model, images)


def test_bad_arguments(model):
  with pytest.raises(UserError, match="loss: unknown 'hinge'; choose from .'sigmoid', 'softmax'"):
    inference.predict(model, [make_image()], loss='hinge')
  with pytest.raises(UserError, match='batch_size: must be at least 1, got 0'):
    inference.predict(model, [make_image()], batch_size=0)
  with pytest.raises(UserError, match='model: has no head'):
    inference.predict(make_model(num_classes=None), [make_image()])


def test_images_do_not_need_the_data_sets():
  """Importing the datasets would cost every prediction seconds."""
  code = "import sys, vit_jax; vit_jax.preprocess; sys.exit(bool({'tensorflow_datasets', 'grain'} & set(sys.modules)))"
  assert subprocess.run([sys.executable, '-c', code], cwd=pathlib.Path(__file__).parent.parent.parent).returncode == 0
