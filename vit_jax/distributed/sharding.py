"""Which dimension of which parameter is cut over which axis of a mesh."""
import re

import jax
from jax.sharding import NamedSharding, PartitionSpec

from vit_jax.models.encoder import name_of


def shardings(mesh, tree, params):
  """How every leaf of a tree lies on a mesh.

  What is named and shaped like a parameter is cut like it: the parameter itself, its average, its moments. All else
  (counts, factored moments) is small, and whole on every device.

  Args:
    mesh: with the axes of `AXES`.
    tree: of arrays or shapes: parameters, a state, or what a step returns.
    params: the model's parameters, or their shapes.

  Returns:
    A tree of NamedSharding.
  """
  shapes = {leaf.shape for leaf in jax.tree.leaves(params)}

  def of(path, leaf):
    axes = [AXES.get(name) for name in dimensions(name_of(path), leaf.shape)] if leaf.shape in shapes else []
    return NamedSharding(mesh, PartitionSpec(*axes))

  return jax.tree_util.tree_map_with_path(of, tree)


def check_divides(mesh, params):
  """Raises ValueError for a parameter with a dimension that its axis of the mesh does not divide."""
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    name = name_of(path)
    for dimension, size in zip(dimensions(name, leaf.shape), leaf.shape):
      axis = AXES.get(dimension)
      if axis and size % mesh.shape[axis]:
        valid = [n for n in range(1, mesh.size + 1) if mesh.size % n == 0 and size % n == 0]
        raise ValueError(f'parallel.{axis}={mesh.shape[axis]} does not divide {dimension}={size} of {name}; '
                         f'of {mesh.size} devices choose from {valid}')


def dimensions(name, shape):
  """The names of a parameter's dimensions, None where it is never cut: a stack's depth, or all of a vector."""
  for pattern, names in DIMENSIONS:
    if re.search(rf'(^|/){pattern}$', name) and len(shape) >= len(names):
      return (None,) * (len(shape) - len(names)) + names
  return (None,) * len(shape)


# Megatron-LM (arXiv 1909.08053, section 3): a block's first matrix is cut by its columns, heads or hidden features, the
# second by its rows, so that a block sums over devices twice and no more. ZeRO (arXiv 1910.02054, stage 3): what is left is
# cut along the features, the other dimension that all large parameters share. Classes stay whole: they need not divide.
AXES = {
    'heads': 'tensor',
    'mlp_dim': 'tensor',
    'width': 'fsdp',
}

# The last dimensions of a parameter; a stack's depth comes before them and stays whole, since a turn of the scan takes one
# block of it. What is not here, vectors, positions and the patch embedding, is about a hundredth of a model, and whole
# everywhere; a patch embedding that is cut makes the compiler send images and tokens round for its small gradient.
DIMENSIONS = (
    (r'attention/(query|key|value)/kernel', ('width', 'heads', None)),
    (r'attention/(query|key|value)/bias', ('heads', None)),
    (r'attention/out/kernel', ('heads', None, 'width')),
    (r'mlp/up/kernel', ('width', 'mlp_dim')),
    (r'mlp/up/bias', ('mlp_dim',)),
    (r'mlp/down/kernel', ('mlp_dim', 'width')),
    (r'(pre_logits|head)/kernel', ('width', None)),
)
