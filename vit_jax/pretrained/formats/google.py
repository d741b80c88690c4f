"""Google's official `.npz` files (github.com/google-research/vision_transformer), of 2020 and since."""
from vit_jax.base.preprocessing import Preprocessing
from vit_jax.pretrained.formats import infer
from vit_jax.pretrained.formats import leaves
from vit_jax.pretrained.formats import linen
from vit_jax.pretrained.formats import representable

SUFFIX = '.npz'
METHOD = 'bilinear'
POSITIONS = 'Transformer/posembed_input/pos_embedding'
_TABLE = {**linen.STEM, **linen.BLOCKS[linen.LOOP]}
_HYBRID = ('conv_root/', 'gn_root/', 'block1/')
_MIXER = ('MixerBlock_0/', 'Mixer/')


def matches(names):
  """Whether an array of one of these names would be in such a file, Mixer and hybrid models included."""
  return 'embedding/kernel' in names or any(name.startswith((*_HYBRID, *_MIXER)) for name in names)


def read(tensors, configs, image_size=None):
  """Reads the `Weights` of a file.

  Args:
    tensors: the open file.
    configs: unused, such a file has none.
    image_size: what the model was trained at, needed where its positions form no square image.

  Raises:
    ValueError: a hybrid or a Mixer, or no such file.
  """
  del configs
  _refuse_other_models(tensors)
  tensors = tensors.rename(linen.modern)
  fields = linen.fields_of(tensors, linen.LOOP)
  patches = tensors.shape(POSITIONS, 3)[1] - fields['class_token']
  grid = infer.grid(tensors, patches, fields['patch_size'], image_size)
  fields['image_size'] = tuple(n * p for n, p in zip(grid, fields['patch_size']))
  # The authors evaluate with a plain resize of the whole image and values in [-1, 1] (input_pipeline.py).
  return leaves.read(tensors, fields, _TABLE, POSITIONS, source='google', preprocessing=Preprocessing())


def write(weights, approximate=False):
  """Lays out `weights` as such a file.

  Args:
    weights: to be written.
    approximate: accept that the authors' code uses another GELU or LayerNorm epsilon than the model.

  Returns:
    ({name: array}, {} as it has no config files, weights as they were written).

  Raises:
    ValueError: names a field that these files cannot hold.
  """
  weights = representable.norm_before_pool(weights)
  pool = weights.fields['pool']
  representable.require(weights, 'google', pool=('token', 'gap'), class_token=(pool == 'token',), registers=(0,),
                        layer_scale=(None,), qk_norm=(False,), qkv_bias=(True,), norm_after_pool=(False,))
  representable.require_numerics(weights, 'google', approximate, gelu='tanh', norm_epsilon=1e-6)
  weights = representable.token_position(representable.learned_positions(weights))
  return leaves.spread(weights, _TABLE, POSITIONS), {}, weights


def _refuse_other_models(tensors):
  for kind, prefixes in (('hybrid (ResNet and transformer)', _HYBRID), ('MLP-Mixer', _MIXER)):
    if any(name.startswith(prefixes) for name in tensors.shapes):
      raise tensors.error(f'this is a {kind} model, which vit_jax does not have yet; only plain Vision Transformers '
                          'can be loaded')
