"""timm's Vision Transformers as safetensors (github.com/huggingface/pytorch-image-models).

Classes VisionTransformer (also CLIP's, SigLIP's and DINOv2's), VisionTransformerDistilled (DeiT),
VisionTransformerRelPos, and Eva (EVA-02, DINOv3).
"""
import dataclasses
from typing import Any

from vit_jax.base.text import listing
from vit_jax.models.config import ViTConfig
from vit_jax.pretrained.files.tensors import Tensors
from vit_jax.pretrained.formats import infer, leaves, representable, resnet
from vit_jax.pretrained.formats.base import Configs, ImageSize, Written
from vit_jax.pretrained.formats.leaves import Table
from vit_jax.pretrained.formats.timm import architectures, hybrid, names, preprocessing
from vit_jax.pretrained.formats.timm import config as config_lib
from vit_jax.pretrained.formats.timm.names import BLOCK, POSITIONS, STEM, Names
from vit_jax.pretrained.formats.weights import Weights, pixels, read_config, shapes

_BOTH = (False, True)


class TimmViT:
  """timm's format, with a config.json that `timm.create_model('local-dir:…')` reads; see `base.Family`."""

  resize_method = 'bicubic'

  def matches(self, tensors: Tensors, configs: Configs) -> bool:
    """Return whether a file with these names is a ViT of timm's, and its config does not name another model."""
    name = configs.get('config.json', {}).get('architecture')
    if isinstance(name, str) and not architectures.is_ours(name):
      return False
    return STEM in tensors and any(array.startswith(BLOCK) for array in tensors.shapes)

  def read(self, tensors: Tensors, configs: Configs, image_size: ImageSize = None) -> Weights:
    """Read an open file.

    Args:
      tensors: the open file.
      configs: {'config.json': dict} as timm has it on the Hugging Face hub, or constructor arguments; {} if none.
      image_size: what the model was trained at, if neither config nor positions say it.

    Raises:
      UserError: not a file in this format, or a model that computes something else under these names.
    """
    config, notes = config_lib.parse(tensors, configs.get('config.json')), []
    found = dataclasses.replace(names.of_file(tensors), hybrid=hybrid.units(tensors))
    if found.is_eva and not configs:
      raise tensors.error("a model of timm's class Eva (EVA-02, DINOv3) needs its config.json beside it")
    fields = _read_fields(tensors, config, found, notes)
    fields.update(_read_positions(tensors, fields, config.image_size, image_size, notes))
    table = found.table()
    _refuse_other_blocks(tensors, fields, table, config.architecture)
    prepared = preprocessing.read(tensors, config.pretrained, fields['image_size'], fields['channels'], notes)
    return leaves.read_weights(
        tensors, fields, table, POSITIONS, class_names=config.class_names, notes=(*config.notes, *notes),
        preprocessing=prepared)

  def holds(self, config: Any) -> bool:
    """Return whether it is a Vision Transformer."""
    return config.kind == 'vit'

  def write(self, weights: Weights, approximate: bool = False) -> Written:
    """Lay weights out in this format; see `base.Family.write`."""
    weights = representable.mask_token(representable.norm_before_pool(weights), False)
    config = weights.config
    representable.require(weights, 'timm', **_allowed(config))
    representable.require_numerics(weights, 'timm', approximate, norm_epsilon=_epsilon(config))
    if (names.is_eva(config) or config.relative_position) and config.mlp == 'gelu':
      representable.require_numerics(weights, 'timm', approximate, gelu='exact')
    if config.resnet is not None:
      representable.require_numerics(weights, 'timm', approximate, resnet_numerics='vit_timm')
    if config.distillation_token and config.position != 'learned':
      weights = representable.learned_positions(weights)
    weights = representable.learned_positions(weights, fixed=(None,))
    if weights.config.register_position or 'token' in weights.params.get('position', {}):
      # timm's prefix tokens have positions all together or not at all.
      weights = representable.register_position(representable.token_position(weights))
    arrays = leaves.to_arrays(weights, names.of_config(weights.config).table(), POSITIONS)
    notes = list(weights.notes)
    written = config_lib.write(weights, notes)
    return Written(arrays, {'config.json': written}, dataclasses.replace(weights, notes=tuple(notes)))


