"""What a file of weights holds once read: the fields of a model, its parameters and what makes its numbers right."""
import dataclasses
import functools
from typing import Any

from flax import nnx
import jax

from vit_jax.base import sections
from vit_jax.models import vit
from vit_jax.models.config import ViTConfig
from vit_jax.base.preprocessing import Preprocessing

_FIELDS = [field.name for field in dataclasses.fields(ViTConfig) if field.name not in ('kind', 'variant')]


@dataclasses.dataclass(frozen=True)
class Weights:
  """A trained model before it is one.

  Attributes:
    fields: keyword arguments of `VisionTransformer`, all but `variant` and `rngs`; see `complete`.
    params: nested dict of float32 NumPy arrays, the model's own tree and shapes.
    preprocessing: what happens to an image first.
    class_names: one name for each logit, or None where unknown.
    source: the format it was read from, a name of `formats.FORMATS` or 'workdir'.
    notes: lines that say what the file left open and was assumed.
    problems: lines that say what was missing, unused or not finite; strict reading refuses them.
  """
  fields: dict[str, Any]
  params: dict[str, Any]
  preprocessing: Preprocessing = Preprocessing()
  class_names: tuple[str, ...] | None = None
  source: str = 'workdir'
  notes: tuple[str, ...] = ()
  problems: tuple[str, ...] = ()


def complete(fields):
  """Fields with a variant spelt out and every default filled in, sizes as pairs.

  Raises:
    UserError: an unknown field, or an unknown variant.
  """
  config = config_of(fields)
  return {name: getattr(config, name) for name in _FIELDS}


def config_of(fields):
  """The `ViTConfig` of fields."""
  fields = dict(fields)
  fields.pop('kind', None)
  known = {name: value for name, value in fields.items() if name in ('image_size', 'channels', 'num_classes')}
  config = sections.read(ViTConfig, {name: value for name, value in fields.items() if name not in known}, 'model')
  return dataclasses.replace(config, **known)


def new_model(fields):
  """A `VisionTransformer` of these fields, newly initialised."""
  return vit.VisionTransformer(config_of(fields), rngs=nnx.Rngs(0))


def abstract_model(fields):
  """A `VisionTransformer` of these fields whose parameters are shapes: no memory, no time."""
  return nnx.eval_shape(lambda: new_model(fields))


def shapes(fields):
  """{'encoder/blocks/mlp/up/kernel': (depth, width, mlp_dim), …}: every leaf that a model of these fields has."""
  return dict(_shapes(tuple(sorted(complete(fields).items()))))


@functools.lru_cache(maxsize=64)
def _shapes(fields):
  params = nnx.to_pure_dict(nnx.state(abstract_model(dict(fields)), nnx.Param))
  return {path: leaf.shape for path, leaf in flatten(params).items()}


def flatten(params):
  """{'a/b': leaf} of a nested dict."""
  return {'/'.join(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def unflatten(leaves):
  """The nested dict of {'a/b': leaf}."""
  tree = {}
  for path, leaf in leaves.items():
    *parents, name = path.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = leaf
  return tree


def grid_of(fields):
  """Rows and columns of patches."""
  return tuple(n // p for n, p in zip(fields['image_size'], fields['patch_size']))
