"""What the name of a timm architecture implies beyond the names and shapes of its arrays, and which are others' models.

From the model definitions of timm 1.0.31; tests/pretrained/timm_architectures.json has what timm itself builds.
"""
import re
from typing import Any

# (pattern of names, constructor arguments); later rows win. `norm_epsilon` is no argument of timm's, but part of its
# `norm_layer`, which a config.json cannot hold.
_IMPLIED: tuple[tuple[str, dict[str, Any]], ...] = (
    (r'', dict(act_layer='gelu', norm_epsilon=1e-6)),
    # Class VisionTransformer.
    (r'vit_.*_clip_', dict(norm_epsilon=1e-5)),
    (r'vit_.*_clip_quickgelu_', dict(act_layer='quick_gelu')),
    (r'vit_((base_patch32|giantopt_patch16|so400m_patch16)_siglip|large_patch16_siglip_(gap_)?512)',
     dict(act_layer='gelu_tanh')),
    (r'vit_(base_patch16_gap|giantopt_patch16)_', dict(num_heads=16)),
    (r'test_vit2?_', dict(num_heads=2)),
    (r'test_vit3_', dict(num_heads=3, pool_include_prefix=True)),
    # Class VisionTransformerRelPos.
    (r'test_vit_relpos_', dict(num_heads=3)),
    # Class Eva.
    (r'eva02_|vit_.*_rope_reg',
     dict(use_rot_pos_emb=True, rope_type='cat', ref_feat_shape=16, rope_temperature=10_000.0)),
    (r'vit_.*_(dinov3|lingbot)_', dict(use_rot_pos_emb=True, rope_type='dinov3', rope_rotate_half=True,
                                       rope_temperature=100.0, norm_epsilon=1e-5)),
    (r'vit_.*_dinov3_', dict(global_pool='avg')),
    (r'vit_7b_', dict(num_heads=32)),
    (r'vit_huge_plus_', dict(num_heads=20)),
)

# Those whose arrays have the names of a model that vit_jax has, but that compute something else.
_OTHERS: tuple[tuple[str, str], ...] = (
    (r'_rpn_|eva02_enormous_', 'LayerNorms after the branches'),
    (r'vit_(dlittle|dwee|dpwee|pwee)_', 'differential attention, or attention and MLP side by side'),
    (r'_(rope|rope_ape|rope_mixed|rope_mixed_ape)_\d', 'rotary positions of columns before rows'),
    (r'_pe_(core|lang|spatial)_', 'rotary positions of columns before rows'),
    (r'_sapiens2_', 'RMS norms'),
    (r'_radio_', 'no last LayerNorm'),
    (r'_xp_', 'attention and MLP side by side'),
    (r'_\d+x2_', 'two attentions side by side'),
)

# Architectures of the classes above; `vit_base_r50_…` are hybrids.
_OURS = re.compile(r'(test_)?vit2?_|test_vit|s?deit3?_|vit_s?relpos_|flexivit_|eva(02)?_|beit3_|aimv2_')


def is_ours(name: str) -> bool:
  """Return whether an architecture is one of timm's classes VisionTransformer, VisionTransformerRelPos or Eva."""
  return bool(_OURS.match(name))


def implied(name: str) -> dict[str, Any]:
  """Return the constructor arguments that an architecture has, beside those that its arrays say; '' for plain ones."""
  found: dict[str, Any] = {}
  for pattern, args in _IMPLIED:
    if re.match(pattern, f'{name}_'):
      found.update(args)
  return found


def refusal(name: str) -> str | None:
  """Return what an architecture has that vit_jax does not, or None."""
  return next((what for pattern, what in _OTHERS if re.search(pattern, f'{name}_')), None)
