"""What a file of weights holds once read: the fields of a model, its parameters and what makes its numbers right."""
import dataclasses
import functools
import inspect
from typing import Any

from flax import nnx
import jax

from vit_jax.models import vit
from vit_jax.base.preprocessing import Preprocessing

_FIELDS = {name: p.default for name, p in inspect.signature(vit.VisionTransformer.__init__).parameters.items()
           if name not in ('self', 'variant', 'rngs')}


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
    ValueError: an unknown field, or an unknown variant.
  """
  fields = dict(fields)
  variant = fields.pop('variant', None)
  if unknown := sorted(set(fields) - set(_FIELDS)):
    raise ValueError(f'unknown model fields {unknown}; valid ones are {sorted(_FIELDS)}')
  shape = vit.variant_fields(variant) if variant else {}
  fields = {**_FIELDS, **{name: value for name, value in fields.items() if value is not None or name not in shape}}
  fields.update((name, value) for name, value in shape.items() if fields[name] is None)
  fields.update((name, vit.pair(fields[name])) for name in ('image_size', 'patch_size') if fields[name] is not None)
  if fields['class_token'] is None:
    fields['class_token'] = fields['pool'] == 'token'
  return fields


def abstract_model(fields):
  """A `VisionTransformer` of these fields whose parameters are shapes: no memory, no time."""
  return nnx.eval_shape(lambda: vit.VisionTransformer(**fields, rngs=nnx.Rngs(0)))


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
  return tuple(n // p for n, p in zip(vit.pair(fields['image_size']), vit.pair(fields['patch_size'])))
