"""timm's `MlpMixer` state dict as safetensors."""
import dataclasses
from typing import Any

from vit_jax.pretrained.files.tensors import Tensors
from vit_jax.pretrained.formats import infer, leaves, representable
from vit_jax.pretrained.formats.base import Configs, ImageSize, Written
from vit_jax.pretrained.formats.leaves import SAME, TORCH_CONV, Leaf, torch_linear_leaves, torch_norm_leaves
from vit_jax.pretrained.formats.timm import config as config_lib
from vit_jax.pretrained.formats.timm import preprocessing
from vit_jax.pretrained.formats.weights import Weights, pixels

_FIRST = 'blocks.0.mlp_tokens.fc1.weight'
_BLOCK = {
    **torch_norm_leaves('token_norm', 'norm1'),
    **torch_linear_leaves('token_mixing/up', 'mlp_tokens.fc1'),
    **torch_linear_leaves('token_mixing/down', 'mlp_tokens.fc2'),
    **torch_norm_leaves('channel_norm', 'norm2'),
    **torch_linear_leaves('channel_mixing/up', 'mlp_channels.fc1'),
    **torch_linear_leaves('channel_mixing/down', 'mlp_channels.fc2'),
}
_TABLE = {
    'patch_embed/kernel': Leaf('stem.proj.weight', TORCH_CONV),
    'patch_embed/bias': Leaf('stem.proj.bias', SAME),
    **leaves.prefixed(_BLOCK, leaves.BLOCKS, 'blocks.{i}.'),
    **torch_norm_leaves('norm', 'norm'),
    **torch_linear_leaves('head', 'head'),
}


class TimmMixer:
  """timm's format of Mixers, with a config.json that `timm.create_model('local-dir:…')` reads; see `base.Family`."""

  resize_method = 'bicubic'

  def matches(self, tensors: Tensors, configs: Configs) -> bool:
    """Return whether the file has a Mixer's blocks."""
    del configs
    return _FIRST in tensors

  def read(self, tensors: Tensors, configs: Configs, image_size: ImageSize = None) -> Weights:
    """Read an open file.

    Args:
      tensors: the open file.
      configs: {'config.json': dict} as timm has it on the Hugging Face hub, or constructor arguments; {} if none.
      image_size: what the model was trained at, if neither the config nor the number of patches says it.

    Raises:
      UserError: not a file in this format, or a model that computes something else under these names.
    """
    config = config_lib.parse(tensors, configs.get('config.json'))
    notes = list(config.notes)
    width, channels, rows, columns = tensors.shape('stem.proj.weight', 4)
    patch_size = rows, columns
    token_mlp_dim, patches = tensors.shape(_FIRST, 2)
    if tensors.shape('blocks.0.mlp_tokens.fc2.weight', 2)[1] != token_mlp_dim:
      raise tensors.error('expected a plain Mixer, got one with gated MLPs (gMixer), which vit_jax does not have')
    size = config.image_size
    if size is None or not infer.fits(size, patch_size, patches):
      size = pixels(infer.grid(tensors, patches, patch_size, image_size), patch_size)
    fields = dict(
        kind='mixer', patch_size=patch_size, channels=channels, width=width, token_mlp_dim=token_mlp_dim,
        channel_mlp_dim=tensors.shape('blocks.0.mlp_channels.fc1.weight', 2)[0],
        depth=infer.depth(tensors, r'blocks\.(\d+)\.'), image_size=size,
        num_classes=tensors.shape('head.weight', 2)[0] if 'head.weight' in tensors else None,
        gelu=config.gelu, norm_epsilon=1e-6)
    prepared = preprocessing.read(tensors, config.pretrained, size, channels, notes)
    return leaves.read_weights(tensors, fields, _TABLE, class_names=config.class_names, notes=tuple(notes),
                               preprocessing=prepared)

  def holds(self, config: Any) -> bool:
    """Return whether it is a Mixer."""
    return config.kind == 'mixer'

  def write(self, weights: Weights, approximate: bool = False) -> Written:
    """Lay weights out in this format; see `base.Family.write`."""
    representable.require_numerics(weights, 'timm', approximate, norm_epsilon=1e-6)
    arrays, notes = leaves.to_arrays(weights, _TABLE), list(weights.notes)
    config = config_lib.write_mixer(weights, notes)
    return Written(arrays, {'config.json': config}, dataclasses.replace(weights, notes=tuple(notes)))