def _allowed(config: ViTConfig) -> dict[str, Any]:
  """Return {config field: values} that timm's classes hold, for the class that a model needs."""
  common: dict[str, Any] = dict(representation_size=(None,), patch_bias=(not config.pre_norm,))
  if names.is_eva(config):
    return dict(common, key_bias=(False,) if config.qkv_bias else _BOTH, pool=('gap', 'token'), pre_norm=_BOTH,
                rotary=(None, 'eva', 'dinov3'), mlp=('gelu', 'swiglu'), register_position=_BOTH,
                mlp_hidden_norm=(config.mlp == 'swiglu', False))
  pools = ('gap',) if config.norm_after_pool else ('gap', 'token')
  if config.relative_position is not None:
    return dict(common, pool=pools, relative_position=('mlp', 'mlp_swin', 'table'), registers=(0,), position=(None,))
  if config.pool == 'distilled':
    return dict(common, pool=('distilled',), registers=(0,), distillation_token=(True,), token_position=(True,))
  return dict(common, pool=('gap',) if config.norm_after_pool else (*pools, 'map'), register_position=_BOTH,
              pre_norm=_BOTH, mlp=('gelu', 'swiglu'), key_bias=(True, not config.qkv_bias))


def _epsilon(config: ViTConfig) -> float:
  """Return the LayerNorm epsilon that timm has for a model: the model's own if one of its architectures has it."""
  plain = config.pool != 'distilled' and config.relative_position is None and config.mlp == 'gelu'
  if (plain or names.is_eva(config)) and config.norm_epsilon == config_lib.CLIP_EPSILON:
    return config.norm_epsilon
  return 1e-6


def _refuse_other_blocks(tensors: Tensors, fields: dict[str, Any], table: Table, architecture: str) -> None:
  """Raise UserError if the first block has other arrays than ours: a model that computes something else.

  What is only missing or left over in single blocks is a damaged file, see `leaves.read_weights`.
  """
  paths = [path for path in shapes(read_config(fields)) if path.startswith(leaves.BLOCKS)]
  expected = {table[path].name.format(i=0) for path in paths}
  found = {name for name in tensors.shapes if name.startswith(BLOCK)}
  last = 'fc_norm' if fields['norm_after_pool'] else 'norm'
  expected |= {f'{last}.weight', f'{last}.bias'}
  found |= {name for name in expected if name in tensors}
  if expected != found:
    what = [f'has {listing(sorted(found - expected))}'] if found - expected else []
    what += [f'lacks {listing(sorted(expected - found))}'] if expected - found else []
    raise tensors.error(f'this is a {architecture or "Vision Transformer"} model of a kind that vit_jax does not have: '
                        f'its first block or last LayerNorm {" and ".join(what)}')


