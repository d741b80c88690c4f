"""big_vision's `.npz` files (github.com/google-research/big_vision, `models/vit.py`), loop and scan form."""
import re

from vit_jax.pretrained.formats import infer
from vit_jax.pretrained.formats import leaves
from vit_jax.pretrained.formats import linen
from vit_jax.pretrained.formats import representable
from vit_jax.base.preprocessing import Preprocessing

SUFFIX = '.npz'
METHOD = 'bilinear'
POSITIONS = 'pos_embedding'
_PREFIX = re.compile(r'(params|opt/target)/')
# Where the position embedding was before it came to the top level, with a row for the class token; and the MAP head was
# once inlined (vit.py, fix_old_checkpoints).
_OLD_POSITIONS = ('Transformer/posembed_input/pos_embedding', 'Transformer/pos_embedding')
_INLINED = ('probe', 'LayerNorm_0/', 'MlpBlock_0/', 'MultiHeadDotProductAttention_0/')
# What a checkpoint of a training run holds besides.
_TRAINING = ('opt/', 'chrono/', 'extra/')


def matches(names):
  """Whether a file with these names is big_vision's, not the official kind."""
  own = (POSITIONS, 'Transformer/pos_embedding', 'probe', linen.SCAN, 'MAPHead_0/')
  return any(_PREFIX.match(name) or name.startswith(own) for name in names)


def read(tensors, configs, image_size=None):
  """Reads the `Weights` of a file.

  Args:
    tensors: the open file.
    configs: unused, such a file has none.
    image_size: what the model was trained at, where positions form no square image or are not stored (sine-cosine).

  Raises:
    ValueError: no such file.
  """
  del configs
  moved = any(name.endswith(_OLD_POSITIONS) for name in tensors.shapes)
  tensors, notes = tensors.rename(_renamed(tensors.shapes)), []
  form = linen.SCAN if any(name.startswith(linen.SCAN) for name in tensors.shapes) else linen.LOOP
  fields = linen.fields_of(tensors, form)
  if 'MAPHead_0/probe' in tensors:
    fields.update(pool='map')
  if POSITIONS in tensors:
    fields.update(_positions(tensors, fields, image_size, moved))
  else:
    fields.update(position='sincos2d', token_position=False,
                  image_size=infer.image_size(tensors, fields['patch_size'], image_size, notes))
  table = {**linen.STEM, **linen.BLOCKS[form], **linen.MAP_HEAD}
  return leaves.read(tensors, fields, table, POSITIONS, source='big_vision', notes=tuple(notes),
                     preprocessing=Preprocessing(evaluation(fields['image_size'])))


def write(weights, approximate=False):
  """Lays out `weights` as such a file, in loop form.

  Args:
    weights: to be written.
    approximate: accept that big_vision's code uses another GELU or LayerNorm epsilon than the model.

  Returns:
    ({name: array}, {} as it has no config files, weights as they were written).

  Raises:
    ValueError: names a field that these files cannot hold.
  """
  weights = representable.norm_before_pool(weights)
  pool = weights.fields['pool']
  representable.require(weights, 'big_vision', class_token=(pool == 'token',), registers=(0,), layer_scale=(None,),
                        qk_norm=(False,), qkv_bias=(True,), norm_after_pool=(False,))
  representable.require_numerics(weights, 'big_vision', approximate, gelu='tanh', norm_epsilon=1e-6)
  weights = representable.learned_positions(weights, fixed=('sincos2d',))
  table = {**linen.STEM, **linen.BLOCKS[linen.LOOP], **linen.MAP_HEAD}
  own = 'token' in weights.params.get('position', {})
  # At its old place a position embedding has a row for the class token, at its new place none.
  arrays = leaves.spread(weights, table, _OLD_POSITIONS[0] if own else POSITIONS)
  return {f'params/{name}': array for name, array in arrays.items()}, {}, weights


def evaluation(image_size):
  """big_vision's evaluation: the smaller side to 256 for 224 pixels (448 for 384), then the middle."""
  if image_size[0] != image_size[1]:
    return 'resize'
  smaller = 448 if image_size[0] == 384 else round(image_size[0] * 256 / 224)
  return f'resize_small({smaller})|central_crop'


def _renamed(names):
  prefixes = {match[0] for name in names if (match := _PREFIX.match(name))}
  prefix = 'params/' if 'params/' in prefixes else next(iter(prefixes), '')

  def rename(name):
    if not name.startswith(prefix):
      return None if name.startswith(_TRAINING) else name
    name = linen.modern(name.removeprefix(prefix))
    return f'MAPHead_0/{name}' if name.startswith(_INLINED) else POSITIONS if name in _OLD_POSITIONS else name

  return rename


def _positions(tensors, fields, image_size, moved):
  """Image size, and whether row 0 is the class token's position or that was added to the token ("folded")."""
  rows = tensors.shape(POSITIONS, 3)[1]
  size = lambda patches: tuple(n * p for n, p in zip(
      infer.grid(tensors, patches, fields['patch_size'], image_size), fields['patch_size']))
  if not fields['class_token']:
    return dict(image_size=size(rows))
  if not moved:
    try:
      return dict(image_size=size(rows), token_position=False)
    except ValueError:
      pass  # for a while there was a row for the class token at the new place too
  return dict(image_size=size(rows - 1), token_position=True)
