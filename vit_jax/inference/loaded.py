"""A loaded model: any model of `models/`, with what is needed to predict from ordinary images."""
from collections.abc import Iterable
import functools
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from vit_jax.base.preprocessing import Preprocessing
from vit_jax.inference import predict as predict_lib
from vit_jax.inference.predict import ImageLike
from vit_jax.models.base import Model
from vit_jax.models.registry import MODELS

_LOADED = 'Loaded'


@runtime_checkable
class LoadedModel(Model, Protocol):
  """What `vit_jax.load` returns: a model with the conveniences below.

  Attributes:
    preprocessing: how images are prepared for the model.
    class_names: one name per logit, or None if unknown.
    loss: what the model was trained with, 'softmax' or 'sigmoid'.
    architecture: what the file says it is, see `Weights.architecture`.
  """
  preprocessing: Preprocessing
  class_names: tuple[str, ...] | None
  loss: str
  architecture: str | None

  def preprocess(self, image: ImageLike) -> jax.Array:
    """Return an image as model input, (1, rows, columns, channels) float32; see `inference.predict.preprocess`."""
    ...

  def predict(self, images: Iterable[ImageLike], batch_size: int = 32, loss: str | None = None) -> np.ndarray:
    """Return probabilities, (number of images, classes) float32; see `inference.predict.predict`."""
    ...


class _FromImages:
  """The methods that a loaded model has in addition to those of its class."""

  def preprocess(self, image: ImageLike) -> jax.Array:
    """Return an image as model input, (1, rows, columns, channels) float32; see `inference.predict.preprocess`."""
    return predict_lib.preprocess(self, image)

  def predict(self, images: Iterable[ImageLike], batch_size: int = 32, loss: str | None = None) -> np.ndarray:
    """Return probabilities, (number of images, classes) float32; see `inference.predict.predict`."""
    return predict_lib.predict(self, images, batch_size, loss)


@functools.cache
def loaded_class(model_class: type) -> Any:
  """Return the subclass of a model's class that has the methods of `LoadedModel`.

  A subclass, because models/ knows nothing of files and image transforms.
  """
  return type(model_class)(f'{_LOADED}{model_class.__name__}', (_FromImages, model_class),
                           {'__doc__': model_class.__doc__, '__module__': __name__})


def __getattr__(name: str) -> Any:
  """Return a class of `loaded_class` by its name, which is how pickle finds it."""
  for model_class in MODELS.values():
    if name == f'{_LOADED}{model_class.__name__}':
      return loaded_class(model_class)
  raise AttributeError(f'module {__name__} has no attribute {name!r}')
