"""The contract of a weight format."""
from collections.abc import Collection, Mapping
import dataclasses
from typing import Any, Protocol, runtime_checkable

import numpy as np

from vit_jax.pretrained.files.tensors import Tensors
from vit_jax.pretrained.formats.weights import Weights

ImageSize = int | tuple[int, int] | None
# {file name: JSON object}: the config files beside an array file.
Configs = Mapping[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Written:
  """A model laid out in a format, not yet on disk.

  Attributes:
    arrays: {name: float32 array}.
    configs: {file name: JSON object}; empty for formats without config files.
    weights: the weights as they were written; `notes` has messages about what was changed to fit the format.
  """
  arrays: dict[str, np.ndarray]
  configs: dict[str, dict[str, Any]]
  weights: Weights


@runtime_checkable
class Format(Protocol):
  """A weight format: how another code base names, shapes and describes the parameters of a Vision Transformer.

  Attributes:
    name: its row in `registry.FORMATS`.
    suffix: '.npz', a single file, or '.safetensors', a directory of arrays and config files.
    resize_method: how its own code resizes position embeddings, a name of `resize.METHODS`.
  """
  name: str
  suffix: str
  resize_method: str

  def matches(self, names: Collection[str]) -> bool:
    """Return whether a file that holds arrays of these names is in this format."""
    ...

  def read(self, tensors: Tensors, configs: Configs, image_size: ImageSize = None) -> Weights:
    """Read an open file.

    Args:
      tensors: the open file.
      configs: the config files beside it.
      image_size: what the model was trained at, for files that do not say it.

    Raises:
      UserError: the file is not in this format, or holds a model that vit_jax does not have.
    """
    ...

  def write(self, weights: Weights, approximate: bool = False) -> Written:
    """Lay weights out in this format.

    Args:
      weights: what to write.
      approximate: whether to accept that the format's own code uses another GELU or LayerNorm epsilon than the model.

    Raises:
      UserError: the format cannot hold the model; the message names the config field.
    """
    ...
