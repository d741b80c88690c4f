"""The arithmetic of a model, which utilization is measured by, however a program computes it."""
from collections.abc import Mapping
from typing import Any


def multiply_adds(params: Mapping[str, Any], image_size: tuple[int, int]) -> int:
  """Return the multiply-adds of one image's forward pass, in matrix products; elementwise work does not count.

  Every kernel counts once per token it is applied to, and attention scores and weighted sum each as
  queries × keys × width. A training step takes 6 operations per multiply-add: two forward, four backward (PaLM, arXiv
  2204.02311, appendix B); what rematerialization computes twice does not count.

  Args:
    params: the parameters of a `models.vit.VisionTransformer`, or their shapes.
    image_size: (rows, columns) in pixels.
  """
  rows, columns, _, width = params['patch_embed']['kernel'].shape
  patches = (image_size[0] // rows) * (image_size[1] // columns)
  tokens = patches + ('token' in params) + (len(params['registers']) if 'registers' in params else 0)
  blocks, pool = params['encoder']['blocks'], params.get('pool', {})
  depth = blocks['attention']['out']['kernel'].shape[0]
  total = patches * params['patch_embed']['kernel'].size + tokens * _kernels(blocks) + 2 * depth * tokens**2 * width
  if 'attention' in pool:  # one query, which every head brings to the tokens themselves
    heads = pool['attention']['query']['kernel'].shape[-2]
    total += 2 * heads * tokens * width
  return total + sum(_kernels(params.get(name, {})) for name in ('pool', 'pre_logits', 'head'))


def _kernels(tree: Mapping[str, Any]) -> int:
  """Return the number of elements of all kernels in a tree."""
  return sum(value.size if name == 'kernel' else _kernels(value) for name, value in tree.items() if name == 'kernel'
             or hasattr(value, 'items'))
