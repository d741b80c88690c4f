"""big_vision's files of an image and a text tower (LiT, SigLIP, SigLIP 2): the tower of images, and its errors."""
import math

import numpy as np
import pytest

from tests import golden_files
from tests.golden_files import MODELS
from vit_jax.base.errors import UserError
from vit_jax.pretrained import load
from vit_jax.pretrained.files.tensors import Tensors
from vit_jax.pretrained.formats import leaves, weights
from vit_jax.pretrained.formats.big_vision.vit import BigVisionViT


def towers(name):
  """Return the arrays of a file with the golden model as its image tower, named as two_towers.py names them."""
  image = {key.replace('params/', 'params/img/'): array for key, array in golden_files.arrays_of(MODELS[name]).items()}
  text = {'Embed_0/embedding': (100, 24), 'pos_embedding': (1, 16, 24), 'Encoder_0/encoder_norm/scale': (24,)}
  return {**image, **{f'params/txt/{key}': np.ones(shape, np.float32) for key, shape in text.items()},
          'params/t': np.ones(1, np.float32), 'params/b': np.ones(1, np.float32)}


@pytest.mark.parametrize('name', ['bv_map', 'bv_gap_scan'])
def test_the_image_tower_is_the_model(name, tmp_path):
  np.savez(tmp_path / 'siglip.npz', **towers(name))
  images, output = golden_files.vectors(name)
  read = load.read(f'{tmp_path}/siglip.npz:img', trained_at=images.shape[1:3])
  assert read.source == 'big_vision' and not read.problems
  np.testing.assert_allclose(golden_files.logits(read, images), output, rtol=0, atol=1e-5)


def test_without_a_head_a_tower_gives_embeddings(tmp_path):
  arrays = {key: array for key, array in towers('bv_map').items() if '/head/' not in key}
  np.savez(tmp_path / 'siglip.npz', **arrays)
  model = load.load(f'{tmp_path}/siglip.npz:img')
  images = golden_files.vectors('bv_map')[0]
  assert model.num_classes is None
  np.testing.assert_array_equal(model(images), model.embed(images))


@pytest.mark.parametrize('root', ['params/', ''])
def test_a_file_with_two_towers_needs_a_selector(root, tmp_path):
  arrays = {root + key.removeprefix('params/'): array for key, array in towers('bv_map').items()}
  np.savez(tmp_path / 'siglip.npz', **arrays)
  with pytest.raises(UserError, match='siglip.npz: holds two towers, .* python -m vit_jax.describe .*siglip.npz:img'):
    load.read(tmp_path / 'siglip.npz')
  with pytest.raises(UserError, match='expected a tower of images, got one of text .*; name :img'):
    load.read(f'{tmp_path}/siglip.npz:txt', strict=False)


# SigLIP 2 (arXiv 2502.14786): width, depth, mlp_dim, heads, patch size, image sizes.
SIGLIP2 = [
    (768, 12, 3072, 12, 32, (256,)), (768, 12, 3072, 12, 16, (224, 256, 384, 512)),
    (1024, 24, 4096, 16, 16, (256, 384, 512)), (1152, 27, 4304, 16, 14, (224, 384)),
    (1152, 27, 4304, 16, 16, (256, 384, 512)), (1536, 40, 6144, 16, 16, (256, 384)),
]


def siglip2_shapes(width, depth, mlp_dim, heads, patch, size):
  """Return {name: shape} of the image tower of a published file, blocks stacked."""
  mlp = {'Dense_0/kernel': (width, mlp_dim), 'Dense_0/bias': (mlp_dim,), 'Dense_1/kernel': (mlp_dim, width),
         'Dense_1/bias': (width,)}
  head = (heads, width // heads)
  attention = {f'{name}/{leaf}': shape for name in ('query', 'key', 'value')
               for leaf, shape in (('kernel', (width, *head)), ('bias', head))}
  attention.update({'out/kernel': (*head, width), 'out/bias': (width,)})
  norm = {'scale': (width,), 'bias': (width,)}
  block = {f'{module}/{leaf}': shape for module, leaves in {
      'LayerNorm_0': norm, 'MultiHeadDotProductAttention_0': attention, 'MlpBlock_0': mlp}.items()
           for leaf, shape in leaves.items()}
  encoder = {**block, **{f'LayerNorm_1/{leaf}': shape for leaf, shape in norm.items()}}
  return {
      'embedding/kernel': (patch, patch, 3, width), 'embedding/bias': (width,),
      'pos_embedding': (1, (size // patch) ** 2, width),
      **{f'Transformer/encoderblock/{name}': (depth, *shape) for name, shape in encoder.items()},
      **{f'Transformer/encoder_norm/{leaf}': shape for leaf, shape in norm.items()},
      'MAPHead_0/probe': (1, 1, width), **{f'MAPHead_0/{name}': shape for name, shape in block.items()}}


@pytest.mark.parametrize('width, depth, mlp_dim, heads, patch, sizes', SIGLIP2)
def test_siglip2(width, depth, mlp_dim, heads, patch, sizes, monkeypatch):
  """The config from names and shapes, and as many parameters as the file has; nothing is allocated."""
  monkeypatch.setattr(leaves, 'read_weights', lambda tensors, fields, *_, **__: weights.read_config(fields))
  for size in sizes:
    shapes = siglip2_shapes(width, depth, mlp_dim, heads, patch, size)
    shapes = {f'params/{name}': shape for name, shape in shapes.items()}
    tensors = Tensors('siglip2.npz', shapes, dict.fromkeys(shapes, 'float32'), pytest.fail)
    config = BigVisionViT().read(tensors, {}, size)
    assert (config.width, config.depth, config.mlp_dim, config.heads) == (width, depth, mlp_dim, heads)
    assert (config.patch_size, config.image_size, config.pool) == ((patch, patch), (size, size), 'map')
    assert config.num_classes is None and not config.class_token and config.gelu == 'tanh'
    ours = sum(map(math.prod, weights.shapes(config).values()))
    assert ours == sum(map(math.prod, shapes.values()))
