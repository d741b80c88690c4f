"""The Vision Transformer ("An Image is Worth 16x16 Words", arXiv 2010.11929, section 3.1)."""
import re

from flax import nnx
import jax.numpy as jnp

from vit_jax.base.choices import choose
from vit_jax.models import layers
from vit_jax.models.attention import check as check_attention
from vit_jax.models.encoder import BlockOptions, Encoder
from vit_jax.models.pooling import POOLS
from vit_jax.models.positions import POSITIONS


class VisionTransformer(nnx.Module):
  """A ViT classifier: `model(images)` gives logits.

  `variant` fills width, depth, heads, mlp_dim and patch_size; a field that is given beside it wins.

  Args:
    variant: such as 'B/16', a row of VARIANTS and a patch size; or None.
    image_size: rows and columns in pixels, an int or a pair.
    channels: number of image channels.
    num_classes: width of the logits, or None for a model without a head.
    width: features of a token.
    depth: number of encoder blocks.
    heads: attention heads in a block.
    mlp_dim: hidden features of the MLP.
    patch_size: rows and columns of a patch in pixels, an int or a pair; divides image_size.
    pool: a name of `pooling.POOLS`: class token, mean over the patches, or attention.
    position: a name of `positions.POSITIONS`.
    class_token: whether there is one; None has one where `pool` reads it.
    token_position: whether the class token has a position of its own, as in the paper; big_vision's has none.
    registers: extra learned tokens that nobody reads (arXiv 2309.16588).
    representation_size: features of the hidden tanh layer before the head ("pre_logits", section 3.1), or None.
    head_bias: initial bias of the head; -10 with a sigmoid loss over many classes.
    dropout: rate after every dense layer but q, k, v, and after the positions (appendix B.1).
    attention_dropout: rate on the attention weights.
    attention: 'xla', or 'cudnn' for its fused kernel on GPUs, not in float32 and without attention_dropout.
    stochastic_depth: rate at which the last block's branches are dropped; blocks before it linearly less.
    layer_scale: initial value of a learned scale on each branch (arXiv 2103.17239), or None for no scale.
    qk_norm: LayerNorm on queries and keys.
    qkv_bias: whether queries, keys and values have biases.
    norm_after_pool: the last LayerNorm comes after the pooling (timm's `fc_norm`), not before.
    norm_epsilon: of every LayerNorm.
    gelu: 'tanh' (official, big_vision) or 'exact' (timm, Hugging Face).
    dtype: type of activations and products; parameters, softmax and LayerNorm statistics stay float32.
    unroll: whether each block is compiled by itself: faster on TPUs, but compiling takes longer the deeper the model;
      else one is compiled and repeated.
    remat: what each block computes again for its gradient, to keep less: 'none', 'dots' (all but its products with
      weights: so nothing of N x N elements is kept), 'full' (all but its input) or 'offload' (likewise, and the input
      waits in the host's memory, to which it must be moved and back; it saves where deep models are scanned, not unrolled,
      and nothing on a CPU).
    rngs: parameter stream, `nnx.Rngs(seed)`.

  Raises:
    ValueError: an unknown variant, pool or position; a missing field; sizes that do not divide.
  """

  def __init__(self, variant: str | None = None, *, image_size: int | tuple = 224, channels: int = 3,
               num_classes: int | None = 1000, width: int | None = None, depth: int | None = None,
               heads: int | None = None, mlp_dim: int | None = None, patch_size: int | tuple | None = None,
               pool: str = 'token', position: str = 'learned', class_token: bool | None = None,
               token_position: bool = True, registers: int = 0, representation_size: int | None = None,
               head_bias: float = 0.0, dropout: float = 0.0, attention_dropout: float = 0.0,
               attention: str = 'xla', stochastic_depth: float = 0.0, layer_scale: float | None = None,
               qk_norm: bool = False,
               qkv_bias: bool = True, norm_after_pool: bool = False, norm_epsilon: float = 1e-6, gelu: str = 'tanh',
               dtype: str = 'float32', unroll: bool = False, remat: str = 'none', rngs: nnx.Rngs):
    given = dict(width=width, depth=depth, heads=heads, mlp_dim=mlp_dim, patch_size=patch_size)
    shape = variant_fields(variant) if variant else {}
    shape.update((name, value) for name, value in given.items() if value is not None)
    self.image_size, self.channels, self.num_classes = pair(image_size), channels, num_classes
    self.grid = _check_shape(self.image_size, shape, given)
    width, heads, mlp_dim, patch = shape['width'], shape['heads'], shape['mlp_dim'], pair(shape['patch_size'])
    class_token = pool == 'token' if class_token is None else class_token
    if pool == 'token' and not class_token:
      raise ValueError("pool='token' reads the class token, but class_token=False")
    _check_numbers(dtype, dropout=dropout, attention_dropout=attention_dropout,
                   stochastic_depth=stochastic_depth)
    check_attention(attention, dtype, attention_dropout)
    options = BlockOptions(dropout=dropout, attention_dropout=attention_dropout, attention=attention,
                           layer_scale=layer_scale, qk_norm=qk_norm, qkv_bias=qkv_bias, norm_epsilon=norm_epsilon,
                           gelu=gelu)
    common = dict(dtype=jnp.dtype(dtype), rngs=rngs)

    self.embed = nnx.Conv(channels, width, patch, strides=patch, padding='VALID', **common)
    self.token = nnx.Param(jnp.zeros((width,), jnp.float32)) if class_token else None
    self.registers = nnx.Param(
        nnx.initializers.normal(0.02)(rngs.params(), (registers, width), jnp.float32)) if registers else None
    self.position = choose(POSITIONS, position, 'position')(
        self.grid, width, class_token=class_token and token_position, rngs=rngs)
    self.dropout, self.prefix = dropout, int(class_token) + registers
    self.encoder = Encoder(shape['depth'], width, heads, mlp_dim, options=options, stochastic_depth=stochastic_depth,
                           unroll=unroll, remat=remat, **common)
    self.norm, self.norm_after_pool = nnx.LayerNorm(width, epsilon=norm_epsilon, **common), norm_after_pool
    self.pool = choose(POOLS, pool, 'pool')(width, heads, mlp_dim, options=options, **common)
    self.pre_logits = nnx.Linear(width, representation_size, **common) if representation_size else None
    self.head = None if num_classes is None else nnx.Linear(
        representation_size or width, num_classes, kernel_init=nnx.initializers.zeros,
        bias_init=nnx.initializers.constant(head_bias), rngs=rngs)  # logits are float32 always

  def __call__(self, images, rngs=None):
    """Classifies images.

    Args:
      images: (B, rows, columns, channels) floats, already normalised.
      rngs: (B,) typed PRNG keys, one for each example, in training; None in evaluation.

    Returns:
      (B, num_classes) float32 logits, or (B, features) without a head.
    """
    embed_rngs, encoder_rngs = layers.split(rngs, 2)
    tokens = layers.dropout(self.tokens(images), self.dropout, embed_rngs)
    tokens = self.encoder(tokens, encoder_rngs, first_only=self.pool.first_only)
    if self.norm_after_pool:
      x = layers.layer_norm(self.norm, self.pool(tokens, self.prefix))
    else:
      x = self.pool(layers.layer_norm(self.norm, tokens), self.prefix)
    if self.pre_logits is not None:
      x = jnp.tanh(self.pre_logits(x))
    return (x if self.head is None else self.head(x)).astype(jnp.float32)

  def tokens(self, images):
    """What the encoder sees: (B, rows, columns, channels) → (B, prefix + patches, width), positions added."""
    if images.shape[1:] != (*self.image_size, self.channels):
      raise ValueError(f'expected images of shape (B, {self.image_size[0]}, {self.image_size[1]}, {self.channels}), '
                       f'got {images.shape}')
    x = layers.embed(self.embed, images)
    grid, token_position = self.position()
    x += jnp.broadcast_to(grid, (*self.grid, x.shape[-1])).reshape(x.shape[1:]).astype(x.dtype)
    prefix = [] if self.token is None else [(self.token[...] + token_position)[None]]
    prefix += [] if self.registers is None else [self.registers[...]]
    return jnp.concatenate([*(_repeated(p, x) for p in prefix), x], axis=1)

  def features(self, images, layer=None):
    """Tokens (B, prefix + patches, width) after `layer` blocks, 0..depth; None: after all and the last LayerNorm."""
    depth = self.encoder.depth
    if layer is not None and not 0 <= layer <= depth:
      raise ValueError(f'expected a layer in 0..{depth}, got {layer}')
    x = self.encoder(self.tokens(images), layers_run=layer)
    return layers.layer_norm(self.norm, x) if layer is None else x

  def attention_weights(self, images):
    """The attention of every block and head: (depth, B, heads, N, N) float32, rows sum to 1; N = prefix + patches."""
    return self.encoder.attention_weights(self.tokens(images))


