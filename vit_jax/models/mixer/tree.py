"""The parameter tree of the MLP-Mixer: what depends on the names of its parameters."""
from collections.abc import Mapping
import dataclasses
from typing import Any

from vit_jax.models.mixer.config import MixerConfig
from vit_jax.models.vit_tree import ViTTree


class MixerTree(ViTTree):
  """The parameter tree of a config, named like that of a Vision Transformer; see `base.ParamTree`."""

  renamed: Mapping[str, str] = {}
  hidden_head_paths: tuple[str, ...] = ()
  # The number of patches, an axis of the kernels that mix them, is never sharded: no mesh divides 196.
  named_axes = (
      (r'token_mixing/up/kernel', (None, 'mlp_dim')),
      (r'token_mixing/down/kernel', ('mlp_dim', None)),
      (r'channel_mixing/up/kernel', ('width', 'mlp_dim')),
      (r'channel_mixing/down/kernel', ('mlp_dim', 'width')),
      (r'(token|channel)_mixing/up/bias', ('mlp_dim',)),
      (r'head/kernel', ('width', None)),
  )

  def __init__(self, config: MixerConfig):
    self.config: Any = config

  @property
  def stem(self) -> str:
    """The kernel of the patches."""
    return 'patch_embed/kernel'

  @property
  def positions(self) -> dict[str, str]:
    """Return {}: the kernels that mix patches know where each one is."""
    return {}

  def multiply_adds(self, image_size: int | tuple[int, int] | None = None) -> int:
    """Return the multiply-adds of one image's forward pass, in matrix products; see `base.ParamTree.multiply_adds`."""
    config = self.config if image_size is None else dataclasses.replace(self.config, image_size=image_size)
    width, tokens = config.width, config.num_tokens
    pixels = config.patch_size[0] * config.patch_size[1] * config.channels
    block = 2 * tokens * width * (config.token_mlp_dim + config.channel_mlp_dim)
    return tokens * pixels * width + config.depth * block + width * (config.num_classes or 0)
