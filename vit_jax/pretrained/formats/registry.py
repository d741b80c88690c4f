"""The table of weight formats; a file is read in the first format that recognizes its names."""
from vit_jax.base.text import listing
from vit_jax.pretrained.files.tensors import Tensors
from vit_jax.pretrained.formats.base import Format
from vit_jax.pretrained.formats.big_vision import BigVision
from vit_jax.pretrained.formats.google import Google
from vit_jax.pretrained.formats.huggingface import HuggingFace
from vit_jax.pretrained.formats.timm import Timm

FORMATS: dict[str, Format] = {form.name: form for form in (BigVision(), Google(), HuggingFace(), Timm())}


def recognize(tensors: Tensors) -> Format:
  """Return the format of an open file.

  Raises:
    UserError: no format recognizes its names.
  """
  for form in FORMATS.values():
    if form.matches(tensors.shapes):
      return form
  raise tensors.error(f'not weights of a Vision Transformer in a known format ({", ".join(FORMATS)}); its arrays are '
                      f'{listing(sorted(tensors.shapes))}')
