"""Vision Transformers of transformers: the table of architectures, and the refusal of all others by name."""
from collections.abc import Mapping
from typing import Any

from vit_jax.base.errors import UserError
from vit_jax.base.text import listing
from vit_jax.models.config import ViTConfig
from vit_jax.pretrained.files.tensors import Tensors
from vit_jax.pretrained.formats import representable
from vit_jax.pretrained.formats.base import Configs, ImageSize, Written
from vit_jax.pretrained.formats.huggingface.architecture import Architecture
from vit_jax.pretrained.formats.huggingface.beit import BEIT, BEIT_MEAN
from vit_jax.pretrained.formats.huggingface.clip import CLIP, SIGLIP, SIGLIP2, vision_keys
from vit_jax.pretrained.formats.huggingface.dinov2 import DINOV2, DINOV2_WITH_REGISTERS
from vit_jax.pretrained.formats.huggingface.dinov3 import DINOV3
from vit_jax.pretrained.formats.huggingface.vit import DEIT, DEIT_DISTILLED, IJEPA, MAE, MSN, VIT
from vit_jax.pretrained.formats.weights import Weights

# Of several with a model_type, the first whose marker is in the file.
ARCHITECTURES: tuple[Architecture, ...] = (
    VIT, DEIT_DISTILLED, DEIT, MAE, MSN, IJEPA, BEIT_MEAN, BEIT, DINOV2, DINOV2_WITH_REGISTERS, DINOV3, CLIP, SIGLIP,
    SIGLIP2)
# The kernel over patches, by which a file without a config.json is recognized.
_STEMS = ('embeddings.patch_embeddings.projection.weight', 'embeddings.patch_embeddings.weight',
          'embeddings.patch_embedding.weight')
_PREFIXES = {'', *(architecture.prefix for architecture in ARCHITECTURES)}


class HuggingFaceViT:
  """The Vision Transformers of transformers; see `base.Family`."""

  resize_method = 'bicubic_no_antialias'

  def matches(self, tensors: Tensors, configs: Configs) -> bool:
    """Return whether a file is of transformers: its config.json has a model_type, or its stem a name of theirs."""
    config = configs.get('config.json', {})
    # timm's own models have an `architecture` in their config.json, wrapped by transformers or not.
    return ('model_type' in config and 'architecture' not in config) or any(
        prefix + stem in tensors for prefix in _PREFIXES for stem in _STEMS)

  def read(self, tensors: Tensors, configs: Configs, image_size: ImageSize = None) -> Weights:
    """Read an open file; `image_size` is unused, the config says it.

    Raises:
      UserError: there is no config.json, or it is that of a model that vit_jax does not have; the message names it.
    """
    del image_size
    config = configs.get('config.json')
    if config is None:
      raise tensors.error('a Hugging Face model needs its config.json beside it (heads, LayerNorm epsilon, classes)')
    keys = vision_keys(config)
    found = [one for one in ARCHITECTURES if one.model_type == keys.get('model_type', VIT.model_type)
             and (one.marker is None or any(name.endswith(one.marker) for name in tensors.shapes))]
    if not found:
      raise _refusal(tensors, config)
    if found[0] is CLIP and 'classifier.weight' in tensors:
      raise tensors.error('this is a CLIPForImageClassification model, whose classifier reads tokens before the last '
                          'LayerNorm; vit_jax does not have that')
    return found[0].read(tensors, keys, configs)

  def holds(self, config: Any) -> bool:
    """Return whether it is a Vision Transformer."""
    return config.kind == 'vit'

  def write(self, weights: Weights, approximate: bool = False) -> Written:
    """Lay weights out in this format: in the architecture that they were read from, if it holds them still.

    `approximate` is unused, the config holds GELU form and LayerNorm epsilon.
    """
    del approximate
    for own in ARCHITECTURES:
      if own.model_type == weights.architecture:
        try:
          return own.write(weights)
        except UserError:  # a head was added, for example
          continue
    architecture = _architecture_of(weights.config)
    if architecture in (DINOV2, DINOV2_WITH_REGISTERS):
      weights = representable.head_beside_mean(weights)
    return architecture.write(weights)


def _architecture_of(config: ViTConfig) -> Architecture:
  """Return the architecture that has what a model has; it may be one that cannot hold all of it."""
  if config.rotary is not None:
    return DINOV3
  if config.relative_position is not None:
    return BEIT_MEAN if config.pool == 'gap' else BEIT
  if config.pre_norm:
    return CLIP
  if config.pool == 'map':
    return SIGLIP
  if config.distillation_token:
    return DEIT_DISTILLED if config.pool == 'distilled' else DEIT
  if config.registers:
    return DINOV2_WITH_REGISTERS
  if config.layer_scale is not None or config.mlp != 'gelu' or config.pool == 'token_gap':
    return DINOV2
  return IJEPA if config.pool == 'gap' and not config.class_token else VIT


def _refusal(tensors: Tensors, config: Mapping[str, Any]) -> UserError:
  """Return the error that names an architecture that vit_jax does not have."""
  architectures = config.get('architectures')
  named = f', {architectures[0]}' if isinstance(architectures, list) and architectures else ''
  known = sorted({one.model_type for one in ARCHITECTURES})
  return tensors.error(f"this is a model of transformers' architecture {config['model_type']!r}{named}, which vit_jax "
                       f'does not have; of the Vision Transformers there it reads {listing(known, limit=len(known))}')
