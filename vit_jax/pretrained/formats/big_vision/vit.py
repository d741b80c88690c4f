"""big_vision's `.npz` files (github.com/google-research/big_vision, `models/vit.py`), loop and scan form."""
from collections.abc import Callable, Iterable
from typing import Any

from vit_jax.base.preprocessing import Preprocessing
from vit_jax.pretrained.files.tensors import Tensors
from vit_jax.pretrained.formats import infer, leaves, linen, representable
from vit_jax.pretrained.formats.base import Configs, ImageSize, Written
from vit_jax.pretrained.formats.big_vision.names import PREFIX, parameter_name
from vit_jax.pretrained.formats.weights import Weights, pixels

POSITIONS = 'pos_embedding'
# Older names (vit.py, fix_old_checkpoints): the position embedding was not at the top level and had a row for the class
# token, and the modules of the MAP head were.
_OLD_POSITIONS = ('Transformer/posembed_input/pos_embedding', 'Transformer/pos_embedding')
_INLINED = ('probe', 'LayerNorm_0/', 'MlpBlock_0/', 'MultiHeadDotProductAttention_0/')
# Where two_towers.py has the tower of images; an array of its text tower.
_IMAGE_TOWER, _TEXT = 'img/', 'Embed_0/embedding'


class BigVisionViT:
  """big_vision's format; see `base.Family`."""

  resize_method = 'bilinear'

  def matches(self, tensors: Tensors, configs: Configs) -> bool:
    """Return whether a file with these names is big_vision's, not an official one."""
    del configs
    names = tensors.shapes
    own = (POSITIONS, 'Transformer/pos_embedding', 'probe', linen.SCAN, 'MAPHead_0/')
    return any(PREFIX.match(name) or name.startswith((*own, _IMAGE_TOWER)) for name in names)

  def read(self, tensors: Tensors, configs: Configs, image_size: ImageSize = None) -> Weights:
    """Read an open file; `configs` is unused, there are none.

    `image_size` is needed if the positions are not those of a square image, or not stored (sine-cosine).

    Raises:
      UserError: not a file in this format, one with two towers, or a text tower.
    """
    del configs
    _refuse_towers(tensors)
    moved = any(name.endswith(_OLD_POSITIONS) for name in tensors.shapes)
    tensors, notes = tensors.rename(_current_name(tensors.shapes)), []
    block = linen.SCAN if any(name.startswith(linen.SCAN) for name in tensors.shapes) else linen.LOOP
    fields = linen.read_fields(tensors, block)
    if 'MAPHead_0/probe' in tensors:
      fields.update(pool='map')
    if POSITIONS in tensors:
      fields.update(_position_fields(tensors, fields, image_size, moved))
    else:
      fields.update(position='sincos2d', token_position=False,
                    image_size=infer.image_size(tensors, fields['patch_size'], image_size, notes))
    table = {**linen.STEM, **linen.BLOCKS[block], **linen.MAP_HEAD}
    return leaves.read_weights(tensors, fields, table, POSITIONS, notes=tuple(notes),
                               preprocessing=Preprocessing(_eval_transform(fields['image_size'])))

  def holds(self, config: Any) -> bool:
    """Return whether it is a Vision Transformer."""
    return config.kind == 'vit'

  def write(self, weights: Weights, approximate: bool = False) -> Written:
    """Lay weights out in this format, in loop form; see `base.Family.write`."""
    weights = representable.key_bias(representable.mask_token(representable.norm_before_pool(weights), False))
    representable.require(
        weights, 'big_vision', class_token=(weights.config.pool == 'token',), registers=(0,), layer_scale=(None,),
        resnet=(None,), qk_norm=(False,), qkv_bias=(True,), norm_after_pool=(False,))
    representable.require_numerics(weights, 'big_vision', approximate, gelu='tanh', norm_epsilon=1e-6)
    weights = representable.learned_positions(weights, fixed=('sincos2d',))
    table = {**linen.STEM, **linen.BLOCKS[linen.LOOP], **linen.MAP_HEAD}
    has_token = 'token' in weights.params.get('position', {})
    # At its old place a position embedding has a row for the class token, at its new place it has none.
    arrays = leaves.to_arrays(weights, table, _OLD_POSITIONS[0] if has_token else POSITIONS)
    return Written({f'params/{name}': array for name, array in arrays.items()}, {}, weights)


def _refuse_towers(tensors: Tensors) -> None:
  """Raise UserError for a file of models/proj/image_text/two_towers.py (LiT, SigLIP) and for its text tower alone."""
  names = {PREFIX.sub('', name) for name in tensors.shapes}
  if any(name.startswith(_IMAGE_TOWER) for name in names):
    raise tensors.error('holds two towers, of images and of text; name the one for images: '
                        f'python -m vit_jax.describe {tensors.path}:img, or load({tensors.path + ":img"!r})')
  if _TEXT in names:
    raise tensors.error('expected a tower of images, got one of text (Embed_0), which vit_jax does not have; name :img')


def _eval_transform(image_size: tuple[int, int]) -> str:
  """Return big_vision's evaluation transform: the smaller side to 256 for 224 pixels (448 for 384), then a crop."""
  if image_size[0] != image_size[1]:
    return 'resize'
  smaller = 448 if image_size[0] == 384 else round(image_size[0] * 256 / 224)
  return f'resize_small({smaller})|central_crop'


def _current_name(names: Iterable[str]) -> Callable[[str], str | None]:
  """Return a function from a name in a file to today's name, or to None for what is not a parameter."""
  strip = parameter_name(names)

  def current_name(name: str) -> str | None:
    stripped = strip(name)
    if stripped is None:
      return None
    name = linen.current_name(stripped)
    return f'MAPHead_0/{name}' if name.startswith(_INLINED) else POSITIONS if name in _OLD_POSITIONS else name

  return current_name


def _position_fields(tensors: Tensors, fields: dict[str, Any], image_size: ImageSize, moved: bool) -> dict[str, Any]:
  """Return the image size, and whether the class token has a position: row 0, unless it was added to the token."""
  rows = tensors.shape(POSITIONS, 3)[1]
  size = lambda patches: pixels(
      infer.grid(tensors, patches, fields['patch_size'], image_size), fields['patch_size'], image_size)
  if not fields['class_token']:
    return dict(image_size=size(rows))
  if not moved:
    try:
      return dict(image_size=size(rows), token_position=False)
    except ValueError:
      pass  # for a while there was a row for the class token at the new place too
  return dict(image_size=size(rows - 1), token_position=True)
