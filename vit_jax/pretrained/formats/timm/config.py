"""timm's config.json: constructor arguments, pre-training config, and what an architecture's name implies."""
from collections.abc import Mapping
import dataclasses
import math
import re
from typing import Any

from vit_jax.base import sections
from vit_jax.models.config import GATED_MLPS, ViTConfig
from vit_jax.pretrained.files.tensors import Tensors
from vit_jax.pretrained.formats.representable import NotRepresentable
from vit_jax.pretrained.formats.timm import architectures, hybrid, names, preprocessing
from vit_jax.pretrained.formats.weights import Weights

# Units per stage → an architecture whose ResNet has them; timm builds it before it looks at the other arguments.
HYBRIDS = {(): 'vit_tiny_r_s16_p8_224', (2, 2, 2, 2): 'vit_small_r26_s32_224', (3, 4, 9): 'vit_base_r50_s16_224',
           (3, 4, 6, 3): 'vit_large_r50_s32_224'}
_POOLS = {'token': 'token', 'avg': 'gap', 'map': 'map'}
# 'silu' is the gate's of a gated MLP, which the names of its arrays tell.
_GELUS = {'gelu': 'exact', 'gelu_tanh': 'tanh', 'quick_gelu': 'quick', 'silu': 'exact', 'swish': 'exact'}
_ACT_LAYERS = {'exact': 'gelu', 'tanh': 'gelu_tanh', 'quick': 'quick_gelu'}
# Names of relative positions, timm's `rel_pos_type`.
_RELATIVES = {'mlp': 'mlp', 'mlp_swin': 'mlp-swin', 'table': 'bias'}
# LayerNorm epsilons of architectures; others have 1e-6.
CLIP_EPSILON = DINOV3_EPSILON = 1e-5
# Constructor arguments that change the computation in a way ViTConfig has no field for, and their harmless values.
_HARMLESS: dict[str, tuple] = dict(
    final_norm=(True,), scale_attn_norm=(False,), scale_mlp_norm=(False,), proj_bias=(True,),
    norm_layer=(None, ''), embed_norm_layer=(None, ''), mlp_layer=(None, ''), block_fn=(None, ''),
    attn_layer=(None, '', 'attn'), patch_embed=(None,),
    # Class Eva.
    num_kv_heads=(None,), scale_attn_inner=(False,), attn_only_layer_scale=(False,), use_post_norm=(False,),
    rope_type=('cat', 'dinov3', ''), rope_grid_offset=(0, 0.0), rope_grid_indexing=('ij',), attn_pool_num_heads=(None,))


@dataclasses.dataclass(frozen=True)
class Config:
  """What a config.json says beyond names and shapes.

  Attributes:
    pool: a name of `models.pooling.POOLS`, or None if it does not say.
    pool_reads_prefix: whether pooling over tokens includes class token and registers.
    heads: attention heads, or None.
    gelu: a name of `models.layers.GELUS`.
    norm_epsilon: of every LayerNorm.
    rotary: config fields of rotary positions; {} for a model without.
    layer_scale: initial value of LayerScale.
    image_size: (rows, columns), or None.
    class_names: names of the classes, or None.
    pretrained: timm's `pretrained_cfg`, see `preprocessing.find`.
    architecture: timm's name of the model, '' if it does not say.
    notes: messages about what was assumed.
  """
  pool: str | None = None
  pool_reads_prefix: bool = False
  heads: int | None = None
  gelu: str = 'exact'
  norm_epsilon: float = 1e-6
  rotary: dict[str, Any] = dataclasses.field(default_factory=dict)
  layer_scale: float = 1e-5
  image_size: tuple[int, int] | None = None
  class_names: tuple[str, ...] | None = None
  pretrained: dict[str, Any] = dataclasses.field(default_factory=dict)
  architecture: str = ''
  notes: tuple[str, ...] = ()


def parse(tensors: Tensors, config: dict[str, Any] | None) -> Config:
  """Read a config.json: the hub's form, or bare constructor arguments; None gives timm's defaults.

  Args:
    tensors: the array file beside it, for messages.
    config: the JSON object.

  Raises:
    UserError: it names something that vit_jax does not have.
  """
  if config is None:
    return Config(notes=(
        "gelu: no config.json, assumed the exact form, as in most of timm's models; set it with "
        "load(fields=dict(gelu='tanh')) or training --config.model.gelu=tanh",))
  is_hub = 'architecture' in config or 'pretrained_cfg' in config
  args, name = (config.get('model_args') or {}, str(config.get('architecture') or '')) if is_hub else (config, '')
  pretrained = preprocessing.find(config)
  try:
    args = {**architectures.implied(name), **args}
    _refuse_other_models(tensors, args, name)
    size = args.get('img_size') or (pretrained.get('input_size') or [])[1:]
    pool = args.get('global_pool') or config.get('global_pool')
    return Config(
        pool=_POOLS[pool] if pool else None, pool_reads_prefix=bool(args.get('pool_include_prefix', False)),
        heads=args.get('num_heads') or None, gelu=_GELUS[args.get('act_layer') or 'gelu'],
        norm_epsilon=args['norm_epsilon'], rotary=_rotary(args), architecture=name,
        layer_scale=float(args.get('init_values') or 1e-5),
        image_size=sections.size(size, 'img_size') if size else None,
        class_names=_class_names(tensors, config, pretrained),
        pretrained=pretrained)
  except (KeyError, TypeError, AttributeError) as error:
    raise tensors.error(f'its config.json holds something unknown: {error!r}') from error


