"""vit_jax: pre-train, fine-tune and study Vision Transformers in JAX.

Names are imported when first used: `import vit_jax` is quick and starts no jax backend.
"""
import importlib

__version__ = '0.1.0'

# Public name: the module that holds it.
_PUBLIC = {
    'VisionTransformer': 'vit_jax.models.vit',
    'hosts': 'vit_jax.distributed.hosts',
    'load': 'vit_jax.pretrained.load',
    'preprocess': 'vit_jax.inference.predict',
    'train': 'vit_jax.train',
}

__all__ = sorted(_PUBLIC)


def __getattr__(name):
  if name not in _PUBLIC:
    raise AttributeError(f'module vit_jax has no attribute {name!r}; it has {__all__}')
  module = importlib.import_module(_PUBLIC[name])
  return module if module.__name__.endswith(f'.{name}') and not hasattr(module, name) else getattr(module, name)
