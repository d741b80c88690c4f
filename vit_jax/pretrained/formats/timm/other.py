"""Models of timm that vit_jax does not have: recognized in order to be refused by name."""
import re
from typing import Any

from vit_jax.base.errors import UserError
from vit_jax.pretrained.files.tensors import Tensors
from vit_jax.pretrained.formats.base import Configs, ImageSize, Written
from vit_jax.pretrained.formats.weights import Weights

# Names of arrays by which well-known models are recognized if no config.json says what they are.
_MARKERS = (
    (r'layers\.0\.blocks\.0\.attn\.relative_position_bias_table$', 'Swin'),
    (r'layers\.0\.blocks\.0\.attn\.logit_scale$', 'Swin V2'),
    (r'stages\.0\.blocks\.0\.(conv_dw|mlp\.grn)', 'ConvNeXt'),
    (r'layer1\.0\.conv1\.weight$', 'ResNet'),
    (r'blocks\.0\.0\.(conv_dw|bn1)', 'EfficientNet'),
)


class TimmOther:
  """Everything else of timm's: the last family of its format; see `base.Family`."""

  resize_method = 'bicubic'

  def matches(self, tensors: Tensors, configs: Configs) -> bool:
    """Return whether the config.json is timm's, or the arrays are those of a well-known model."""
    return isinstance(configs.get('config.json', {}).get('architecture'), str) or _kind(tensors) is not None

  def read(self, tensors: Tensors, configs: Configs, image_size: ImageSize = None) -> Weights:
    """Refuse the file.

    Raises:
      UserError: always; it names the model.
    """
    del image_size
    name = configs.get('config.json', {}).get('architecture')
    kind = _kind(tensors) or (str(name).split('_')[0] if name else '')
    named = f' (architecture {name!r})' if name else ''
    raise tensors.error(
        f'this is a {kind} model{named}, which vit_jax does not have; docs/weights.md lists what it has')

  def holds(self, config: Any) -> bool:
    """Return False."""
    del config
    return False

  def write(self, weights: Weights, approximate: bool = False) -> Written:
    """Refuse the model; it is never asked to write one."""
    del approximate
    raise UserError(f'model.kind: timm has no {weights.config.kind!r}')


def _kind(tensors: Tensors) -> str | None:
  return next((kind for marker, kind in _MARKERS if any(re.match(marker, name) for name in tensors.shapes)), None)
