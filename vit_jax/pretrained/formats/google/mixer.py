"""Google's official `.npz` files of MLP-Mixers (github.com/google-research/vision_transformer, models_mixer.py)."""
from typing import Any

from vit_jax.base.preprocessing import Preprocessing
from vit_jax.pretrained.files.tensors import Tensors
from vit_jax.pretrained.formats import infer, leaves, representable
from vit_jax.pretrained.formats.base import Configs, ImageSize, Written
from vit_jax.pretrained.formats.leaves import SAME, Leaf, Table
from vit_jax.pretrained.formats.weights import Weights, pixels

_FIRST = 'MixerBlock_0/'


def _pair(ours: str, theirs: str, weight: str = 'kernel') -> Table:
  return {f'{ours}/{name}': Leaf(f'{theirs}/{name}', SAME) for name in (weight, 'bias')}


def _mlp(name: str) -> Table:
  return {**_pair(f'{name}/up', f'{name}/Dense_0'), **_pair(f'{name}/down', f'{name}/Dense_1')}


_BLOCK = {**_pair('token_norm', 'LayerNorm_0', 'scale'), **_mlp('token_mixing'),
          **_pair('channel_norm', 'LayerNorm_1', 'scale'), **_mlp('channel_mixing')}
_TABLE = {**_pair('patch_embed', 'stem'), **leaves.prefixed(_BLOCK, leaves.BLOCKS, 'MixerBlock_{i}/'),
          **_pair('norm', 'pre_head_layer_norm', 'scale'), **_pair('head', 'head')}


class GoogleMixer:
  """The official format of Mixers; see `base.Family`."""

  resize_method = 'bilinear'

  def matches(self, tensors: Tensors, configs: Configs) -> bool:
    """Return whether the file has a Mixer's blocks."""
    del configs
    return any(name.startswith(_FIRST) for name in tensors.shapes)

  def read(self, tensors: Tensors, configs: Configs, image_size: ImageSize = None) -> Weights:
    """Read an open file; `configs` is unused, there are none.

    `image_size` is needed if the number of patches is not that of a square image.

    Raises:
      UserError: not a file in this format.
    """
    del configs
    *patch_size, channels, width = tensors.shape('stem/kernel', 4)
    patches, token_mlp_dim = tensors.shape(f'{_FIRST}token_mixing/Dense_0/kernel', 2)
    grid = infer.grid(tensors, patches, (patch_size[0], patch_size[1]), image_size)
    fields = dict(
        kind='mixer', patch_size=tuple(patch_size), channels=channels, width=width, token_mlp_dim=token_mlp_dim,
        channel_mlp_dim=tensors.shape(f'{_FIRST}channel_mixing/Dense_0/kernel', 2)[1],
        depth=infer.depth(tensors, r'MixerBlock_(\d+)/'), image_size=pixels(grid, (patch_size[0], patch_size[1])),
        num_classes=tensors.shape('head/kernel', 2)[1] if 'head/kernel' in tensors else None,
        gelu='tanh', norm_epsilon=1e-6)
    return leaves.read_weights(tensors, fields, _TABLE, preprocessing=Preprocessing())

  def holds(self, config: Any) -> bool:
    """Return whether it is a Mixer."""
    return config.kind == 'mixer'

  def write(self, weights: Weights, approximate: bool = False) -> Written:
    """Lay weights out in this format; see `base.Family.write`."""
    representable.require_numerics(weights, 'google', approximate, gelu='tanh', norm_epsilon=1e-6)
    return Written(leaves.to_arrays(weights, _TABLE), {}, weights)
