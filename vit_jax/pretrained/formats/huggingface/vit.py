"""The plain Vision Transformers of transformers: ViT, DeiT, ViT-MAE, ViT-MSN, I-JEPA."""
from collections.abc import Collection, Mapping
import dataclasses
import functools

from vit_jax.models.config import ViTConfig
from vit_jax.pretrained.formats import leaves
from vit_jax.pretrained.formats.huggingface.architecture import ANY, Architecture, attention
from vit_jax.pretrained.formats.leaves import SAME, TORCH_CONV, Leaf, Table, torch_linear_leaves, torch_norm_leaves

BLOCK: Table = {
    **torch_norm_leaves('attention_norm', 'layernorm_before'),
    **attention(('attention.attention.query', 'attention.attention.key', 'attention.attention.value',
                 'attention.output.dense')),
    **torch_norm_leaves('mlp_norm', 'layernorm_after'),
}
MLP: Table = {**torch_linear_leaves('mlp/up', 'intermediate.dense'), **torch_linear_leaves('mlp/down', 'output.dense')}
PATCHES: Table = {
    'patch_embed/kernel': Leaf('embeddings.patch_embeddings.projection.weight', TORCH_CONV),
    'patch_embed/bias': Leaf('embeddings.patch_embeddings.projection.bias', SAME),
}
TOKEN: Table = {'token': Leaf('embeddings.cls_token', leaves.leading(2))}
_MASK: Table = {'mask_token': Leaf('embeddings.mask_token', leaves.leading(2))}
_NORM = torch_norm_leaves('norm', 'layernorm')
_POOLER = torch_linear_leaves('pre_logits', 'pooler.dense')
_HEAD = torch_linear_leaves('head', 'classifier')

# Names of the model in memory, since transformers 5.
RENAMED = (
    (r'^layers\.(\d+)\.attention\.q_proj', r'encoder.layer.\1.attention.attention.query'),
    (r'^layers\.(\d+)\.attention\.k_proj', r'encoder.layer.\1.attention.attention.key'),
    (r'^layers\.(\d+)\.attention\.v_proj', r'encoder.layer.\1.attention.attention.value'),
    (r'^layers\.(\d+)\.attention\.o_proj', r'encoder.layer.\1.attention.output.dense'),
    (r'^layers\.(\d+)\.mlp\.fc1', r'encoder.layer.\1.intermediate.dense'),
    (r'^layers\.(\d+)\.mlp\.fc2', r'encoder.layer.\1.output.dense'),
    (r'^layers\.(\d+)\.', r'encoder.layer.\1.'),
)
DEFAULTS = dict(hidden_act='gelu', layer_norm_eps=1e-12, num_attention_heads=12, image_size=224, qkv_bias=True)


def classes(backbone: str, classifier: str, config: ViTConfig) -> str:
  """Return the class of a model with or without a classifier."""
  return backbone if config.num_classes is None else classifier


def _unused(prefix: str, names: Collection[str]) -> Mapping[str, str]:
  del names
  return {rf'{prefix}\.pooler\.': 'a classifier does not use it', r'decoder\.': 'it reconstructs pixels'}


def _pooler(config: ViTConfig) -> Mapping[str, Collection]:
  return {} if config.num_classes is not None else dict(representation_size=ANY)


VIT = Architecture(
    model_type='vit', model_class=functools.partial(classes, 'ViTModel', 'ViTForImageClassification'),
    processor='ViTImageProcessor', prefix='vit.', table={**PATCHES, **TOKEN, **_MASK, **_NORM, **_POOLER, **_HEAD},
    block=BLOCK, layer='encoder.layer.{i}.', mlps=((False, MLP),), defaults=DEFAULTS, renamed=RENAMED,
    left_out=functools.partial(_unused, 'vit'),
    fixed=dict(pool='token', class_token=True, patch_bias=True, key_bias=True),
    fields=lambda has, keys: dict(qkv_bias=bool(keys['qkv_bias'])),
    keys=lambda config: dict(qkv_bias=config.qkv_bias, pooler_act='tanh',
                             pooler_output_size=config.representation_size or config.width),
    allowed=lambda config: dict(_pooler(config), mask_token=(False, True)))

_DISTILLATION = {**PATCHES, **TOKEN, **_MASK, **_NORM,
                 'distillation_token': Leaf('embeddings.distillation_token', leaves.leading(2))}
DEIT = dataclasses.replace(
    VIT, model_type='deit', model_class=functools.partial(classes, 'DeiTModel', 'DeiTForImageClassification'),
    processor='DeiTImageProcessor', prefix='deit.', table={**_DISTILLATION, **_POOLER, **_HEAD},
    left_out=functools.partial(_unused, 'deit'), fixed=dict(VIT.fixed, distillation_token=True))
DEIT_DISTILLED = dataclasses.replace(
    DEIT, model_class=lambda config: 'DeiTForImageClassificationWithTeacher',
    table={**_DISTILLATION, **torch_linear_leaves('head', 'cls_classifier'),
           **torch_linear_leaves('head_distilled', 'distillation_classifier')},
    fixed=dict(DEIT.fixed, pool='distilled'), marker='distillation_classifier.weight')

MAE = dataclasses.replace(
    VIT, model_type='vit_mae', model_class=lambda config: 'ViTMAEModel', table={**PATCHES, **TOKEN, **_NORM},
    has_classifier=False, fixed=dict(VIT.fixed, mask_token=False), allowed=lambda config: {},
    keys=lambda config: dict(qkv_bias=config.qkv_bias))

MSN = dataclasses.replace(
    VIT, model_type='vit_msn', model_class=functools.partial(classes, 'ViTMSNModel', 'ViTMSNForImageClassification'),
    table={**PATCHES, **TOKEN, **_MASK, **_NORM, **_HEAD}, defaults=dict(DEFAULTS, layer_norm_eps=1e-6),
    allowed=lambda config: dict(mask_token=(False, True)), keys=lambda config: dict(qkv_bias=config.qkv_bias))

IJEPA = dataclasses.replace(
    VIT, model_type='ijepa', model_class=functools.partial(classes, 'IJepaModel', 'IJepaForImageClassification'),
    prefix='ijepa.', table={**PATCHES, **_MASK, **_NORM, **_HEAD}, left_out=functools.partial(_unused, 'ijepa'),
    fixed=dict(pool='gap', class_token=False, patch_bias=True, key_bias=True),
    allowed=lambda config: dict(mask_token=(False, True)), keys=lambda config: dict(qkv_bias=config.qkv_bias))
