"""The vision towers of CLIP, SigLIP and SigLIP 2 of transformers, alone or in a file with the text tower."""
from collections.abc import Callable, Collection, Mapping
import dataclasses
import math
from typing import Any

from vit_jax.models.config import ViTConfig
from vit_jax.pretrained.formats import leaves
from vit_jax.pretrained.formats.huggingface.architecture import ANY, MLP, Architecture, attention
from vit_jax.pretrained.formats.leaves import (
  SAME,
  TORCH_CONV,
  Leaf,
  torch_linear,
  torch_linear_leaves,
  torch_norm_leaves,
)

_BLOCK = {
    **torch_norm_leaves('attention_norm', 'layer_norm1'), **torch_norm_leaves('mlp_norm', 'layer_norm2'),
    **attention(('self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj', 'self_attn.out_proj')),
}
_TABLE = {
    'patch_embed/kernel': Leaf('embeddings.patch_embedding.weight', TORCH_CONV),
    **torch_norm_leaves('norm', 'post_layernorm'),
}
_FUSED = {path: leaf for part, name in enumerate(('query', 'key', 'value')) for path, leaf in {
    f'pool/attention/{name}/kernel': Leaf('head.attention.in_proj_weight', torch_linear(), (part, 3)),
    f'pool/attention/{name}/bias': Leaf('head.attention.in_proj_bias', leaves.TORCH_FLAT, (part, 3))}.items()}
_POOL = {
    'pool/probe': Leaf('head.probe', leaves.leading(2)), **_FUSED,
    **torch_linear_leaves('pool/attention/out', 'head.attention.out_proj', inputs=2),
    **torch_norm_leaves('pool/norm', 'head.layernorm'),
    **leaves.prefixed(MLP, 'pool/', 'head.'),
}
# model_type of a file with both towers → that of its vision tower.
TOWERS = {'clip': 'clip_vision_model', 'siglip': 'siglip_vision_model', 'siglip2': 'siglip2_vision_model'}


def vision_keys(config: Mapping[str, Any]) -> Mapping[str, Any]:
  """Return the keys of the vision tower, from a config.json of both towers or of the tower alone."""
  if config.get('model_type') not in TOWERS or not isinstance(config.get('vision_config'), dict):
    return config
  top = {key: value for key, value in config.items() if key not in ('vision_config', 'text_config')}
  return {**top, **config['vision_config'], 'model_type': TOWERS[config['model_type']]}


def _unused(names: Collection[str]) -> Mapping[str, str]:
  unused = {r'text_model\.|text_projection\.|logit_scale$|logit_bias$': 'of the text tower',
            r'.*position_ids$': 'numbers of positions, no weights'}
  return {**unused, r'(vision_model\.)?head\.': 'the classifier reads the mean of the tokens'} if (
      'classifier.weight' in names) else unused


CLIP = Architecture(
    model_type='clip_vision_model', processor='CLIPImageProcessor', prefix='vision_model.',
    model_class=lambda config: 'CLIPVisionModel' if config.projection_size is None else 'CLIPVisionModelWithProjection',
    table={**_TABLE, 'token': Leaf('embeddings.class_embedding', SAME), **torch_norm_leaves('pre_norm', 'pre_layrnorm'),
           'projection/kernel': Leaf('visual_projection.weight', torch_linear())},
    block=_BLOCK, layer='encoder.layers.{i}.', mlps=((False, MLP),), positions='embeddings.position_embedding.weight',
    position_axes=0, has_classifier=False,
    defaults=dict(hidden_act='quick_gelu', layer_norm_eps=1e-5, num_attention_heads=12, image_size=224),
    left_out=_unused,
    fixed=dict(pool='token', class_token=True, patch_bias=False, pre_norm=True, qkv_bias=True, key_bias=True,
               mask_token=False, norm_after_pool=True),
    keys=lambda config: {} if config.projection_size is None else dict(projection_dim=config.projection_size),
    allowed=lambda config: dict(projection_size=ANY, norm_after_pool=(False, True)))


def _siglip_fields(has: Callable[[str], bool], keys: Mapping[str, Any]) -> dict[str, Any]:
  return dict(pool='map' if keys['vision_use_head'] and not has('head/kernel') else 'gap')


def _siglip_keys(config: ViTConfig) -> dict[str, Any]:
  return dict(vision_use_head=config.pool == 'map')


def _siglip_file(keys: dict[str, Any], config: ViTConfig) -> dict[str, Any]:
  """Return a classifier's config.json, in which the tower's keys have their own section."""
  if config.num_classes is None:
    return keys
  top = ('architectures', 'dtype', 'id2label', 'label2id', 'problem_type')
  tower = {key: value for key, value in keys.items() if key not in top}
  both = next(both for both, alone in TOWERS.items() if alone == keys['model_type'])
  return {**{key: value for key, value in keys.items() if key in top}, 'model_type': both, 'vision_config': tower}


SIGLIP = Architecture(
    model_type='siglip_vision_model', processor='SiglipImageProcessor', prefix='vision_model.',
    model_class=lambda config: 'SiglipVisionModel' if config.num_classes is None else 'SiglipForImageClassification',
    table={**_TABLE, 'patch_embed/bias': Leaf('embeddings.patch_embedding.bias', SAME), **_POOL,
           **torch_linear_leaves('head', 'classifier')},
    block=_BLOCK, layer='encoder.layers.{i}.', mlps=((False, MLP),), positions='embeddings.position_embedding.weight',
    position_axes=0,
    defaults=dict(hidden_act='gelu_pytorch_tanh', layer_norm_eps=1e-6, num_attention_heads=12, image_size=224,
                  vision_use_head=True),
    left_out=_unused,
    fixed=dict(class_token=False, patch_bias=True, qkv_bias=True, key_bias=True, mask_token=False),
    fields=_siglip_fields, keys=_siglip_keys, wrapped=_siglip_file,
    allowed=lambda config: dict(pool=('map', 'gap') if config.num_classes is None else ('gap',)))


def _naflex_fields(has: Callable[[str], bool], keys: Mapping[str, Any]) -> dict[str, Any]:
  """Take images of as many patches as there are positions; transformers takes them already cut into patches."""
  side = math.isqrt(keys['num_patches']) * keys['patch_size']
  return dict(_siglip_fields(has, keys), image_size=(side, side))


SIGLIP2 = dataclasses.replace(
    SIGLIP, model_type='siglip2_vision_model', processor='Siglip2ImageProcessor', resize_method='bilinear_antialias',
    model_class=lambda config: 'Siglip2VisionModel' if config.num_classes is None else 'Siglip2ForImageClassification',
    table={**SIGLIP.table, 'patch_embed/kernel': Leaf('embeddings.patch_embedding.weight', torch_linear(inputs=3))},
    defaults=dict(SIGLIP.defaults, num_patches=256, patch_size=16), fields=_naflex_fields,
    keys=lambda config: dict(_siglip_keys(config), num_patches=config.grid[0] * config.grid[1],
                             patch_size=config.patch_size[0]),
    dropped=('image_size',))
