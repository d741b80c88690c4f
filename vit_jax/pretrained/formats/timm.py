"""timm's `VisionTransformer` state dict as safetensors (github.com/huggingface/pytorch-image-models)."""
from vit_jax.pretrained.formats import infer
from vit_jax.pretrained.formats import leaves
from vit_jax.pretrained.formats import representable
from vit_jax.pretrained.formats import timm_config
from vit_jax.pretrained.formats.leaves import Leaf, SAME, TORCH_CONV, TORCH_FLAT, leading, torch_linear

SUFFIX = '.safetensors'
METHOD = 'bicubic'
POSITIONS = 'pos_embed'


def _linear(ours, theirs, inputs=1, part=(0, 1)):
  return {f'{ours}/kernel': Leaf(f'{theirs}.weight', torch_linear(inputs), part),
          f'{ours}/bias': Leaf(f'{theirs}.bias', TORCH_FLAT, part)}


def _norm(ours, theirs):
  return {f'{ours}/scale': Leaf(f'{theirs}.weight', SAME), f'{ours}/bias': Leaf(f'{theirs}.bias', SAME)}


_MLP = {**_linear('mlp/up', 'mlp.fc1'), **_linear('mlp/down', 'mlp.fc2')}
_BLOCK = {
    **_norm('attention_norm', 'norm1'),
    **_linear('attention/query', 'attn.qkv', part=(0, 3)),
    **_linear('attention/key', 'attn.qkv', part=(1, 3)),
    **_linear('attention/value', 'attn.qkv', part=(2, 3)),
    **_norm('attention/query_norm', 'attn.q_norm'),
    **_norm('attention/key_norm', 'attn.k_norm'),
    **_linear('attention/out', 'attn.proj', inputs=2),
    'attention_scale': Leaf('ls1.gamma', SAME),
    **_norm('mlp_norm', 'norm2'),
    **_MLP,
    'mlp_scale': Leaf('ls2.gamma', SAME),
}
_MAP = {
    'probe': Leaf('latent', leading(2)),
    **_linear('attention/query', 'q'),
    **_linear('attention/key', 'kv', part=(0, 2)),
    **_linear('attention/value', 'kv', part=(1, 2)),
    **_linear('attention/out', 'proj', inputs=2),
    **_norm('norm', 'norm'),
    **_MLP,
}


def _table(fields):
  return {
      'patch_embed/kernel': Leaf('patch_embed.proj.weight', TORCH_CONV),
      'patch_embed/bias': Leaf('patch_embed.proj.bias', SAME),
      'token': Leaf('cls_token', leading(2)),
      'registers': Leaf('reg_token', leading(1)),
      **leaves.renamed(_BLOCK, leaves.BLOCKS, 'blocks.{i}.'),
      **leaves.renamed(_MAP, 'pool/', 'attn_pool.'),
      **_norm('norm', 'fc_norm' if fields['norm_after_pool'] else 'norm'),
      **_linear('head', 'head'),
  }


def matches(names):
  """Whether a file with these names is a ViT of timm's."""
  return 'patch_embed.proj.weight' in names


def read(tensors, configs, image_size=None):
  """Reads the `Weights` of a file.

  Args:
    tensors: the open file.
    configs: {'config.json': dict} as timm has it on the Hugging Face hub, or constructor arguments; {} if none.
    image_size: what the model was trained at, where config and positions do not tell.

  Raises:
    ValueError: no such file, or a model that computes something else under these names.
  """
  config, notes = timm_config.parse(tensors, configs.get('config.json')), []
  fields = _fields(tensors, config)
  fields.update(_positions(tensors, fields, config.image_size, image_size, notes))
  between = fields['registers'] if fields.pop('positions_of_registers') else 0
  weights = leaves.read(
      tensors, fields, _table(fields), POSITIONS, between, source='timm', class_names=config.class_names,
      preprocessing=config.preprocessing(tensors, fields), notes=(*config.notes, *notes))
  if between:
    # timm adds positions to its registers too; their sum is all that the model ever sees.
    rows = tensors.read(POSITIONS, tensors.shape(POSITIONS))[0, 1:1 + between]
    weights.params['registers'] = weights.params['registers'] + rows
  return weights