def _read_fields(tensors: Tensors, config: config_lib.Config, found: Names,
                 notes: list[str]) -> dict[str, Any]:
  width, channels, *patch_size = tensors.shape(STEM, 4)
  depth = infer.depth(tensors, r'blocks\.(\d+)\.')
  mlp_dim = tensors.shape(f'{BLOCK}mlp.fc2.weight', 2)[1]
  qk_norm = f'{BLOCK}attn.q_norm.weight' in tensors
  if qk_norm and width % tensors.shape(f'{BLOCK}attn.q_norm.weight', 1)[0] == 0:
    heads = width // tensors.shape(f'{BLOCK}attn.q_norm.weight', 1)[0]
  else:
    heads = config.heads or infer.heads(tensors, width, depth, mlp_dim, notes)
  class_token, distilled = 'cls_token' in tensors, 'dist_token' in tensors
  registers = tensors.shape('reg_token', 3)[1] if 'reg_token' in tensors else 0
  pool = 'distilled' if distilled else _read_pool(tensors, config, class_token)
  # timm can pool over either; our mean is over patches, and our attention pooling over all tokens as in big_vision.
  if pool in ('gap', 'map') and class_token + registers and config.pool_reads_prefix != (pool == 'map'):
    raise tensors.error(f'its pooling ({pool}) {"includes" if config.pool_reads_prefix else "leaves out"} class token '
                        'and registers, unlike that of vit_jax: this model cannot be loaded')
  biases = 'attn.q_proj.bias' if found.split_qkv else 'attn.q_bias' if found.own_biases else 'attn.qkv.bias'
  fields: dict[str, Any] = dict(
      patch_size=tuple(patch_size), channels=channels, width=width, depth=depth, heads=heads, mlp_dim=mlp_dim,
      patch_bias='patch_embed.proj.bias' in tensors, pre_norm='norm_pre.weight' in tensors,
      mlp='gelu' if found.mlp == 'plain' else 'swiglu', mlp_hidden_norm=f'{BLOCK}mlp.norm.weight' in tensors,
      class_token=class_token, distillation_token=distilled, registers=registers, pool=pool,
      norm_after_pool=found.norm_after_pool, qkv_bias=f'{BLOCK}{biases}' in tensors, key_bias=not found.own_biases,
      qk_norm=qk_norm, gelu=config.gelu, norm_epsilon=config.norm_epsilon, **config.rotary, **_read_relative(tensors),
      # Any number says that there are scales; their values are in the file.
      layer_scale=config.layer_scale if {f'{BLOCK}ls1.gamma', f'{BLOCK}gamma_1'} & tensors.shapes.keys() else None,
      num_classes=tensors.shape('head.weight', 2)[0] if 'head.weight' in tensors else None)
  return fields if found.hybrid is None else {**fields, **hybrid.fields(tensors, found.hybrid)}


def _read_relative(tensors: Tensors) -> dict[str, Any]:
  """Return the config fields of relative positions; {} for a model without."""
  for shared, prefix in ((True, 'shared_rel_pos.'), (False, f'{BLOCK}attn.rel_pos.')):
    if f'{prefix}relative_position_bias_table' in tensors:
      return dict(relative_position='table', relative_position_shared=shared)
    if f'{prefix}mlp.fc1.weight' in tensors:
      return dict(relative_position='mlp' if f'{prefix}mlp.fc2.bias' in tensors else 'mlp_swin',
                  relative_position_shared=shared,
                  relative_position_dim=tensors.shape(f'{prefix}mlp.fc1.weight', 2)[0])
  return {}


def _read_pool(tensors: Tensors, config: config_lib.Config, class_token: bool) -> str:
  if 'attn_pool.latent' in tensors:
    return 'map'
  if config.pool is None:
    return 'gap' if 'fc_norm.weight' in tensors or not class_token else 'token'
  return config.pool


def _read_positions(tensors: Tensors, fields: dict[str, Any], stored_size: tuple[int, int] | None, requested: ImageSize,
                    notes: list[str]) -> dict[str, Any]:
  """Return the fields for image size and positions.

  `stored_size` is the image size of the config; if there is one, it determines the grid.
  """
  patch_size = fields['patch_size']
  patch_size = resnet.patch_pixels(patch_size, fields['resnet']) if 'resnet' in fields else patch_size
  if POSITIONS not in tensors:
    size = stored_size or infer.image_size(tensors, patch_size, requested, notes)
    return dict(image_size=size, position=None)
  rows = tensors.shape(POSITIONS, 3)[1]
  prefix = fields['class_token'] + fields['distillation_token'] + fields['registers']
  # Rows for the prefix or none: the stated size decides; without one, which of the two leaves a square.
  for own in (True, False):
    if infer.fits(stored_size, patch_size, rows - own * prefix):
      size = stored_size
      break
  else:
    own, size = _guess_positions(tensors, rows, prefix, patch_size, requested)
  return dict(image_size=size, position='learned', token_position=bool(own and fields['class_token']),
              register_position=bool(own and fields['registers']))


def _guess_positions(tensors: Tensors, rows: int, prefix: int, patch_size: tuple[int, int],
                     requested: ImageSize) -> tuple[bool, tuple[int, int]]:
  """Return (whether the prefix has positions, image size) for the first of both that leaves a grid of patches."""
  if prefix:
    try:
      return True, pixels(infer.grid(tensors, rows - prefix, patch_size, requested), patch_size, requested)
    except ValueError:
      pass
  return False, pixels(infer.grid(tensors, rows, patch_size, requested), patch_size, requested)
