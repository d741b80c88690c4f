"""From ordinary images (paths, bytes, Pillow images, arrays) to a model's input, and to probabilities."""
import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
import os
from typing import Any, TypeVar

from flax import nnx
import jax
import numpy as np
from PIL import Image

from vit_jax.base import files
from vit_jax.base.choices import choose
from vit_jax.base.errors import MissingFileError, UserError
from vit_jax.base.preprocessing import Normalization, Preprocessing
from vit_jax.data.images import decode
from vit_jax.data.transforms import spec

# A path, local or remote; the bytes of an image file; a Pillow image; uint8 (H, W) or (H, W, 1, 3 or 4).
ImageLike = str | os.PathLike[str] | bytes | Image.Image | np.ndarray
# An image and its probabilities (classes,) float32, or why it could not be read.
Outcome = tuple[ImageLike, np.ndarray | Exception]

T = TypeVar('T')
R = TypeVar('R')

_THREADS = 4  # read and decode while the model computes


def preprocess(model: Any, image: ImageLike) -> jax.Array:
  """Return an image as the model's input: `logits = model(preprocess(model, 'cat.jpg'))`.

  Args:
    model: from `vit_jax.load`, or any model with an attribute `preprocessing` (see `base.preprocessing.Preprocessing`).
    image: a path, local or remote, the bytes of a file, a Pillow image, or a uint8 array (H, W) or (H, W, 1, 3 or 4).

  Returns:
    (1, rows, columns, channels) float32, normalized.

  Raises:
    UserError: not an image of such a kind, bytes that cannot be decoded, or a model without preprocessing.
    OSError: a file that cannot be read.
  """
  return jax.jit(_normalization(model))(make_reader(model)(image)[None])


def predict(model: Any, images: Iterable[ImageLike], batch_size: int = 32, loss: str | None = None) -> np.ndarray:
  """Return the probability of each class for each image.

  Args:
    model: as for `preprocess`.
    images: what `preprocess` takes.
    batch_size: images that the model sees at once.
    loss: what the model was trained with: 'softmax' (one class per image) or 'sigmoid' (each class independently);
      None: what the model says of itself, and 'softmax' if it says nothing.

  Returns:
    (number of images, classes) float32.

  Raises:
    UserError: an image that cannot be read, named by the message; a model without preprocessing or without a head.
  """
  rows = []
  for index, (image, outcome) in enumerate(stream(model, list(images), batch_size, loss)):
    if isinstance(outcome, Exception):
      raise UserError(f'image {index}: {describe_error(image, outcome)}') from outcome
    rows.append(outcome)
  return np.stack(rows) if rows else np.zeros((0, model.num_classes), np.float32)


def stream(model: Any, images: Sequence[ImageLike], batch_size: int = 32,
           loss: str | None = None) -> Iterator[Outcome]:
  """Yield (image, probabilities (classes,) float32) in order, or (image, error) if it cannot be read.

  Args:
    model, images, batch_size, loss: as for `predict`.
  """
  if batch_size < 1:
    raise UserError(f'batch_size: must be at least 1, got {batch_size}')
  size = max(1, min(batch_size, len(images)))  # one image should not cost a batch of 32
  read, classify = make_reader(model), _Classifier(model, size, loss or getattr(model, 'loss', 'softmax'))

  def read_or_error(image: ImageLike) -> np.ndarray | Exception:
    try:
      return read(image)
    except (OSError, ValueError) as error:
      return error

  with futures.ThreadPoolExecutor(_THREADS) as pool:
    for chunk, outcomes in _one_ahead(pool, read_or_error, images, size):
      good = [outcome for outcome in outcomes if not isinstance(outcome, Exception)]
      probabilities = iter(classify(np.stack(good)) if good else [])
      yield from ((image, outcome if isinstance(outcome, Exception) else next(probabilities))
                  for image, outcome in zip(chunk, outcomes, strict=True))


