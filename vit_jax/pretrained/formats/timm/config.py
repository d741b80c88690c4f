"""timm's config.json: constructor arguments, pre-training config, and what an architecture's name implies."""
from collections.abc import Mapping
import dataclasses
import math
import re
from typing import Any

from vit_jax.base import sections
from vit_jax.base.errors import UserError
from vit_jax.pretrained.files.tensors import Tensors
from vit_jax.pretrained.formats.timm import preprocessing
from vit_jax.pretrained.formats.weights import Weights

# From timm 1.0's model definitions: every architecture whose weights have the names of the plain one and that differs
# in something that a hub config does not say.
_TANH = re.compile(r'vit_((base_patch32|giantopt_patch16|so400m_patch16)_siglip|large_patch16_siglip_(gap_)?512)')
_HEADS = {'vit_base_patch16_gap': 16, 'vit_giantopt_patch16': 16, 'test_vit_': 2, 'test_vit2': 2}
_OTHER_MODELS = re.compile(r'_(rpn|xp|18x2|clip|radio)_')
# Units per stage → an architecture whose ResNet has them; timm builds it before it looks at the other arguments.
HYBRIDS = {(): 'vit_tiny_r_s16_p8_224', (2, 2, 2, 2): 'vit_small_r26_s32_224', (3, 4, 9): 'vit_base_r50_s16_224',
           (3, 4, 6, 3): 'vit_large_r50_s32_224'}
_POOLS = {'token': 'token', 'avg': 'gap', 'map': 'map'}
_GELUS = {'gelu': 'exact', 'gelu_tanh': 'tanh'}
# Constructor arguments that change the computation in a way ViTConfig has no field for, and their harmless values.
_HARMLESS: dict[str, tuple] = dict(
    pre_norm=(False,), final_norm=(True,), scale_attn_norm=(False,), scale_mlp_norm=(False,), proj_bias=(True,),
    norm_layer=(None, ''), embed_norm_layer=(None, ''), mlp_layer=(None, ''), block_fn=(None, ''),
    attn_layer=(None, '', 'attn'), patch_embed=(None,))


@dataclasses.dataclass(frozen=True)
class Config:
  """What a config.json says beyond names and shapes.

  Attributes:
    pool: a name of `models.pooling.POOLS`, or None if it does not say.
    pool_reads_prefix: whether pooling over tokens includes class token and registers.
    heads: attention heads, or None.
    gelu: a name of `models.layers.GELUS`.
    layer_scale: initial value of LayerScale.
    image_size: (rows, columns), or None.
    class_names: names of the classes, or None.
    pretrained: timm's `pretrained_cfg`, see `preprocessing.find`.
    notes: messages about what was assumed.
  """
  pool: str | None = None
  pool_reads_prefix: bool = False
  heads: int | None = None
  gelu: str = 'exact'
  layer_scale: float = 1e-5
  image_size: tuple[int, int] | None = None
  class_names: tuple[str, ...] | None = None
  pretrained: dict[str, Any] = dataclasses.field(default_factory=dict)
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
  args, name = (config.get('model_args') or {}, config.get('architecture', '')) if is_hub else (config, '')
  pretrained = preprocessing.find(config)
  _refuse_other_models(tensors, args, name)
  try:
    size = args.get('img_size') or (pretrained.get('input_size') or [])[1:]
    pool = args.get('global_pool') or config.get('global_pool')
    known_heads = [heads for start, heads in _HEADS.items() if f'{name}_'.startswith(start)]
    known_gelu = 'gelu_tanh' if _TANH.match(name) else 'gelu'
    return Config(
        pool=_POOLS[pool] if pool else None, pool_reads_prefix=bool(args.get('pool_include_prefix', False)),
        heads=args.get('num_heads') or (known_heads[0] if known_heads else None),
        gelu=_GELUS[args.get('act_layer') or known_gelu], layer_scale=float(args.get('init_values') or 1e-5),
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
  pool = {ours: theirs for theirs, ours in _POOLS.items()}[config.pool]
  args = dict(
      img_size=list(config.image_size), patch_size=_int_or_list(config.patch_size), in_chans=config.channels,
      embed_dim=config.width, depth=config.depth, num_heads=config.heads,
      mlp_ratio=_mlp_ratio(config.mlp_dim, config.width), qkv_bias=config.qkv_bias, qk_norm=config.qk_norm,
      init_values=config.layer_scale, class_token=config.class_token, reg_tokens=config.registers,
      no_embed_class='token' not in weights.params.get('position', {}),
      pos_embed='' if config.position is None else 'learn',
      fc_norm=config.norm_after_pool, pool_include_prefix=config.pool == 'map',
      act_layer={ours: theirs for theirs, ours in _GELUS.items()}[config.gelu], global_pool=pool)
  if config.resnet is None:
    return hub_config(weights, notes, 'vit_base_patch16_224', args, pool, first_conv='patch_embed.proj')
  if config.resnet not in HYBRIDS:
    raise UserError(f'model.resnet: timm has no hybrid with the stages {config.resnet}, only {sorted(HYBRIDS)}; choose '
                    'another format')
  if config.resnet_width != 64:
    raise UserError(f"model.resnet_width: timm's hybrids have 64, got {config.resnet_width}; choose another format")
  root = f'patch_embed.backbone.{"stem." if config.resnet else ""}conv'
  return hub_config(weights, notes, HYBRIDS[config.resnet], args, pool, first_conv=root)


def write_mixer(weights: Weights, notes: list[str]) -> dict[str, Any]:
  """Return the config.json of a Mixer's weights; see `write`."""
  config = weights.config
  args = dict(
      img_size=list(config.image_size), patch_size=_int_or_list(config.patch_size), in_chans=config.channels,
      embed_dim=config.width, num_blocks=config.depth,
      mlp_ratio=[_mlp_ratio(config.token_mlp_dim, config.width), _mlp_ratio(config.channel_mlp_dim, config.width)],
      act_layer={ours: theirs for theirs, ours in _GELUS.items()}[config.gelu], global_pool='avg')
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


def _refuse_other_models(tensors: Tensors, args: Mapping[str, Any], name: str) -> None:
  if _OTHER_MODELS.search(f'{name}_'):
    raise tensors.error(f'architecture: expected a plain Vision Transformer, got {name}, which vit_jax does not have')
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
