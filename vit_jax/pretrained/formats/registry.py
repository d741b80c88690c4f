"""The table of formats; a file is of the first that knows its names."""
from vit_jax.pretrained.formats import big_vision
from vit_jax.pretrained.formats import google
from vit_jax.pretrained.formats import huggingface
from vit_jax.pretrained.files import tensors as tensors_lib
from vit_jax.pretrained.formats import timm

# Each module has matches(names), read(tensors, configs, image_size), write(weights, approximate), and METHOD, which
# resizes its position grids as its own code does.
FORMATS = {
    'big_vision': big_vision,
    'google': google,
    'huggingface': huggingface,
    'timm': timm,
}


def recognise(tensors):
  """The name of the format of an open file.

  Raises:
    ValueError: none knows the names in it.
  """
  for name, form in FORMATS.items():
    if form.matches(tensors.shapes):
      return name
  raise tensors.error(f'these are no weights of a Vision Transformer that vit_jax knows ({", ".join(FORMATS)}); its '
                      f'arrays are {tensors_lib.shorten(tensors.shapes)}')
