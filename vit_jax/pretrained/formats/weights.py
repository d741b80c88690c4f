"""Weights and their metadata, and the parameter shapes that go with a config."""
from collections.abc import Iterable, Mapping
import dataclasses
import functools
from typing import Any

from flax import nnx
import numpy as np

from vit_jax.base import sections
from vit_jax.base.choices import choose
from vit_jax.base.preprocessing import Preprocessing
from vit_jax.models.base import Model, flatten
from vit_jax.models.registry import MODELS

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Weights:
  """Weights and metadata, before a model is built from them.

  Attributes:
    config: of the model, a `Model.Config`; change it with `dataclasses.replace`, or `with_fields` for values that a
      user gave.
    params: nested dict of float32 NumPy arrays with the structure and shapes of the model's parameters.
    preprocessing: how images are prepared for the model.
    class_names: one name per logit, or None if unknown.
    loss: what the model was trained with, a name of `objectives.losses.LOSSES`: decides how logits become
      probabilities.
    source: the format they were read from, a name of `registry.FORMATS`, or 'workdir' for a run directory.
    resize_method: how the code that they come from resizes position embeddings, a name of `resize.METHODS`; None: as
      its family does, 'bilinear' in our own runs.
    notes: messages about what was left out or renamed, and what the file did not say and was "assumed" or "guessed":
      `load` logs those as warnings.
    problems: messages about arrays that were missing, unused or not finite; strict loading refuses them.
    architecture: what the file says it is, where a format has several for one model (transformers' model_type).
    dtypes: {name: dtype} of the arrays in the file; `params` are float32 whatever it had.
  """
  config: Any
  params: Params
  preprocessing: Preprocessing = Preprocessing()
  class_names: tuple[str, ...] | None = None
  loss: str = 'softmax'
  source: str = 'workdir'
  resize_method: str | None = None
  notes: tuple[str, ...] = ()
  problems: tuple[str, ...] = ()
  architecture: str | None = None
  dtypes: Mapping[str, str] = dataclasses.field(default_factory=dict)


def read_config(fields: Mapping[str, Any]) -> Any:
  """Return the checked config of the given fields, those filled in from data (image_size, …) among them.

  Args:
    fields: {name: value} as in section `model` of a recipe, plus image_size, channels and num_classes.

  Raises:
    UserError: an unknown field, a missing one, or a bad type or value.
  """
  kind = fields.get('kind', 'vit')
  cls = choose(MODELS, kind, 'model.kind').Config
  from_data = {field.name for field in dataclasses.fields(cls) if not sections.is_key(field)}
  config = sections.read(cls, {name: value for name, value in fields.items() if name not in from_data}, 'model')
  return dataclasses.replace(config, **{name: value for name, value in fields.items() if name in from_data})


def with_fields(config: Any, fields: Mapping[str, Any]) -> Any:
  """Return a config with some fields changed to values that a user gave; checked like `read_config`."""
  from_data = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)
               if not sections.is_key(field)}
  return read_config({**sections.to_dict(config), **from_data, **fields})


def new_model(config: Any) -> Model:
  """Return a newly initialized model."""
  return MODELS[config.kind](config, rngs=nnx.Rngs(0))


@functools.lru_cache(maxsize=64)
def abstract_model(config: Any) -> Model:
  """Return a model whose parameters are shapes without values; it answers questions about its parameters."""
  return nnx.eval_shape(lambda: new_model(config))


@functools.lru_cache(maxsize=64)
def _shapes(config: Any) -> dict[str, tuple[int, ...]]:
  params = nnx.to_pure_dict(nnx.state(abstract_model(config), nnx.Param))
  return {path: leaf.shape for path, leaf in flatten(params).items()}


def shapes(config: Any) -> dict[str, tuple[int, ...]]:
  """Return the shape of every parameter: {'encoder/blocks/mlp/up/kernel': (depth, width, mlp_dim), …}."""
  return dict(_shapes(config))


def unflatten(leaves: Mapping[str, Any]) -> Params:
  """Return the nested dict of {'a/b': leaf}; the reverse of `models.base.flatten`."""
  tree: Params = {}
  for path, leaf in leaves.items():
    *parents, name = path.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = leaf
  return tree


def missing_or_different(config: Any, params: Params) -> list[str]:
  """Return the paths, sorted, that a model of this config and a parameter tree do not share with the same shape."""
  expected, found = shapes(config), {path: np.shape(leaf) for path, leaf in flatten(params).items()}
  return sorted(path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path))


def pixels(grid: Iterable[int], patch_size: tuple[int, int],
           requested: int | tuple[int, int] | None = None) -> tuple[int, int]:
  """Return the image size (rows, columns) of a grid of patches: the requested one if it has that grid."""
  rows, columns = grid
  if requested is not None:
    size = sections.size(requested, 'trained_at')
    if (size[0] // patch_size[0], size[1] // patch_size[1]) == (rows, columns):
      return size
  return rows * patch_size[0], columns * patch_size[1]
