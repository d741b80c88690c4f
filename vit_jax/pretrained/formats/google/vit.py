"""Google's official `.npz` files (github.com/google-research/vision_transformer), of 2020 and since."""
from typing import Any

from vit_jax.base.preprocessing import Preprocessing
from vit_jax.pretrained.files.tensors import Tensors
from vit_jax.pretrained.formats import infer, leaves, linen, representable
from vit_jax.pretrained.formats.base import Configs, ImageSize, Written
from vit_jax.pretrained.formats.weights import Weights, pixels

POSITIONS = 'Transformer/posembed_input/pos_embedding'
_TABLE = {**linen.STEM, **linen.BLOCKS[linen.LOOP]}
_HYBRID = ('conv_root/', 'gn_root/', 'block1/')


class GoogleViT:
  """The official format; see `base.Family`."""

  resize_method = 'bilinear'

  def matches(self, tensors: Tensors, configs: Configs) -> bool:
    """Return whether one of these names is in the official files, hybrid models included."""
    del configs
    names = tensors.shapes
    return 'embedding/kernel' in names or any(name.startswith(_HYBRID) for name in names)

  def read(self, tensors: Tensors, configs: Configs, image_size: ImageSize = None) -> Weights:
    """Read an open file; `configs` is unused, there are none.

    Raises:
      UserError: a hybrid, or not a file in this format.
    """
    del configs
    _refuse_other_models(tensors)
    tensors = tensors.rename(linen.current_name)
    fields = linen.read_fields(tensors, linen.LOOP)
    patches = tensors.shape(POSITIONS, 3)[1] - fields['class_token']
    grid = infer.grid(tensors, patches, fields['patch_size'], image_size)
    fields['image_size'] = pixels(grid, fields['patch_size'], image_size)
    # The authors evaluate with a plain resize of the whole image and values in [-1, 1] (input_pipeline.py).
    return leaves.read_weights(tensors, fields, _TABLE, POSITIONS, preprocessing=Preprocessing())

  def holds(self, config: Any) -> bool:
    """Return whether it is a Vision Transformer."""
    return config.kind == 'vit'

  def write(self, weights: Weights, approximate: bool = False) -> Written:
    """Lay weights out in this format; see `base.Family.write`."""
    weights = representable.norm_before_pool(weights)
    representable.require(
        weights, 'google', pool=('token', 'gap'), class_token=(weights.config.pool == 'token',), registers=(0,),
        layer_scale=(None,), qk_norm=(False,), qkv_bias=(True,), norm_after_pool=(False,))
    representable.require_numerics(weights, 'google', approximate, gelu='tanh', norm_epsilon=1e-6)
    weights = representable.token_position(representable.learned_positions(weights))
    return Written(leaves.to_arrays(weights, _TABLE, POSITIONS), {}, weights)


def _refuse_other_models(tensors: Tensors) -> None:
  if any(name.startswith(_HYBRID) for name in tensors.shapes):
    raise tensors.error('expected a plain Vision Transformer, got a hybrid (ResNet and transformer) model, which vit_jax '
                        'does not have yet')
