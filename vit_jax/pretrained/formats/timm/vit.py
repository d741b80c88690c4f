"""timm's `VisionTransformer` state dict as safetensors (github.com/huggingface/pytorch-image-models)."""
import dataclasses
import re
from typing import Any

from vit_jax.pretrained.files.tensors import Tensors
from vit_jax.pretrained.formats import infer, leaves, representable, resnet
from vit_jax.pretrained.formats.base import Configs, ImageSize, Written
from vit_jax.pretrained.formats.leaves import SAME, TORCH_CONV, Leaf, Table, torch_linear_leaves, torch_norm_leaves
from vit_jax.pretrained.formats.timm import config as config_lib
from vit_jax.pretrained.formats.timm import preprocessing
from vit_jax.pretrained.formats.timm.bit import unit_prefix
from vit_jax.pretrained.formats.weights import Weights, pixels

POSITIONS = 'pos_embed'
_BACKBONE = 'patch_embed.backbone.'

_MLP = {**torch_linear_leaves('mlp/up', 'mlp.fc1'), **torch_linear_leaves('mlp/down', 'mlp.fc2')}
_BLOCK = {
    **torch_norm_leaves('attention_norm', 'norm1'),
    **torch_linear_leaves('attention/query', 'attn.qkv', part=(0, 3)),
    **torch_linear_leaves('attention/key', 'attn.qkv', part=(1, 3)),
    **torch_linear_leaves('attention/value', 'attn.qkv', part=(2, 3)),
    **torch_norm_leaves('attention/query_norm', 'attn.q_norm'),
    **torch_norm_leaves('attention/key_norm', 'attn.k_norm'),
    **torch_linear_leaves('attention/out', 'attn.proj', inputs=2),
    'attention_scale': Leaf('ls1.gamma', SAME),
    **torch_norm_leaves('mlp_norm', 'norm2'),
    **_MLP,
    'mlp_scale': Leaf('ls2.gamma', SAME),
}
_MAP = {
    'probe': Leaf('latent', leaves.leading(2)),
    **torch_linear_leaves('attention/query', 'q'),
    **torch_linear_leaves('attention/key', 'kv', part=(0, 2)),
    **torch_linear_leaves('attention/value', 'kv', part=(1, 2)),
    **torch_linear_leaves('attention/out', 'proj', inputs=2),
    **torch_norm_leaves('norm', 'norm'),
    **_MLP,
}


def _table(norm_after_pool: bool, hybrid: tuple[int, ...] | None) -> Table:
  return {
      **({} if hybrid is None else _resnet_table(hybrid)),
      'patch_embed/kernel': Leaf('patch_embed.proj.weight', TORCH_CONV),
      'patch_embed/bias': Leaf('patch_embed.proj.bias', SAME),
      'token': Leaf('cls_token', leaves.leading(2)),
      'registers': Leaf('reg_token', leaves.leading(1)),
      **leaves.prefixed(_BLOCK, leaves.BLOCKS, 'blocks.{i}.'),
      **leaves.prefixed(_MAP, 'pool/', 'attn_pool.'),
      **torch_norm_leaves('norm', 'fc_norm' if norm_after_pool else 'norm'),
      **torch_linear_leaves('head', 'head'),
  }


class TimmViT:
  """timm's format, with a config.json that `timm.create_model('local-dir:…')` reads; see `base.Family`."""

  resize_method = 'bicubic'

  def matches(self, tensors: Tensors, configs: Configs) -> bool:
    """Return whether a file with these names is a ViT of timm's."""
    del configs
    names = tensors.shapes
    return 'patch_embed.proj.weight' in names

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
    fields = _read_fields(tensors, config, notes)
    fields.update(_read_positions(tensors, fields, config.image_size, image_size, notes))
    prepared = preprocessing.read(tensors, config.pretrained, fields['image_size'], fields['channels'], notes)
    return leaves.read_weights(
        tensors, fields, _table(fields['norm_after_pool'], fields.get('resnet')), POSITIONS,
        class_names=config.class_names, notes=(*config.notes, *notes), preprocessing=prepared)

  def holds(self, config: Any) -> bool:
    """Return whether it is a Vision Transformer."""
    return config.kind == 'vit'

  def write(self, weights: Weights, approximate: bool = False) -> Written:
    """Lay weights out in this format; see `base.Family.write`."""
    weights = representable.key_bias(representable.mask_token(representable.norm_before_pool(weights), False))
    representable.require(
        weights, 'timm', representation_size=(None,), register_position=(False, True),
        pool=('gap',) if weights.config.norm_after_pool else ('gap', 'map', 'token'))
    representable.require_numerics(weights, 'timm', approximate, norm_epsilon=1e-6)
    if weights.config.resnet is not None:
      representable.require_numerics(weights, 'timm', approximate, resnet_numerics='vit_timm')
    weights = representable.learned_positions(weights, fixed=(None,))
    if weights.config.register_position or 'token' in weights.params.get('position', {}):
      # timm's prefix tokens have positions all together or not at all.
      weights = representable.register_position(representable.token_position(weights))
    table = _table(weights.config.norm_after_pool, weights.config.resnet)
    arrays = leaves.to_arrays(weights, table, POSITIONS)
    notes = list(weights.notes)
    config = config_lib.write(weights, notes)
    return Written(arrays, {'config.json': config}, dataclasses.replace(weights, notes=tuple(notes)))