def variant_fields(name):
  """The fields of a variant such as 'B/16': width, depth, mlp_dim, heads and patch_size.

  Raises:
    ValueError: `name` is not SIZE/PATCH with a size of VARIANTS.
  """
  size, _, patch = str(name).partition('/')
  if size not in VARIANTS or not re.fullmatch(r'[1-9]\d*', patch):
    raise ValueError(f"unknown variant {name!r}; expected SIZE/PATCH such as 'B/16', SIZE one of {sorted(VARIANTS)}")
  return dict(VARIANTS[size], patch_size=int(patch))


def pair(size):
  """An int or a (rows, columns) pair as a pair of ints."""
  return (size, size) if isinstance(size, int) else tuple(int(n) for n in size)


def _repeated(tokens, like):
  """Tokens (n, width) for every example of `like`: (B, n, width)."""
  return jnp.broadcast_to(tokens.astype(like.dtype), (like.shape[0], *tokens.shape))


def _check_numbers(dtype, **rates):
  if dtype not in ('float32', 'bfloat16', 'float16'):
    raise ValueError(f"dtype: expected 'float32', 'bfloat16' or 'float16', got {dtype!r}")
  for name, rate in rates.items():
    if not 0.0 <= rate < 1.0:
      raise ValueError(f'{name} must be in [0, 1), got {rate}')