def write(weights: Weights, notes: list[str]) -> dict[str, Any]:
  """Return the config.json of weights: the hub's form, the whole architecture in `model_args`.

  Args:
    weights: what is written.
    notes: messages about what timm does slightly differently are added to it.
  """
  config = weights.config
  pool = {ours: theirs for theirs, ours in _POOLS.items()}[config.pool] if config.pool != 'distilled' else 'token'
  first_conv = 'patch_embed.proj'
  packed = config.mlp in GATED_MLPS and names.of_config(config).mlp == 'packed'
  args = dict(
      img_size=list(config.image_size), patch_size=_int_or_list(config.patch_size), in_chans=config.channels,
      embed_dim=config.width, depth=config.depth, num_heads=config.heads,
      mlp_ratio=_mlp_ratio(config.mlp_dim, config.width), qkv_bias=config.qkv_bias, qk_norm=config.qk_norm,
      init_values=config.layer_scale, class_token=config.class_token, global_pool=pool)
  positions = bool(weights.params.get('position'))
  no_embed_class = not ({'token'} & set(weights.params.get('position', {})) or config.register_position)
  if names.is_eva(config):
    architecture = 'vit_small_patch16_dinov3' if config.norm_epsilon == DINOV3_EPSILON else 'eva02_tiny_patch14_224'
    args.update(_eva_args(config), use_abs_pos_emb=positions, no_embed_class=no_embed_class)
  elif config.relative_position is not None:
    architecture = 'vit_relpos_base_patch16_224'
    args.update(fc_norm=config.norm_after_pool, rel_pos_type=_RELATIVES[config.relative_position],
                rel_pos_dim=config.relative_position_dim, shared_rel_pos=config.relative_position_shared)
  else:
    # What a config.json cannot say comes with the architecture: epsilon, gated MLP, distillation token.
    architecture = 'vit_base_patch16_clip_224' if config.norm_epsilon == CLIP_EPSILON else 'vit_base_patch16_224'
    if packed:
      architecture, args['mlp_ratio'] = 'vit_giant_patch14_dinov2', _mlp_ratio(2 * config.mlp_dim, config.width)
    if config.resnet is not None:
      architecture, first_conv = _hybrid(config)
    if config.distillation_token:
      architecture = 'deit_base_distilled_patch16_224'
    args.update({} if packed else _activation(config), reg_tokens=config.registers, no_embed_class=no_embed_class,
                pos_embed='learn' if positions else '', pre_norm=config.pre_norm, fc_norm=config.norm_after_pool,
                pool_include_prefix=config.pool == 'map')
  return hub_config(weights, notes, architecture, args, pool, first_conv=first_conv)


def write_mixer(weights: Weights, notes: list[str]) -> dict[str, Any]:
  """Return the config.json of a Mixer's weights; see `write`."""
  config = weights.config
  args = dict(
      img_size=list(config.image_size), patch_size=_int_or_list(config.patch_size), in_chans=config.channels,
      embed_dim=config.width, num_blocks=config.depth,
      mlp_ratio=[_mlp_ratio(config.token_mlp_dim, config.width), _mlp_ratio(config.channel_mlp_dim, config.width)],
      act_layer=_ACT_LAYERS[config.gelu], global_pool='avg')
  return hub_config(weights, notes, 'mixer_b16_224', args, 'avg', first_conv='stem.proj')


def hub_config(weights: Weights, notes: list[str], architecture: str, args: dict[str, Any], pool: str, first_conv: str,
               classifier: str = 'head', width: int | None = None) -> dict[str, Any]:
  """Return a config.json in the hub's form.

  Args:
    weights: what is written.
    notes: messages about what timm does slightly differently are added to it.
    architecture: timm's name of the model.
    args: arguments of the model's constructor.
    pool: timm's `global_pool`.
    first_conv, classifier: names of these layers.
    width: features that the head reads; None: the config's width.
  """
  num_classes = weights.config.num_classes or 0
  pretrained = dict(preprocessing.write(weights, notes), num_classes=num_classes, first_conv=first_conv,
                    classifier=classifier)
  hub: dict[str, Any] = dict(
      architecture=architecture, num_classes=num_classes, num_features=width or weights.config.width, global_pool=pool,
      model_args=args, pretrained_cfg=pretrained)
  if weights.class_names:
    hub['label_names'] = list(weights.class_names)
  return hub


