"""Names of the arrays of timm's Vision Transformers: classes VisionTransformer, VisionTransformerRelPos and Eva."""
import dataclasses

from vit_jax.models.config import GATED_MLPS, ViTConfig
from vit_jax.pretrained.files.tensors import Tensors
from vit_jax.pretrained.formats import leaves
from vit_jax.pretrained.formats.leaves import (
  SAME,
  TORCH_CONV,
  TORCH_FLAT,
  Leaf,
  Table,
  torch_linear_leaves,
  torch_norm_leaves,
)
from vit_jax.pretrained.formats.timm import hybrid

POSITIONS = 'pos_embed'
STEM = 'patch_embed.proj.weight'
BLOCK = 'blocks.0.'


@dataclasses.dataclass(frozen=True)
class Names:
  """Which of several names a file has for the same thing.

  Attributes:
    split_qkv: query, key and value are separate arrays, not one: Eva with `qkv_fused=False`.
    own_biases: their biases have names of their own, and keys have none: Eva's attention.
    mlp: 'plain', 'packed' (gate and value are one array: timm's GluMlp) or 'split' (timm's SwiGLU).
    gamma: LayerScale is `gamma_1` as in Eva, not `ls1.gamma`.
    norm_after_pool: the last LayerNorm is `fc_norm`, not `norm`.
    hybrid: units per stage of the ResNet before the patches; None for none.
  """
  split_qkv: bool = False
  own_biases: bool = False
  mlp: str = 'plain'
  gamma: bool = False
  norm_after_pool: bool = False
  hybrid: tuple[int, ...] | None = None

  @property
  def is_eva(self) -> bool:
    """Whether the class is Eva."""
    return self.split_qkv or self.own_biases or self.gamma

  def table(self) -> Table:
    """Return {our path: Leaf} without the positions."""
    block = {
        **torch_norm_leaves('attention_norm', 'norm1'),
        **_qkv(self),
        **torch_norm_leaves('attention/query_norm', 'attn.q_norm'),
        **torch_norm_leaves('attention/key_norm', 'attn.k_norm'),
        **torch_linear_leaves('attention/out', 'attn.proj', inputs=2),
        'attention_scale': Leaf('gamma_1' if self.gamma else 'ls1.gamma', SAME),
        **leaves.prefixed(_RELATIVE, 'relative/', 'attn.rel_pos.'),
        **torch_norm_leaves('mlp_norm', 'norm2'),
        **_MLPS[self.mlp],
        'mlp_scale': Leaf('gamma_2' if self.gamma else 'ls2.gamma', SAME),
    }
    return {
        **({} if self.hybrid is None else hybrid.table(self.hybrid)),
        'patch_embed/kernel': Leaf(STEM, TORCH_CONV),
        'patch_embed/bias': Leaf('patch_embed.proj.bias', SAME),
        'token': Leaf('cls_token', leaves.leading(2)),
        'distillation_token': Leaf('dist_token', leaves.leading(2)),
        'registers': Leaf('reg_token', leaves.leading(1)),
        **torch_norm_leaves('pre_norm', 'norm_pre'),
        **leaves.prefixed(block, leaves.BLOCKS, 'blocks.{i}.'),
        **leaves.prefixed(_RELATIVE, 'encoder/relative/', 'shared_rel_pos.'),
        **leaves.prefixed(_MAP, 'pool/', 'attn_pool.'),
        **torch_norm_leaves('norm', 'fc_norm' if self.norm_after_pool else 'norm'),
        **torch_linear_leaves('head', 'head'),
        **torch_linear_leaves('head_distilled', 'head_dist'),
    }


def of_file(tensors: Tensors) -> Names:
  """Return the names that a file has."""
  has = lambda name: f'{BLOCK}{name}' in tensors
  packed = has('mlp.fc1.weight') and has('mlp.fc2.weight') and (
      tensors.shape(f'{BLOCK}mlp.fc1.weight', 2)[0] == 2 * tensors.shape(f'{BLOCK}mlp.fc2.weight', 2)[1])
  own_biases = has('attn.q_bias') or has('attn.q_proj.weight')
  # Eva without any biases, as DINOv3, has `gamma_1` and no positions.
  return Names(split_qkv=has('attn.q_proj.weight'),
               own_biases=own_biases or (has('gamma_1') and not has('attn.qkv.bias')),
               mlp='split' if has('mlp.fc1_x.weight') else 'packed' if packed else 'plain',
               gamma=has('gamma_1'), norm_after_pool='fc_norm.weight' in tensors)


def of_config(config: ViTConfig) -> Names:
  """Return the names that a model's file gets."""
  eva = is_eva(config)
  if config.mlp not in GATED_MLPS:
    mlp = 'plain'
  else:  # DINOv3's gated MLP is split although nothing is between its layers
    mlp = 'split' if config.mlp_hidden_norm or config.rotary == 'dinov3' else 'packed'
  return Names(split_qkv=eva and config.mlp_hidden_norm, own_biases=eva, mlp=mlp, gamma=eva,
               norm_after_pool=config.norm_after_pool, hybrid=config.resnet)


def is_eva(config: ViTConfig) -> bool:
  """Return whether a model needs timm's class Eva."""
  return config.rotary is not None or config.mlp_hidden_norm or (config.qkv_bias and not config.key_bias)


def _qkv(names: Names) -> Table:
  """Return the leaves of the projections of query, key and value."""
  table: Table = {}
  for k, (ours, letter) in enumerate((('query', 'q'), ('key', 'k'), ('value', 'v'))):
    if names.split_qkv:
      table.update(torch_linear_leaves(f'attention/{ours}', f'attn.{letter}_proj'))
      continue
    table.update(torch_linear_leaves(f'attention/{ours}', 'attn.qkv', part=(k, 3)))
    if names.own_biases:
      table[f'attention/{ours}/bias'] = Leaf(f'attn.{letter}_bias', TORCH_FLAT)
  return table


_MLPS: dict[str, Table] = {
    'plain': {**torch_linear_leaves('mlp/up', 'mlp.fc1'), **torch_norm_leaves('mlp/norm', 'mlp.norm'),
              **torch_linear_leaves('mlp/down', 'mlp.fc2')},
    'packed': {**torch_linear_leaves('mlp/gate', 'mlp.fc1', part=(0, 2)),
               **torch_linear_leaves('mlp/up', 'mlp.fc1', part=(1, 2)), **torch_linear_leaves('mlp/down', 'mlp.fc2')},
    'split': {**torch_linear_leaves('mlp/gate', 'mlp.fc1_g'), **torch_linear_leaves('mlp/up', 'mlp.fc1_x'),
              **torch_norm_leaves('mlp/norm', 'mlp.norm'), **torch_linear_leaves('mlp/down', 'mlp.fc2')},
}
_RELATIVE = {
    **torch_linear_leaves('up', 'mlp.fc1'),
    **torch_linear_leaves('down', 'mlp.fc2'),
    'table': Leaf('relative_position_bias_table', SAME),
}
_MAP = {
    'probe': Leaf('latent', leaves.leading(2)),
    **torch_linear_leaves('attention/query', 'q'),
    **torch_linear_leaves('attention/key', 'kv', part=(0, 2)),
    **torch_linear_leaves('attention/value', 'kv', part=(1, 2)),
    **torch_linear_leaves('attention/out', 'proj', inputs=2),
    **torch_norm_leaves('norm', 'norm'),
    **_MLPS['plain'],
}
