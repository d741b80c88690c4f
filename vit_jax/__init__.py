"""vit_jax: pre-train, fine-tune and study Vision Transformers in JAX.

The public names are in PUBLIC. They are imported when first used: `import vit_jax` is quick and starts no jax backend.
"""
import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers; __getattr__ does it when the program runs
  from vit_jax import train
  from vit_jax.distributed import hosts
  from vit_jax.inference.predict import preprocess
  from vit_jax.models.config import ViTConfig
  from vit_jax.models.vit import VisionTransformer
  from vit_jax.pretrained.load import load
  from vit_jax.pretrained.save import save
  from vit_jax.run.recipes import recipe

__version__ = '0.2.0.dev0'

# Public name: the module that holds it, or that it is.
PUBLIC = {
    'VisionTransformer': 'vit_jax.models.vit',
    'ViTConfig': 'vit_jax.models.config',
    'hosts': 'vit_jax.distributed.hosts',  # hosts.start() before jax is used, in scripts of several processes
    'load': 'vit_jax.pretrained.load',
    'preprocess': 'vit_jax.inference.predict',
    'recipe': 'vit_jax.run.recipes',
    'save': 'vit_jax.pretrained.save',
    'train': 'vit_jax.train',  # train.run(config, workdir)
}

__all__ = ['ViTConfig', 'VisionTransformer', 'hosts', 'load', 'preprocess', 'recipe', 'save', 'train']


def __getattr__(name: str) -> Any:
  if name not in PUBLIC:
    raise AttributeError(f'module vit_jax has no attribute {name!r}; it has {__all__}')
  module = importlib.import_module(PUBLIC[name])
  return module if name in ('hosts', 'train') else getattr(module, name)
