"""DINOv2 of transformers, with and without registers."""
from collections.abc import Callable, Collection, Mapping
import dataclasses
import functools
from typing import Any

from vit_jax.models.config import GATED_MLPS, ViTConfig
from vit_jax.pretrained.formats import leaves
from vit_jax.pretrained.formats.huggingface import config as config_lib
from vit_jax.pretrained.formats.huggingface.architecture import ANY, MLP, Architecture, attention
from vit_jax.pretrained.formats.huggingface.vit import DEFAULTS, PATCHES, TOKEN, classes
from vit_jax.pretrained.formats.leaves import SAME, Leaf, Table, torch_linear_leaves, torch_norm_leaves
from vit_jax.pretrained.formats.representable import NotRepresentable

SCALES: Table = {'attention_scale': Leaf('layer_scale1.lambda1', SAME), 'mlp_scale': Leaf('layer_scale2.lambda1', SAME)}
NORMS: Table = {**torch_norm_leaves('attention_norm', 'norm1'), **torch_norm_leaves('mlp_norm', 'norm2')}
_BLOCK = {
    **NORMS, **SCALES,
    **attention(('attention.attention.query', 'attention.attention.key', 'attention.attention.value',
                 'attention.output.dense')),
}
_FUSED = {
    **torch_linear_leaves('mlp/gate', 'mlp.weights_in', part=(0, 2)),
    **torch_linear_leaves('mlp/up', 'mlp.weights_in', part=(1, 2)),
    **torch_linear_leaves('mlp/down', 'mlp.weights_out'),
}
GATED: Table = {path: leaf for name in ('gate', 'up', 'down')
                for path, leaf in torch_linear_leaves(f'mlp/{name}', f'mlp.{name}_proj').items()}
_TABLE = {
    **PATCHES, **TOKEN, 'mask_token': Leaf('embeddings.mask_token', leaves.leading(1)),
    **torch_norm_leaves('norm', 'layernorm'), **torch_linear_leaves('head', 'classifier'),
}


def _fields(has: Callable[[str], bool], keys: Mapping[str, Any]) -> dict[str, Any]:
  gated = has(f'{leaves.BLOCKS}mlp/gate/kernel')
  return dict(qkv_bias=bool(keys['qkv_bias']), mask_token=bool(keys['use_mask_token']),
              layer_scale=float(keys['layerscale_value']), pool='token_gap' if has('head/kernel') else 'token',
              **(dict(mlp='swiglu') if gated else {}))


def _keys(config: ViTConfig) -> dict[str, Any]:
  gated = config.mlp in GATED_MLPS
  ratio = config.mlp_dim * (1.5 if gated else 1) / config.width
  hidden = int(config.width * ratio)
  hidden = (int(hidden * 2 / 3) + 7) // 8 * 8 if gated else hidden
  if hidden != config.mlp_dim:
    raise NotRepresentable(f'model.mlp_dim: no mlp_ratio of the huggingface format gives {config.mlp_dim}')
  return dict(
      qkv_bias=config.qkv_bias, use_mask_token=config.mask_token, layerscale_value=config.layer_scale,
      mlp_ratio=int(ratio) if ratio == int(ratio) else ratio, use_swiglu_ffn=gated,
      hidden_act=config_lib.activation(config.gelu), **(dict(num_register_tokens=config.registers)
                                                        if config.registers else {}))


def _allowed(config: ViTConfig) -> Mapping[str, Collection[Any]]:
  return dict(pool=('token',) if config.num_classes is None else ('token_gap',), layer_scale=ANY,
              mlp=('gelu', 'swiglu'), mask_token=(False, True))


DINOV2 = Architecture(
    model_type='dinov2', model_class=functools.partial(classes, 'Dinov2Model', 'Dinov2ForImageClassification'),
    processor='BitImageProcessor', prefix='dinov2.', table=_TABLE, block=_BLOCK, layer='encoder.layer.{i}.',
    mlps=((False, MLP), (True, _FUSED), (True, GATED)), gate_key='use_swiglu_ffn',
    defaults=dict(DEFAULTS, layer_norm_eps=1e-6, use_mask_token=True, layerscale_value=1.0),
    renamed=tuple((rf'^(encoder\.layer\.\d+\.attention)\.{theirs}', rf'\1.{ours}') for theirs, ours in (
        ('q_proj', 'attention.query'), ('k_proj', 'attention.key'), ('v_proj', 'attention.value'),
        ('o_proj', 'output.dense'))),
    fixed=dict(class_token=True, patch_bias=True, key_bias=True), fields=_fields, keys=_keys,
    dropped=('intermediate_size',), allowed=_allowed, scaled=True)

DINOV2_WITH_REGISTERS = dataclasses.replace(
    DINOV2, model_type='dinov2_with_registers', prefix='dinov2_with_registers.', resize_method='bicubic',
    model_class=functools.partial(classes, 'Dinov2WithRegistersModel', 'Dinov2WithRegistersForImageClassification'),
    table={**_TABLE, 'registers': Leaf('embeddings.register_tokens', leaves.leading(1))},
    fixed=dict(DINOV2.fixed, mask_token=True), dropped=('intermediate_size', 'use_mask_token'),
    fields=lambda has, keys: dict(_fields(has, keys), registers=keys['num_register_tokens'], mask_token=True),
    defaults=dict(DINOV2.defaults, num_register_tokens=4),
    allowed=lambda config: dict(_allowed(config), registers=ANY))
