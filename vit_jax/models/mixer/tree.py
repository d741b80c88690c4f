"""The parameter tree of the MLP-Mixer: what depends on the names of its parameters."""
import dataclasses

from vit_jax.models.base import NamedAxes
from vit_jax.models.vit_tree import BlockTree


class MixerTree(BlockTree):
  """The parameter tree of a config; see `base.ParamTree`. The kernels that mix patches know where each one is."""

  # The number of patches, an axis of the kernels that mix them, is never sharded: no mesh divides 196.
  named_axes: NamedAxes = (
      (r'token_mixing/up/kernel', (None, 'mlp_dim')),
      (r'token_mixing/down/kernel', ('mlp_dim', None)),
      (r'channel_mixing/up/kernel', ('width', 'mlp_dim')),
      (r'channel_mixing/down/kernel', ('mlp_dim', 'width')),
      (r'(token|channel)_mixing/up/bias', ('mlp_dim',)),
      (r'head/kernel', ('width', None)),
  )

  def multiply_adds(self, image_size: int | tuple[int, int] | None = None) -> int:
    """Return the multiply-adds of one image's forward pass, in matrix products; see `base.ParamTree.multiply_adds`."""
    config = self.config if image_size is None else dataclasses.replace(self.config, image_size=image_size)
    width, tokens = config.width, config.num_tokens
    pixels = config.patch_size[0] * config.patch_size[1] * config.channels
    block = 2 * tokens * width * (config.token_mlp_dim + config.channel_mlp_dim)
    return tokens * pixels * width + config.depth * block + width * (config.num_classes or 0)