def _check_shape(image_size, shape, fields):
  """Raises what is missing or does not divide; returns the grid of patches (rows, columns)."""
  missing = sorted(set(fields) - set(shape))
  if missing:
    raise ValueError(f"the model needs {missing}: name a variant such as 'B/16' (sizes {sorted(VARIANTS)}) or give them")
  sizes = dict(image_size=image_size, **{name: pair(shape[name]) for name in fields})
  for name, size in sizes.items():
    if len(size) != 2 or min(size) < 1:
      raise ValueError(f'{name} must be at least 1, a number or where it is a size a (rows, columns) pair; got {size}')
  if shape['width'] % shape['heads']:
    raise ValueError(f"width {shape['width']} is not divisible by {shape['heads']} heads")
  patch = pair(shape['patch_size'])
  if any(n % p for n, p in zip(image_size, patch)):
    raise ValueError(f'image size {image_size} is not divisible by the patch size {patch}')
  return tuple(n // p for n, p in zip(image_size, patch))


# Paper, table 1 (B, L, H); "How to train your ViT?" (arXiv 2106.10270), table 1 (Ti, S); "Scaling Vision Transformers"
# (arXiv 2106.04560), table 2 (g, G); "Getting ViT in Shape" (arXiv 2305.13035) and big_vision's models/vit.py (So400m).
VARIANTS = {
    'Ti': dict(width=192, depth=12, mlp_dim=768, heads=3),
    'S': dict(width=384, depth=12, mlp_dim=1536, heads=6),
    'B': dict(width=768, depth=12, mlp_dim=3072, heads=12),
    'L': dict(width=1024, depth=24, mlp_dim=4096, heads=16),
    'So400m': dict(width=1152, depth=27, mlp_dim=4304, heads=16),
    'H': dict(width=1280, depth=32, mlp_dim=5120, heads=16),
    'g': dict(width=1408, depth=40, mlp_dim=6144, heads=16),
    'G': dict(width=1664, depth=48, mlp_dim=8192, heads=16),
}
