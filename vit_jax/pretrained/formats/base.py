"""The contract of a weight format."""
from collections.abc import Mapping
import dataclasses
from typing import Any, Protocol, runtime_checkable

import numpy as np

from vit_jax.pretrained.files.tensors import Tensors
from vit_jax.pretrained.formats.representable import NotRepresentable
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
class Family(Protocol):
  """A family of architectures in one format: how its code base names, shapes and describes their parameters.

  Attributes:
    resize_method: how that code resizes position embeddings, a name of `resize.METHODS`, unless `read` says otherwise.
  """
  resize_method: str

  def matches(self, tensors: Tensors, configs: Configs) -> bool:
    """Return whether an open file holds a model of this family; looks at names, shapes and configs only."""
    ...

  def read(self, tensors: Tensors, configs: Configs, image_size: ImageSize = None) -> Weights:
    """Read an open file that `matches`.

    Args:
      tensors: the open file.
      configs: the config files beside it.
      image_size: what the model was trained at, for files that do not say it.

    Raises:
      UserError: the file is damaged, or holds a model that vit_jax does not have.
    """
    ...

  def holds(self, config: Any) -> bool:
    """Return whether a model of this config belongs to this family; `write` then checks the details."""
    ...

  def write(self, weights: Weights, approximate: bool = False) -> Written:
    """Lay weights out in this family's form.

    Args:
      weights: what to write; the family `holds` its config.
      approximate: whether to accept that the format's own code uses another GELU or LayerNorm epsilon than the model.

    Raises:
      UserError: the family cannot hold the model; the message names the config field.
    """
    ...


@dataclasses.dataclass(frozen=True)
class Format:
  """A weight format: the families of architectures of one code base.

  Attributes:
    name: its row in `registry.FORMATS`.
    suffix: '.npz', a single file, or '.safetensors', a directory of arrays and config files.
    families: a file is read by the first that matches, a model written by the first that holds it.
  """
  name: str
  suffix: str
  families: tuple[Family, ...]

  def matches(self, tensors: Tensors, configs: Configs) -> bool:
    """Return whether one of the families recognizes an open file."""
    return any(family.matches(tensors, configs) for family in self.families)

  def read(self, tensors: Tensors, configs: Configs, image_size: ImageSize = None) -> Weights:
    """Read an open file that `matches`; see `Family.read`."""
    family = next(family for family in self.families if family.matches(tensors, configs))
    weights = family.read(tensors, configs, image_size)
    return dataclasses.replace(weights, source=self.name, resize_method=weights.resize_method or family.resize_method)

  def write(self, weights: Weights, approximate: bool = False) -> Written:
    """Lay weights out in this format; see `Family.write`."""
    for family in self.families:
      if family.holds(weights.config):
        return family.write(weights, approximate)
    raise NotRepresentable(f'model.kind: the {self.name} format cannot hold a model of kind {weights.config.kind!r}')
