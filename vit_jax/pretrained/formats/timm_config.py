"""timm's config.json: constructor arguments, pre-training config, and what an architecture's name implies."""
import dataclasses
import math
import re

from vit_jax.base import sections
from vit_jax.base.preprocessing import Preprocessing
from vit_jax.pretrained.formats import infer

# Read off timm 1.0's model definitions: every architecture whose weights have the names of the plain one and that
# differs in what a hub config does not say.
_TANH = re.compile(r'vit_((base_patch32|giantopt_patch16|so400m_patch16)_siglip|large_patch16_siglip_(gap_)?512)')
_HEADS = {'vit_base_patch16_gap': 16, 'vit_giantopt_patch16': 16, 'test_vit_': 2, 'test_vit2': 2}
_UNLIKE = re.compile(r'_(rpn|xp|18x2|clip|radio)_')
_POOLS = {'token': 'token', 'avg': 'gap', 'map': 'map'}
_GELUS = {'gelu': 'exact', 'gelu_tanh': 'tanh'}
# Constructor arguments that change the computation in a way vit_jax has no field for, and their harmless values.
_PLAIN = dict(
    pre_norm=(False,), final_norm=(True,), scale_attn_norm=(False,), scale_mlp_norm=(False,), proj_bias=(True,),
    norm_layer=(None, ''), embed_norm_layer=(None, ''), mlp_layer=(None, ''), block_fn=(None, ''),
    attn_layer=(None, '', 'attn'), patch_embed=(None,))


@dataclasses.dataclass(frozen=True)
class Config:
  """What a config.json says beyond names and shapes.

  Attributes:
    pool: a name of `models.pooling.POOLS`, or None if it does not say.
    pool_reads_prefix: whether pooling over tokens reads class token and registers too.
    heads: attention heads, or None.
    gelu: a name of `models.layers.GELUS`.
    layer_scale: initial value of LayerScale.
    image_size: rows and columns, or None.
    class_names: names of the classes, or None.
    pretrained: timm's `pretrained_cfg`.
    notes: what was assumed.
  """
  pool: str | None = None
  pool_reads_prefix: bool = False
  heads: int | None = None
  gelu: str = 'exact'
  layer_scale: float = 1e-5
  image_size: tuple[int, int] | None = None
  class_names: tuple[str, ...] | None = None
  pretrained: dict = dataclasses.field(default_factory=dict)
  notes: tuple[str, ...] = ()

  def preprocessing(self, tensors, fields):
    """timm's evaluation: the smaller side to size / crop_pct, then the middle (timm/data/transforms_factory.py)."""
    cfg, size = self.pretrained, fields['image_size']
    mean, std = (infer.statistic(tensors, cfg.get(name, 0.5), fields['channels'], name) for name in ('mean', 'std'))
    bicubic = [] if cfg.get('interpolation', 'bicubic') == 'bilinear' else ["interpolation='bicubic'"]
    if cfg.get('crop_mode', 'center') == 'squash' or size[0] != size[1]:
      return Preprocessing(f'resize({bicubic[0]})' if bicubic else 'resize', mean, std)
    crop_pct = cfg.get('crop_pct', 0.9)
    if not 0 < crop_pct <= 1:
      raise tensors.error(f'its config.json says crop_pct={crop_pct!r}; expected a share above 0, up to 1')
    smaller = math.floor(size[0] / crop_pct)
    return Preprocessing(f'resize_small({", ".join([str(smaller), *bicubic])})|central_crop', mean, std)


