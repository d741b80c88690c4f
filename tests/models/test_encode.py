"""Patches that are embedded, changed or left out, and encoded: what self-supervised objectives ask of a model."""
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.test_vit import make, pictures, randomized
from vit_jax.base.errors import UserError
from vit_jax.models.base import Model, PatchModel
from vit_jax.models.mixer.config import MixerConfig
from vit_jax.models.mixer.mixer import Mixer

KINDS = {
    'learned': {},
    'learned2d': dict(position='learned2d', unroll=True),
    'sincos2d': dict(position='sincos2d', pool='gap', remat='dots'),
    'none': dict(position='none', pool='gap', class_token=True),
    'every': dict(position_at='every', registers=2),
    'every, unrolled': dict(position_at='every', unroll=True, remat='full'),
    'shared': dict(position_at='shared', position='learned2d', pool='gap', registers=1),
    'registers': dict(registers=3, register_position=True, pre_norm=True),
    'distilled': dict(pool='distilled'),
    'norm after pool': dict(pool='gap', norm_after_pool=True, pre_norm=True),
}
NEEDS_GRID = {
    'rotary': dict(rotary='eva'),
    'table': dict(relative_position='table'),
    'keys1d': dict(relative_position='keys1d', relative_position_shared=True),
    'axial': dict(attention_kind='axial', pool='gap'),
    'local': dict(attention_kind='local', attention_window=1),
}


@nnx.jit
def encode(model, patches, keep=None):
  return model.encode(patches, keep)


@pytest.mark.parametrize('fields', (KINDS | NEEDS_GRID).values(), ids=(KINDS | NEEDS_GRID).keys())
def test_encoded_patches_are_the_features(fields):
  model, images = randomized(make(**fields)), pictures(2)
  features = nnx.jit(lambda model: model.features(images))(model)
  np.testing.assert_array_equal(encode(model, model.patch_tokens(images)), features)


@pytest.mark.parametrize('kind', ['learned', 'learned2d', 'every', 'every, unrolled', 'shared', 'registers'])
def test_keeping_all_patches_in_another_order_permutes_their_tokens(kind):
  """Every patch keeps the positions of its place, wherever it is in the sequence."""
  model, images = randomized(make(**KINDS[kind])), pictures(2)
  keep = np.stack([np.random.default_rng(seed).permutation(16) for seed in range(2)])
  patches, prefix = model.patch_tokens(images), model.config.num_prefix_tokens
  expected = np.array(encode(model, patches))
  expected[:, prefix:] = np.take_along_axis(expected[:, prefix:], keep[..., None], axis=1)
  np.testing.assert_allclose(encode(model, patches, jnp.asarray(keep)), expected, atol=2e-5)


@pytest.mark.parametrize('fields', [dict(), dict(position_at='every'), dict(position_at='shared', unroll=True)])
def test_what_is_left_out_does_not_matter(fields):
  model, images = randomized(make(**fields)), pictures(2)
  keep = jnp.asarray([[3, 0, 9], [15, 2, 4]])
  patches = model.patch_tokens(images)
  encoded = encode(model, patches, keep)
  assert encoded.shape == (2, 4, 24)
  kept = jax.nn.one_hot(keep, 16).sum(axis=1)[..., None]
  np.testing.assert_array_equal(encode(model, jnp.where(kept, patches, 7.0), keep), encoded)
  assert not np.allclose(encoded, encode(model, patches)[:, :4])


@pytest.mark.parametrize('fields, message', [
    (NEEDS_GRID['rotary'], "model.rotary: .*got 'eva'; set model.rotary='none'"),
    (NEEDS_GRID['table'], "model.relative_position: .*got 'table'"),
    (NEEDS_GRID['axial'], "model.attention_kind: .*needs 'full', got 'axial'"),
    (NEEDS_GRID['local'], "model.attention_kind: .*needs 'full', got 'local'"),
])
def test_attention_over_the_grid_needs_all_patches(fields, message):
  with pytest.raises(UserError, match=message):
    make(**fields).encode(jnp.zeros((1, 16, 24)), jnp.zeros((1, 3), jnp.int32))


def test_only_some_models_are_models_of_patches():
  mixer = nnx.eval_shape(lambda: Mixer(MixerConfig(image_size=16, patch_size=4, width=8, depth=1, token_mlp_dim=8,
                                                   channel_mlp_dim=8), rngs=nnx.Rngs(0)))
  assert isinstance(make(), PatchModel) and isinstance(mixer, Model) and not isinstance(mixer, PatchModel)
