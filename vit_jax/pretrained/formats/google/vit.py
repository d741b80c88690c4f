"""Google's official `.npz` files (github.com/google-research/vision_transformer), of 2020 and since."""
from typing import Any

from vit_jax.base.preprocessing import Preprocessing
from vit_jax.pretrained.files.tensors import Tensors
from vit_jax.pretrained.formats import infer, leaves, linen, representable, resnet
from vit_jax.pretrained.formats.base import Configs, ImageSize, Written
from vit_jax.pretrained.formats.google import hybrid
from vit_jax.pretrained.formats.weights import Weights, pixels

POSITIONS = 'Transformer/posembed_input/pos_embedding'
_TABLE = {**linen.STEM, **linen.BLOCKS[linen.LOOP]}


class GoogleViT:
  """The official format; see `base.Family`."""

  resize_method = 'bilinear'

  def matches(self, tensors: Tensors, configs: Configs) -> bool:
    """Return whether the kernel of its patches is there."""
    del configs
    return 'embedding/kernel' in tensors

  def read(self, tensors: Tensors, configs: Configs, image_size: ImageSize = None) -> Weights:
    """Read an open file; `configs` is unused, there are none.

    Raises:
      UserError: not a file in this format.
    """
    del configs
    tensors = tensors.rename(linen.current_name)
    fields = linen.read_fields(tensors, linen.LOOP)
    patches = tensors.shape(POSITIONS, 3)[1] - fields['class_token']
    patch, table = fields['patch_size'], _TABLE
    if hybrid.ROOT in tensors:
      blocks, widths = hybrid.read_shape(tensors)
      fields.update(resnet.hybrid_fields(tensors, blocks, widths), channels=tensors.shape(hybrid.ROOT, 4)[2])
      patch = resnet.patch_pixels(patch, blocks)
      table = {**table, **hybrid.table(blocks, hybrid.is_old(tensors))}
    fields['image_size'] = pixels(infer.grid(tensors, patches, patch, image_size), patch, image_size)
    # The authors evaluate with a plain resize of the whole image and values in [-1, 1] (input_pipeline.py).
    return leaves.read_weights(tensors, fields, table, POSITIONS, preprocessing=Preprocessing())

  def holds(self, config: Any) -> bool:
    """Return whether it is a Vision Transformer."""
    return config.kind == 'vit'

  def write(self, weights: Weights, approximate: bool = False) -> Written:
    """Lay weights out in this format; see `base.Family.write`."""
    weights = representable.key_bias(representable.mask_token(representable.norm_before_pool(weights), False))
    representable.require(
        weights, 'google', pool=('token', 'gap'), class_token=(weights.config.pool == 'token',), registers=(0,),
        layer_scale=(None,), qk_norm=(False,), qkv_bias=(True,), norm_after_pool=(False,))
    representable.require_numerics(weights, 'google', approximate, gelu='tanh', norm_epsilon=1e-6)
    table = _TABLE
    if weights.config.resnet is not None:
      representable.require_numerics(weights, 'google', approximate, resnet_numerics='vit')
      table = {**table, **hybrid.table(weights.config.resnet)}
    weights = representable.token_position(representable.learned_positions(weights))
    return Written(leaves.to_arrays(weights, table, POSITIONS), {}, weights)