def _hybrid(config: ViTConfig) -> tuple[str, str]:
  """Return the architecture of a hybrid, and the name of its first convolution."""
  if config.resnet not in HYBRIDS:
    raise NotRepresentable(f'model.resnet: timm has no hybrid with the stages {config.resnet}, only {sorted(HYBRIDS)}')
  if config.resnet_width != 64:
    raise NotRepresentable(f"model.resnet_width: timm's hybrids have 64, got {config.resnet_width}")
  return HYBRIDS[config.resnet], f'{hybrid.root(bool(config.resnet))}conv'


def _activation(config: ViTConfig) -> dict[str, Any]:
  return dict(act_layer=_ACT_LAYERS[config.gelu])


def _eva_args(config: ViTConfig) -> dict[str, Any]:
  """Return arguments of class Eva that other classes do not have."""
  found = names.of_config(config)
  rotary = config.rotary is not None
  return dict(
      num_reg_tokens=config.registers, qkv_fused=not found.split_qkv, swiglu_mlp=config.mlp == 'swiglu',
      scale_mlp=config.mlp_hidden_norm, swiglu_align_to=1 if found.mlp == 'split' else 0,
      use_rot_pos_emb=rotary, rope_type='dinov3' if config.rotary == 'dinov3' else 'cat',
      rope_rotate_half=config.rotary == 'dinov3', rope_temperature=config.rotary_base,
      ref_feat_shape=None if config.rotary_grid is None else list(config.rotary_grid),
      use_pre_transformer_norm=config.pre_norm, use_fc_norm=config.norm_after_pool,
      use_post_transformer_norm=not config.norm_after_pool, dynamic_img_size=False)


def _rotary(args: Mapping[str, Any]) -> dict[str, Any]:
  """Return the config fields of rotary positions."""
  if not args.get('use_rot_pos_emb'):
    return {}
  kind = 'dinov3' if args.get('rope_type') == 'dinov3' else 'eva'
  if bool(args.get('rope_rotate_half')) != (kind == 'dinov3'):
    raise KeyError('rope_rotate_half')
  grid = args.get('ref_feat_shape') if kind == 'eva' else None
  return dict(rotary=kind, rotary_base=float(args.get('rope_temperature', 10_000.0)),
              rotary_grid=sections.size(grid, 'ref_feat_shape') if grid else None)


def _refuse_other_models(tensors: Tensors, args: Mapping[str, Any], name: str) -> None:
  if other := architectures.refusal(name):
    raise tensors.error(f'this is a {name} model ({other}), which vit_jax does not have')
  if args.get('act_layer') in ('silu', 'swish') and names.of_file(tensors).mlp == 'plain':
    raise tensors.error(f"act_layer: its config.json says {args['act_layer']!r}, which vit_jax has for gated MLPs only")
  if args.get('pre_norm') and 'norm_pre.weight' not in tensors:
    raise tensors.error('pre_norm: its config.json says True, but there is no array norm_pre.weight')
  for key, harmless in _HARMLESS.items():
    if args.get(key, harmless[0]) not in harmless:
      raise tensors.error(f'{key}: its config.json says {args[key]!r}, which vit_jax does not have')


def _class_names(tensors: Tensors, config: Mapping[str, Any], pretrained: Mapping[str, Any]) -> tuple[str, ...] | None:
  """Return what the classes are called: their descriptions if there are some, else their names.

  `label_names` is a list, or a dict from the number of a class to its name; `labels` in old files.
  """
  found = [{**pretrained, **config}.get(key) for key in ('label_names', 'labels', 'label_descriptions')]
  names, descriptions = found[0] or found[1], found[2] or {}
  if not names:
    return None
  if isinstance(names, dict) and all(re.fullmatch(r'\d{1,6}', str(number)) for number in names):
    numbered = {int(number): name for number, name in names.items()}
    names = [numbered.get(i, i) for i in range(max(numbered) + 1)]
  if not isinstance(names, list) or not isinstance(descriptions, dict):
    raise tensors.error('label_names: expected a list, or a dict of numbers and names, in its config.json, and '
                        'label_descriptions a dict of names and texts')
  return tuple(str(descriptions.get(name, name)) for name in names)


def _mlp_ratio(mlp_dim: int, width: int) -> float:
  """Return the mlp_ratio from which timm computes int(width · ratio) = mlp_dim, whichever way the product rounds."""
  ratio = mlp_dim / width
  return ratio if int(width * ratio) == mlp_dim else math.nextafter(ratio, math.inf)


def _int_or_list(pair: tuple[int, int]) -> int | list[int]:
  return pair[0] if pair[0] == pair[1] else list(pair)
