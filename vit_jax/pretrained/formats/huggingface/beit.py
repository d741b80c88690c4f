"""BEiT of transformers: relative positions, LayerScale, keys without bias."""
from collections.abc import Callable, Collection, Mapping
import dataclasses
import functools
from typing import Any

from vit_jax.models.config import ViTConfig
from vit_jax.pretrained.formats import leaves
from vit_jax.pretrained.formats.huggingface.architecture import ANY, Architecture
from vit_jax.pretrained.formats.huggingface.vit import BLOCK, DEFAULTS, MLP, PATCHES, RENAMED, TOKEN, classes
from vit_jax.pretrained.formats.leaves import SAME, Leaf, Table, torch_linear_leaves, torch_norm_leaves

_BIAS = 'relative_position_bias.relative_position_bias_table'
_BLOCK: Table = {**BLOCK, 'attention_scale': Leaf('lambda_1', SAME), 'mlp_scale': Leaf('lambda_2', SAME),
                 'relative/table': Leaf(f'attention.attention.{_BIAS}', SAME)}
_TABLE: Table = {**PATCHES, **TOKEN, 'mask_token': Leaf('embeddings.mask_token', leaves.leading(2)),
                 'encoder/relative/table': Leaf(f'encoder.{_BIAS}', SAME), **torch_linear_leaves('head', 'classifier')}


def _unused(names: Collection[str]) -> Mapping[str, str]:
  del names
  return {r'lm_head\.': 'it predicts visual words', r'.*relative_position_index$': 'numbers of offsets, no weights'}


def _fields(has: Callable[[str], bool], keys: Mapping[str, Any]) -> dict[str, Any]:
  del has
  shared, scale = bool(keys['use_shared_relative_position_bias']), float(keys['layer_scale_init_value'])
  return dict(relative_position='table' if shared or keys['use_relative_position_bias'] else None,
              relative_position_shared=shared, layer_scale=scale if scale > 0 else None,
              position='learned' if keys['use_absolute_position_embeddings'] else None,
              mask_token=bool(keys['use_mask_token']))


def _keys(config: ViTConfig) -> dict[str, Any]:
  relative, shared = config.relative_position is not None, config.relative_position_shared
  return dict(use_mean_pooling=config.pool == 'gap', use_mask_token=config.mask_token,
              use_relative_position_bias=relative and not shared, use_shared_relative_position_bias=relative and shared,
              use_absolute_position_embeddings=config.position is not None,
              layer_scale_init_value=config.layer_scale or 0)


BEIT = Architecture(
    model_type='beit', model_class=functools.partial(classes, 'BeitModel', 'BeitForImageClassification'),
    processor='BeitImageProcessor', prefix='beit.', table={**_TABLE, **torch_norm_leaves('norm', 'layernorm')},
    block=_BLOCK, layer='encoder.layer.{i}.', mlps=((False, MLP),), position=('learned', None),
    defaults=dict(DEFAULTS, use_shared_relative_position_bias=False, use_relative_position_bias=False,
                  layer_scale_init_value=0.1, use_absolute_position_embeddings=False, use_mask_token=False),
    renamed=((r'^layers\.(\d+)\.relative_position_bias',
              r'encoder.layer.\1.attention.attention.relative_position_bias'),
             (r'^shared_position_bias', 'encoder.relative_position_bias'), *RENAMED),
    left_out=_unused, fixed=dict(pool='token', class_token=True, patch_bias=True, qkv_bias=True, key_bias=False),
    fields=_fields, keys=_keys,
    allowed=lambda config: dict(relative_position=(None, 'table'), layer_scale=ANY, mask_token=(False, True)))
BEIT_MEAN = dataclasses.replace(
    BEIT, table={**_TABLE, **torch_norm_leaves('norm', 'pooler.layernorm')}, marker='pooler.layernorm.weight',
    fixed=dict(BEIT.fixed, pool='gap', norm_after_pool=True))
