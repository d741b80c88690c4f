"""Sub-trees of a file: the arrays whose names begin with the same path, such as `img` or `model_ema`."""
import re

from vit_jax.base.text import listing
from vit_jax.pretrained.files.tensors import Tensors

# Where the parameters of a big_vision checkpoint are; its sub-trees are named without that.
_ROOTS = ('', 'params/', 'opt/target/')


def select(tensors: Tensors, subtree: str) -> Tensors:
  """Return the arrays below a sub-tree, under the names that they have there.

  Args:
    tensors: an open file.
    subtree: path of names, separated by '/' or '.'. `params/` and `opt/target/` before it may be left out; they stay
      in the names of the result, so that `params/img/embedding/kernel` is `params/embedding/kernel`.

  Raises:
    UserError: there are no such arrays; the message lists the sub-trees that there are.
  """
  path = subtree.replace('.', '/') + '/'
  for root in _ROOTS:
    start = root + path
    names = {name: root + name[len(start):] for name in tensors.shapes
             if name.replace('.', '/').startswith(start) and len(name) > len(start)}
    if names:
      return tensors.rename(names.get)
  raise tensors.error(f'no arrays under {subtree!r}; it holds {listing(subtrees(tensors))}')


def subtrees(tensors: Tensors) -> list[str]:
  """Return the first parts of all names, sorted, below `params/` if there is only that."""
  parts = sorted({re.split('[./]', name)[0] for name in tensors.shapes})
  if parts == ['params']:
    parts = sorted({re.split('[./]', name.removeprefix('params/'))[0] for name in tensors.shapes})
  return parts
