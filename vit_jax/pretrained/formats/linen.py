"""The names of the authors' Flax Linen code, which the official and the big_vision files share."""
import re

from vit_jax.pretrained.formats import infer
from vit_jax.pretrained.formats import leaves
from vit_jax.pretrained.formats.leaves import Leaf, SAME


def _pair(ours, theirs, names=('kernel', 'bias')):
  return {f'{ours}/{name}': Leaf(f'{theirs}/{name}', SAME) for name in names}


_NORM = ('scale', 'bias')
_MLP = {**_pair('mlp/up', 'MlpBlock_0/Dense_0'), **_pair('mlp/down', 'MlpBlock_0/Dense_1')}
_ATTENTION = {path: leaf for name in ('query', 'key', 'value', 'out')
              for path, leaf in _pair(f'attention/{name}', f'MultiHeadDotProductAttention_0/{name}').items()}
_BLOCK = {
    **_pair('attention_norm', 'LayerNorm_0', _NORM), **_ATTENTION, **_pair('mlp_norm', 'LayerNorm_1', _NORM), **_MLP}
_MAP = {'probe': Leaf('probe', leaves.leading(2)), **_ATTENTION, **_pair('norm', 'LayerNorm_0', _NORM), **_MLP}

LOOP, SCAN = 'Transformer/encoderblock_{i}/', 'Transformer/encoderblock/'
STEM = {
    **_pair('patch_embed', 'embedding'),
    'token': Leaf('cls', leaves.leading(2)),
    **_pair('norm', 'Transformer/encoder_norm', _NORM),
    **_pair('pre_logits', 'pre_logits'),
    **_pair('head', 'head'),
}
BLOCKS = {form: leaves.renamed(_BLOCK, leaves.BLOCKS, form) for form in (LOOP, SCAN)}
MAP_HEAD = leaves.renamed(_MAP, 'pool/', 'MAPHead_0/')

# The code of 2020 numbered the modules of a block together, Linen numbers each class by itself.
_OLD = {'LayerNorm_2': 'LayerNorm_1', 'MultiHeadDotProductAttention_1': 'MultiHeadDotProductAttention_0',
        'MlpBlock_3': 'MlpBlock_0'}


def modern(name):
  """Today's name of an array of a 2020 file."""
  return re.sub(f'/({"|".join(_OLD)})/', lambda match: f'/{_OLD[match[1]]}/', name)


def fields_of(tensors, form):
  """The fields that names and shapes tell, without positions; `form` is LOOP or SCAN."""
  *patch_size, channels, width = tensors.shape('embedding/kernel', 4)
  block = form.format(i=0)
  stacked = int(form == SCAN)
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