def _resnet_table(blocks: tuple[int, ...]) -> Table:
  root = _root(bool(blocks))
  names = {'conv_root/kernel': Leaf(f'{root}conv.weight', TORCH_CONV), **torch_norm_leaves('norm_root', f'{root}norm')}
  prefix = lambda stage, unit: f'{_BACKBONE}{unit_prefix(stage, unit)}'
  return resnet.table(blocks, names, resnet.torch_unit(), prefix)


def _root(has_stages: bool) -> str:
  """Return what comes before the names of a hybrid's root; it is not called a stem if there is nothing else."""
  return f'{_BACKBONE}stem.' if has_stages else _BACKBONE


def _read_resnet(tensors: Tensors) -> dict[str, Any]:
  """Return the config fields of a hybrid's ResNet; {} for a plain ViT."""
  if not any(name.startswith(_BACKBONE) for name in tensors.shapes):
    return {}
  blocks = resnet.blocks(tensors, rf'{re.escape(_BACKBONE)}stages\.(\d+)\.blocks\.(\d+)\.', first=0)
  root = f'{_root(bool(blocks))}conv.weight'
  if root not in tensors or f'{_root(bool(blocks))}norm.weight' not in tensors:
    raise tensors.error("expected the root of a hybrid with timm's ResNet v2 (vit_*_r26_*, vit_*_r50_*), got another "
                        'convolutional stem, which vit_jax does not have')
  last = lambda stage: f'{_BACKBONE}{unit_prefix(stage, 1)}conv3.weight'
  found = resnet.widths(tensors, root, last, len(blocks), axis=0)
  return dict(resnet.hybrid_fields(tensors, blocks, found), resnet_numerics='vit_timm',
              channels=tensors.shape(root, 4)[1])


def _read_fields(tensors: Tensors, config: config_lib.Config, notes: list[str]) -> dict[str, Any]:
  width, channels, *patch_size = tensors.shape('patch_embed.proj.weight', 4)
  depth = infer.depth(tensors, r'blocks\.(\d+)\.')
  mlp_dim = tensors.shape('blocks.0.mlp.fc1.weight', 2)[0]
  qk_norm = 'blocks.0.attn.q_norm.weight' in tensors
  if qk_norm and width % tensors.shape('blocks.0.attn.q_norm.weight', 1)[0] == 0:
    heads = width // tensors.shape('blocks.0.attn.q_norm.weight', 1)[0]
  else:
    heads = config.heads or infer.heads(tensors, width, depth, mlp_dim, notes)
  class_token = 'cls_token' in tensors
  registers = tensors.shape('reg_token', 3)[1] if 'reg_token' in tensors else 0
  pool = _read_pool(tensors, config, class_token)
  # timm can pool over either; our mean is over patches, and our attention pooling over all tokens as in big_vision.
  if pool != 'token' and class_token + registers and config.pool_reads_prefix != (pool == 'map'):
    raise tensors.error(f'its pooling ({pool}) {"includes" if config.pool_reads_prefix else "leaves out"} class token '
                        'and registers, unlike that of vit_jax: this model cannot be loaded')
  fields: dict[str, Any] = dict(
      patch_size=tuple(patch_size), channels=channels, width=width, depth=depth, heads=heads, mlp_dim=mlp_dim,
      class_token=class_token, registers=registers, pool=pool, norm_after_pool='fc_norm.weight' in tensors,
      qkv_bias='blocks.0.attn.qkv.bias' in tensors, qk_norm=qk_norm, gelu=config.gelu, norm_epsilon=1e-6,
      # Any number says that there are scales; their values are in the file.
      layer_scale=config.layer_scale if 'blocks.0.ls1.gamma' in tensors else None,
      num_classes=tensors.shape('head.weight', 2)[0] if 'head.weight' in tensors else None)
  return {**fields, **_read_resnet(tensors)}


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
  prefix = fields['class_token'] + fields['registers']
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