def describe_error(image: ImageLike, error: Exception) -> str:
  """Return why an image could not be read, with its path, if it has one, once."""
  path = os.fspath(image) if isinstance(image, (str, os.PathLike)) else ''
  return str(error) if path in str(error) else f'{path}: {error}'


def make_reader(model: Any) -> Callable[[ImageLike], np.ndarray]:
  """Return a function from an image, as `preprocess` takes it, to (rows, columns, channels) uint8, not normalized."""
  transform = spec.parse(_preprocessing(model).transform, model.image_size)
  # The generator is for random transforms; those of an evaluation rarely are.
  return lambda image: transform(_pixels(image, model.channels), np.random.default_rng(0))


class _Classifier:
  """Computes probabilities of (n, rows, columns, channels) uint8 images, n <= size, with one compiled program."""

  def __init__(self, model: Any, size: int, loss: str):
    if model.num_classes is None:
      raise UserError('model: has no head, so it predicts no classes; fine-tune it first, or use model.embed in Python')
    probabilities, normalize = choose(PROBABILITIES, loss, 'loss'), _normalization(model)
    graphdef, self._params = nnx.split(model)
    self._step = jax.jit(lambda params, images: probabilities(nnx.merge(graphdef, params)(normalize(images))))
    self._size = size

  def __call__(self, images: np.ndarray) -> np.ndarray:
    padding = np.zeros((self._size - len(images), *images.shape[1:]), np.uint8)
    return np.asarray(self._step(self._params, np.concatenate([images, padding])))[:len(images)]


def _one_ahead(pool: futures.Executor, function: Callable[[T], R], items: Sequence[T],
               size: int) -> Iterator[tuple[Sequence[T], list[R]]]:
  """Yield (items, results) in chunks of `size` while the pool works on the next chunk."""
  waiting = collections.deque()
  for start in range(0, len(items), size):
    chunk = items[start:start + size]
    waiting.append((chunk, [pool.submit(function, item) for item in chunk]))
    if len(waiting) > 1:
      chunk, results = waiting.popleft()
      yield chunk, [result.result() for result in results]
  for chunk, results in waiting:
    yield chunk, [result.result() for result in results]


def _pixels(image: ImageLike, channels: int) -> np.ndarray:
  """Return an image, as `preprocess` takes it, as (H, W, channels) uint8, upright."""
  if isinstance(image, (str, os.PathLike)):
    path = files.expand(image)
    try:
      image = path.read_bytes()
    except FileNotFoundError as error:
      raise MissingFileError(f'{os.fspath(path)}: no such image') from error
  if isinstance(image, bytes):
    return decode.decode(image, channels, upright=True)
  if isinstance(image, Image.Image):
    return decode.to_array(image, channels, upright=True)
  pixels = np.asarray(image)
  if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (1,), (3,), (4,)):
    got = f'{pixels.dtype} of shape {pixels.shape}' if isinstance(image, np.ndarray) else repr(type(image))
    raise UserError('image: expected a path, the bytes of an image file, a Pillow image, or a uint8 array of shape '
                    f'(H, W) or (H, W, 1, 3 or 4), got {got}')
  return decode.to_array(Image.fromarray(pixels[:, :, 0] if pixels.shape[2:] == (1,) else pixels), channels)


def _preprocessing(model: Any) -> Preprocessing:
  preprocessing = getattr(model, 'preprocessing', None)
  if preprocessing is None:
    raise UserError('model: does not say how its images are prepared; models from vit_jax.load do, for others set '
                    'model.preprocessing = vit_jax.base.preprocessing.Preprocessing(transform, mean, std)')
  return preprocessing


def _normalization(model: Any) -> Normalization:
  preprocessing = _preprocessing(model)
  return Normalization(preprocessing.mean, preprocessing.std)


PROBABILITIES: dict[str, Callable[[jax.Array], jax.Array]] = {
    'sigmoid': jax.nn.sigmoid,
    'softmax': jax.nn.softmax,
}
