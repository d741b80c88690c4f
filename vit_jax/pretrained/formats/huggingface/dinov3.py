"""DINOv3's Vision Transformers of transformers."""
from collections.abc import Callable, Mapping
from typing import Any

from vit_jax.models.config import GATED_MLPS, ViTConfig
from vit_jax.pretrained.formats import leaves
from vit_jax.pretrained.formats.huggingface.architecture import ANY, Architecture, attention
from vit_jax.pretrained.formats.huggingface.dinov2 import GATED, NORMS, SCALES
from vit_jax.pretrained.formats.leaves import SAME, TORCH_CONV, Leaf, torch_norm_leaves

_TABLE = {
    'patch_embed/kernel': Leaf('embeddings.patch_embeddings.weight', TORCH_CONV),
    'patch_embed/bias': Leaf('embeddings.patch_embeddings.bias', SAME),
    'token': Leaf('embeddings.cls_token', leaves.leading(2)),
    'mask_token': Leaf('embeddings.mask_token', leaves.leading(2)),
    'registers': Leaf('embeddings.register_tokens', leaves.leading(1)),
    **torch_norm_leaves('norm', 'norm'),
}
_PLAIN = {path: leaf for path, leaf in GATED.items() if not path.startswith('mlp/gate/')}


def _fields(has: Callable[[str], bool], keys: Mapping[str, Any]) -> dict[str, Any]:
  del has
  return dict(qkv_bias=bool(keys['query_bias']), key_bias=bool(keys['key_bias']), rotary_base=float(keys['rope_theta']),
              registers=keys['num_register_tokens'], layer_scale=float(keys['layerscale_value']))


def _keys(config: ViTConfig) -> dict[str, Any]:
  return dict(num_register_tokens=config.registers, query_bias=config.qkv_bias,
              key_bias=config.qkv_bias and config.key_bias, value_bias=config.qkv_bias, proj_bias=True, mlp_bias=True,
              use_gated_mlp=config.mlp in GATED_MLPS, rope_theta=config.rotary_base,
              layerscale_value=config.layer_scale)


DINOV3 = Architecture(
    model_type='dinov3_vit', model_class=lambda config: 'DINOv3ViTModel', processor='DINOv3ViTImageProcessor',
    prefix='', table=_TABLE,
    block={**NORMS, **SCALES, **attention((
        'attention.q_proj', 'attention.k_proj', 'attention.v_proj', 'attention.o_proj'))},
    layer='layer.{i}.', mlps=((True, GATED), (False, _PLAIN)), gate_key='use_gated_mlp', position=(None,),
    has_classifier=False, scaled=True,
    defaults=dict(hidden_act='gelu', layer_norm_eps=1e-5, num_attention_heads=6, image_size=224, rope_theta=100.0,
                  num_register_tokens=0, layerscale_value=1.0, query_bias=True, key_bias=False, value_bias=True),
    only=dict(proj_bias=(True,), mlp_bias=(True,)),
    renamed=((r'^model\.layer\.', 'layer.'),),
    fixed=dict(pool='token', class_token=True, patch_bias=True, mask_token=True, rotary='dinov3', position=None),
    fields=_fields, keys=_keys,
    allowed=lambda config: dict(registers=ANY, layer_scale=ANY, key_bias=(False, True),
                                mlp=('gelu', 'swiglu', 'geglu')))