def write(weights, approximate=False):
  """Lays out `weights` as such a file, with a config.json that timm's `create_model('local-dir:…')` reads.

  Args:
    weights: to be written.
    approximate: accept that timm's code uses another LayerNorm epsilon than the model.

  Returns:
    ({name: array}, {'config.json': dict}, weights as they were written).

  Raises:
    ValueError: names a field that these files cannot hold.
  """
  weights = representable.norm_before_pool(weights)
  fields = weights.fields
  representable.require(weights, 'timm', representation_size=(None,))
  if fields['norm_after_pool']:
    representable.require(weights, 'timm', pool=('gap',))
  representable.require_numerics(weights, 'timm', approximate, norm_epsilon=1e-6)
  weights = representable.learned_positions(weights, fixed=(None,))
  # Where the class token has a position timm wants one for every register too: zero.
  arrays = leaves.spread(weights, _table(fields), POSITIONS, between=fields['registers'])
  return arrays, {'config.json': timm_config.write(weights)}, weights


def _fields(tensors, config):
  width, channels, *patch_size = tensors.shape('patch_embed.proj.weight', 4)
  depth = infer.depth(tensors, r'blocks\.(\d+)\.')
  mlp_dim = tensors.shape('blocks.0.mlp.fc1.weight', 2)[0]
  qk_norm = 'blocks.0.attn.q_norm.weight' in tensors
  if qk_norm and width % tensors.shape('blocks.0.attn.q_norm.weight', 1)[0] == 0:
    heads = width // tensors.shape('blocks.0.attn.q_norm.weight', 1)[0]
  else:
    heads = config.heads or infer.heads(tensors, width, depth, mlp_dim)
  class_token = 'cls_token' in tensors
  registers = tensors.shape('reg_token', 3)[1] if 'reg_token' in tensors else 0
  pool = _pool(tensors, config, class_token)
  # timm can pool over either; here the mean is over patches, and attention pooling over all tokens as in big_vision.
  if pool != 'token' and class_token + registers and config.pool_reads_prefix != (pool == 'map'):
    raise tensors.error(f'its pooling ({pool}) {"reads" if config.pool_reads_prefix else "leaves out"} class token and '
                        'registers, unlike that of vit_jax: this model cannot be loaded')
  return dict(
      patch_size=tuple(patch_size), channels=channels, width=width, depth=depth, heads=heads, mlp_dim=mlp_dim,
      class_token=class_token, registers=registers, pool=pool, norm_after_pool='fc_norm.weight' in tensors,
      qkv_bias='blocks.0.attn.qkv.bias' in tensors, qk_norm=qk_norm, gelu=config.gelu, norm_epsilon=1e-6,
      # Any number stands for "there are scales"; their values are in the file.
      layer_scale=config.layer_scale if 'blocks.0.ls1.gamma' in tensors else None,
      num_classes=tensors.shape('head.weight', 2)[0] if 'head.weight' in tensors else None)


def _pool(tensors, config, class_token):
  if 'attn_pool.latent' in tensors:
    return 'map'
  if config.pool is None:
    return 'gap' if 'fc_norm.weight' in tensors or not class_token else 'token'
  return config.pool


def _positions(tensors, fields, stored_size, asked_size, notes):
  """Image size and kind of positions; `stored_size` is the config's, which fixes the grid if there is one."""
  patch_size = fields['patch_size']
  if POSITIONS not in tensors:
    size = stored_size or infer.image_size(tensors, patch_size, asked_size, notes)
    return dict(image_size=size, position=None, positions_of_registers=False)
  rows = tensors.shape(POSITIONS, 3)[1]
  prefix = fields['class_token'] + fields['registers']
  # Rows for the prefix or none: the stated size decides; without one, which of them leaves a square.
  for own in (True, False):
    if infer.fits(stored_size, patch_size, rows - own * prefix):
      size = stored_size
      break
  else:
    own, size = _guessed_positions(tensors, rows, prefix, patch_size, asked_size)
  return dict(image_size=size, position='learned', token_position=own and fields['class_token'],
              positions_of_registers=own)


def _guessed_positions(tensors, rows, prefix, patch_size, asked_size):
  for own in (True, False) if prefix else (False,):
    try:
      grid = infer.grid(tensors, rows - own * prefix, patch_size, asked_size)
      return own, tuple(n * p for n, p in zip(grid, patch_size))
    except ValueError:
      if not own:
        raise
