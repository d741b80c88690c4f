"""Which logical axis of the parameters is sharded over which axis of a mesh."""
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from vit_jax.base.errors import UserError
from vit_jax.models.base import ParamTree, path_of


def shardings(mesh: Mesh | AbstractMesh, tree: Any, params: Any, model: ParamTree) -> Any:
  """Return the sharding of every leaf of a tree on a mesh.

  A leaf with the name and the shape of a parameter is sharded like it: the parameter itself, its EMA, its moments. All
  others (counts, factored moments) are small, and replicated.

  Args:
    mesh: with the axes in `AXES`.
    tree: pytree of arrays or shapes: parameters, a state, or what a step returns.
    params: all trained parameters, or their shapes.
    model: what names their axes.

  Returns:
    A tree of NamedSharding.
  """
  shapes = {leaf.shape for leaf in jax.tree.leaves(params)}

  def sharding_of(path: Any, leaf: Any) -> NamedSharding:
    axes = [AXES.get(name) for name in model.logical_axes(path_of(path), leaf.ndim)] if leaf.shape in shapes else []
    return NamedSharding(mesh, PartitionSpec(*axes))

  return jax.tree_util.tree_map_with_path(sharding_of, tree)


def check_divides(mesh: Mesh | AbstractMesh, params: Any, model: ParamTree) -> None:
  """Raise UserError if the mesh does not divide a sharded axis of one of a model's parameters."""
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    name = path_of(path)
    for logical, size in zip(model.logical_axes(name, leaf.ndim), leaf.shape, strict=True):
      axis = AXES.get(logical)
      if axis and size % mesh.shape[axis]:
        valid = [n for n in range(1, mesh.size + 1) if mesh.size % n == 0 and size % n == 0]
        raise UserError(f'parallel.{axis}: must divide {logical}={size} of {name}; got {mesh.shape[axis]}. With '
                        f'{mesh.size} devices choose from {valid}')


# Megatron-LM (arXiv 1909.08053, section 3): a block's first matrix is sharded by columns, heads or hidden features, the
# second by rows, so that a block needs two sums over devices and no more. ZeRO (arXiv 1910.02054, stage 3): the rest is
# sharded along the features, the other dimension that all large parameters have. Classes are not sharded: their number
# need not divide.
AXES: dict[str | None, str] = {
    'heads': 'tensor',
    'mlp_dim': 'tensor',
    'width': 'fsdp',
}
