"""The table of weight formats; a file is read in the first format that recognizes it."""
from vit_jax.base.text import listing
from vit_jax.pretrained.files.tensors import Tensors
from vit_jax.pretrained.formats.base import Configs, Format
from vit_jax.pretrained.formats.big_vision.bit import BigVisionBiT
from vit_jax.pretrained.formats.big_vision.vit import BigVisionViT
from vit_jax.pretrained.formats.google.bit import GoogleBiT
from vit_jax.pretrained.formats.google.hybrid import GoogleResNet
from vit_jax.pretrained.formats.google.mixer import GoogleMixer
from vit_jax.pretrained.formats.google.vit import GoogleViT
from vit_jax.pretrained.formats.huggingface.bit import HuggingFaceBiT
from vit_jax.pretrained.formats.huggingface.family import HuggingFaceViT
from vit_jax.pretrained.formats.timm.bit import TimmBiT
from vit_jax.pretrained.formats.timm.mixer import TimmMixer
from vit_jax.pretrained.formats.timm.other import TimmOther
from vit_jax.pretrained.formats.timm.vit import TimmViT

FORMATS: dict[str, Format] = {form.name: form for form in (
    Format('big_vision', '.npz', (BigVisionBiT(), BigVisionViT())),
    Format('google', '.npz', (GoogleBiT(), GoogleResNet(), GoogleMixer(), GoogleViT())),
    Format('huggingface', '.safetensors', (HuggingFaceBiT(), HuggingFaceViT())),
    Format('timm', '.safetensors', (TimmBiT(), TimmMixer(), TimmViT(), TimmOther())),
)}


def recognize(tensors: Tensors, configs: Configs) -> Format:
  """Return the format of an open file.

  Raises:
    UserError: no format recognizes it.
  """
  for form in FORMATS.values():
    if form.matches(tensors, configs):
      return form
  raise tensors.error(f'not weights of a model in a known format ({", ".join(FORMATS)}); its arrays are '
                      f'{listing(sorted(tensors.shapes))}')
