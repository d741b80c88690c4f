"""Which dimension of which parameter is sharded over which axis of a mesh."""
import re
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from vit_jax.base.errors import UserError
from vit_jax.models.encoder import name_of


def shardings(mesh: Mesh | AbstractMesh, tree: Any, params: Any) -> Any:
  """Return the sharding of every leaf of a tree on a mesh.

  A leaf with the name and the shape of a parameter is sharded like it: the parameter itself, its EMA, its moments. All
  others (counts, factored moments) are small, and replicated.

  Args:
    mesh: with the axes in `AXES`.
    tree: pytree of arrays or shapes: parameters, a state, or what a step returns.
    params: the model's parameters, or their shapes.

  Returns:
    A tree of NamedSharding.
  """
  shapes = {leaf.shape for leaf in jax.tree.leaves(params)}

  def sharding_of(path: Any, leaf: Any) -> NamedSharding:
    axes = [AXES.get(name) for name in dimensions(name_of(path), leaf.shape)] if leaf.shape in shapes else []
    return NamedSharding(mesh, PartitionSpec(*axes))

  return jax.tree_util.tree_map_with_path(sharding_of, tree)


def check_divides(mesh: Mesh | AbstractMesh, params: Any) -> None:
  """Raise UserError if the mesh does not divide a sharded dimension of a parameter."""
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    name = name_of(path)
    for dimension, size in zip(dimensions(name, leaf.shape), leaf.shape, strict=True):
      axis = AXES.get(dimension)
      if axis and size % mesh.shape[axis]:
        valid = [n for n in range(1, mesh.size + 1) if mesh.size % n == 0 and size % n == 0]
        raise UserError(f'parallel.{axis}: must divide {dimension}={size} of {name}; got {mesh.shape[axis]}. With '
                        f'{mesh.size} devices choose from {valid}')


def dimensions(name: str, shape: tuple[int, ...]) -> tuple[str | None, ...]:
  """Return the names of a parameter's dimensions; None is never sharded: a stack's depth, or all of a vector."""
  for pattern, names in DIMENSIONS:
    if re.search(rf'(^|/){pattern}$', name) and len(shape) >= len(names):
      return (None,) * (len(shape) - len(names)) + names
  return (None,) * len(shape)


# Megatron-LM (arXiv 1909.08053, section 3): a block's first matrix is sharded by columns, heads or hidden features, the
# second by rows, so that a block needs two sums over devices and no more. ZeRO (arXiv 1910.02054, stage 3): the rest is
# sharded along the features, the other dimension that all large parameters have. Classes are not sharded: their number
# need not divide.
AXES: dict[str | None, str] = {
    'heads': 'tensor',
    'mlp_dim': 'tensor',
    'width': 'fsdp',
}

# The last dimensions of a parameter; a stack's depth comes before them and is not sharded, since an iteration of the
# scan takes one block of it. Parameters not listed (vectors, positions, the patch embedding) are about a hundredth of a
# model, and replicated; with a sharded patch embedding the compiler would send images and tokens around for its small
# gradient.
DIMENSIONS = (
    (r'attention/(query|key|value)/kernel', ('width', 'heads', None)),
    (r'attention/(query|key|value)/bias', ('heads', None)),
    (r'attention/out/kernel', ('heads', None, 'width')),
    (r'mlp/up/kernel', ('width', 'mlp_dim')),
    (r'mlp/up/bias', ('mlp_dim',)),
    (r'mlp/down/kernel', ('mlp_dim', 'width')),
    (r'(pre_logits|head)/kernel', ('width', None)),
)