def parse(tensors, config):
  """A `Config` of a config.json: the hub's form, or bare constructor arguments; None gives what timm defaults to.

  Raises:
    ValueError: it names something that vit_jax does not have.
  """
  if config is None:
    return Config(notes=("no config.json: GELU form, normalisation and heads are taken from timm's plain models",))
  hub = 'architecture' in config or 'pretrained_cfg' in config
  args, name = (config.get('model_args') or {}, config.get('architecture', '')) if hub else (config, '')
  pretrained = config.get('pretrained_cfg') or {}
  _refuse(tensors, args, name)
  try:
    size = args.get('img_size') or (pretrained.get('input_size') or [])[1:]
    pool = args.get('global_pool') or config.get('global_pool')
    known_heads = [heads for start, heads in _HEADS.items() if f'{name}_'.startswith(start)]
    known_gelu = 'gelu_tanh' if _TANH.match(name) else 'gelu'
    return Config(
        pool=_POOLS[pool] if pool else None, pool_reads_prefix=bool(args.get('pool_include_prefix', False)),
        heads=args.get('num_heads') or (known_heads[0] if known_heads else None),
        gelu=_GELUS[args.get('act_layer') or known_gelu], layer_scale=float(args.get('init_values') or 1e-5),
        image_size=sections.size(size, 'img_size') if size else None, class_names=_class_names(config), pretrained=pretrained)
  except (KeyError, TypeError, AttributeError) as error:
    raise tensors.error(f'its config.json holds something unknown: {error!r}') from error


def write(weights):
  """The config.json of weights: the hub's form, all of the architecture in `model_args`."""
  fields = weights.fields
  pool = {ours: theirs for theirs, ours in _POOLS.items()}[fields['pool']]
  args = dict(
      img_size=list(fields['image_size']), patch_size=_int_or_list(fields['patch_size']), in_chans=fields['channels'],
      embed_dim=fields['width'], depth=fields['depth'], num_heads=fields['heads'],
      mlp_ratio=_ratio(fields['mlp_dim'], fields['width']), qkv_bias=fields['qkv_bias'], qk_norm=fields['qk_norm'],
      init_values=fields['layer_scale'], class_token=fields['class_token'], reg_tokens=fields['registers'],
      no_embed_class='token' not in weights.params.get('position', {}),
      pos_embed='' if fields['position'] is None else 'learn',
      fc_norm=fields['norm_after_pool'], pool_include_prefix=fields['pool'] == 'map',
      act_layer={ours: theirs for theirs, ours in _GELUS.items()}[fields['gelu']], global_pool=pool)
  config = dict(
      architecture='vit_base_patch16_224', num_classes=fields['num_classes'] or 0, num_features=fields['width'],
      global_pool=pool, model_args=args, pretrained_cfg=_pretrained(weights))
  if weights.class_names:
    config['label_names'] = list(weights.class_names)
  return config


def _pretrained(weights):
  fields, found = weights.fields, re.search(r'resize_small\((\d+)', weights.preprocessing.transform)
  each = lambda value: list(value) if isinstance(value, (tuple, list)) else [value] * fields['channels']
  return dict(
      input_size=[fields['channels'], *fields['image_size']], num_classes=fields['num_classes'] or 0,
      interpolation='bicubic' if 'bicubic' in weights.preprocessing.transform else 'bilinear',
      crop_pct=_crop_pct(fields['image_size'][0], int(found[1])) if found else 1.0,
      crop_mode='center' if found else 'squash',
      mean=each(weights.preprocessing.mean), std=each(weights.preprocessing.std),
      first_conv='patch_embed.proj', classifier='head')


def _refuse(tensors, args, name):
  if _UNLIKE.search(f'{name}_'):
    raise tensors.error(f'vit_jax has no architecture like {name}; only plain Vision Transformers can be loaded')
  for key, harmless in _PLAIN.items():
    if args.get(key, harmless[0]) not in harmless:
      raise tensors.error(f'vit_jax has nothing like {key}={args[key]!r} of its config.json')


def _class_names(config):
  names = config.get('label_names')
  if not names:
    return None
  described = config.get('label_descriptions') or {}
  return tuple(str(described.get(name, name)) if isinstance(described, dict) else str(name) for name in names)


def _ratio(mlp_dim, width):
  """The mlp_ratio from which timm computes int(width · ratio) = mlp_dim, whichever way the product rounds."""
  ratio = mlp_dim / width
  return ratio if int(width * ratio) == mlp_dim else math.nextafter(ratio, math.inf)


def _crop_pct(size, smaller):
  """The crop_pct from which timm computes floor(size / crop_pct) = smaller."""
  crop_pct = size / smaller
  return crop_pct if math.floor(size / crop_pct) == smaller else math.nextafter(crop_pct, 0)


def _int_or_list(pair):
  return pair[0] if pair[0] == pair[1] else list(pair)

