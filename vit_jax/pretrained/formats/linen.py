"""Names of the authors' Flax Linen code, which the official and the big_vision files share."""
import re
from typing import Any

from vit_jax.pretrained.files.tensors import Tensors
from vit_jax.pretrained.formats import infer, leaves
from vit_jax.pretrained.formats.leaves import SAME, Leaf, Table


def _pair(ours: str, theirs: str, names: tuple[str, str] = ('kernel', 'bias')) -> Table:
  return {f'{ours}/{name}': Leaf(f'{theirs}/{name}', SAME) for name in names}


_NORM = ('scale', 'bias')
_MLP = {**_pair('mlp/up', 'MlpBlock_0/Dense_0'), **_pair('mlp/down', 'MlpBlock_0/Dense_1')}
_ATTENTION = {path: leaf for name in ('query', 'key', 'value', 'out')
              for path, leaf in _pair(f'attention/{name}', f'MultiHeadDotProductAttention_0/{name}').items()}
_BLOCK = {
    **_pair('attention_norm', 'LayerNorm_0', _NORM), **_ATTENTION, **_pair('mlp_norm', 'LayerNorm_1', _NORM), **_MLP}
_MAP = {'probe': Leaf('probe', leaves.leading(2)), **_ATTENTION, **_pair('norm', 'LayerNorm_0', _NORM), **_MLP}

# The prefix of a block's arrays: one array per block, or all blocks stacked in one (big_vision's `scan`).
LOOP, SCAN = 'Transformer/encoderblock_{i}/', 'Transformer/encoderblock/'
STEM = {
    **_pair('patch_embed', 'embedding'),
    'token': Leaf('cls', leaves.leading(2)),
    **_pair('norm', 'Transformer/encoder_norm', _NORM),
    **_pair('pre_logits', 'pre_logits'),
    **_pair('head', 'head'),
}
BLOCKS = {prefix: leaves.prefixed(_BLOCK, leaves.BLOCKS, prefix) for prefix in (LOOP, SCAN)}
MAP_HEAD = leaves.prefixed(_MAP, 'pool/', 'MAPHead_0/')

# The code of 2020 numbered the modules of a block together, Linen numbers each class separately.
_OLD = {'LayerNorm_2': 'LayerNorm_1', 'MultiHeadDotProductAttention_1': 'MultiHeadDotProductAttention_0',
        'MlpBlock_3': 'MlpBlock_0'}


def current_name(name: str) -> str:
  """Return today's name of an array in a file of 2020."""
  return re.sub(f'/({"|".join(_OLD)})/', lambda match: f'/{_OLD[match[1]]}/', name)


def read_fields(tensors: Tensors, prefix: str) -> dict[str, Any]:
  """Return the config fields that names and shapes determine, without positions; `prefix` is LOOP or SCAN."""
  *patch_size, channels, width = tensors.shape('embedding/kernel', 4)
  block = prefix.format(i=0)
  stacked = int(prefix == SCAN)
  query = tensors.shape(f'{block}MultiHeadDotProductAttention_0/query/kernel', 3 + stacked)
  up = tensors.shape(f'{block}MlpBlock_0/Dense_0/kernel', 2 + stacked)
  return dict(
      patch_size=tuple(patch_size), channels=channels, width=width, heads=query[-2], mlp_dim=up[-1],
      depth=query[0] if stacked else infer.depth(tensors, r'Transformer/encoderblock_(\d+)/'),
      class_token='cls' in tensors, pool='token' if 'cls' in tensors else 'gap',
      qkv_bias=f'{block}MultiHeadDotProductAttention_0/query/bias' in tensors,
      representation_size=tensors.shape('pre_logits/kernel', 2)[1] if 'pre_logits/kernel' in tensors else None,
      num_classes=tensors.shape('head/kernel', 2)[1] if 'head/kernel' in tensors else None,
      gelu='tanh', norm_epsilon=1e-6)
