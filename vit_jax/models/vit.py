"""The Vision Transformer ("An Image is Worth 16x16 Words", arXiv 2010.11929, section 3.1)."""
import re

from flax import nnx
import jax
import jax.numpy as jnp

from vit_jax.choices import choose
from vit_jax.models import attention
from vit_jax.models import layers
from vit_jax.models import positions


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


class EncoderBlock(nnx.Module):
  """Pre-norm block: x + attention(norm(x)), then x + mlp(norm(x)) (paper, equations 2 and 3)."""

  def __init__(self, width, heads, mlp_dim, *, dropout, attention_dropout, dtype, rngs):
    self.attention_norm = nnx.LayerNorm(width, epsilon=1e-6, dtype=dtype, rngs=rngs)
    self.attention = attention.SelfAttention(width, heads, dropout=attention_dropout, dtype=dtype, rngs=rngs)
    self.mlp_norm = nnx.LayerNorm(width, epsilon=1e-6, dtype=dtype, rngs=rngs)
    self.mlp = layers.MlpBlock(width, mlp_dim, dropout=dropout, dtype=dtype, rngs=rngs)
    self.dropout = dropout

  def __call__(self, x, rngs=None):
    """Maps tokens (B, N, width) to (B, N, width)."""
    weights_rngs, output_rngs, mlp_rngs = layers.split(rngs, 3)
    x += layers.dropout(self.attention(self.attention_norm(x), weights_rngs), self.dropout, output_rngs)
    return x + self.mlp(self.mlp_norm(x), mlp_rngs)


class Encoder(nnx.Module):
  """`depth` blocks, their parameters stacked along a leading axis, and a last LayerNorm."""

  def __init__(self, depth, width, *, unroll, dtype, rngs, **block):
    make = lambda rngs: EncoderBlock(width, dtype=dtype, rngs=rngs, **block)
    self.blocks = nnx.vmap(make)(rngs.split(depth))
    self.norm = nnx.LayerNorm(width, epsilon=1e-6, dtype=dtype, rngs=rngs)
    self.depth = depth
    self.unroll = unroll

  def __call__(self, x, rngs=None):
    """Maps tokens (B, N, width) to (B, N, width)."""
    graphdef, stacked = nnx.split(self.blocks)

    def body(x, layer):
      number, params = layer
      return nnx.merge(graphdef, params)(x, layers.fold_in(rngs, number)), None

    x, _ = jax.lax.scan(body, x, (jnp.arange(self.depth), stacked), unroll=self.unroll)
    return self.norm(x)


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
    pool: 'token' reads the class token, 'gap' the mean over all patches (paper, appendix D.3).
    position: a name of `positions.POSITIONS`.
    representation_size: features of the hidden tanh layer before the head ("pre_logits", section 3.1), or None.
    head_bias: initial bias of the head; -10 with a sigmoid loss over many classes.
    dropout: rate after every dense layer but q, k, v, and after the positions (appendix B.1).
    attention_dropout: rate on the attention weights.
    dtype: type of activations and products; parameters, softmax and LayerNorm statistics stay float32.
    unroll: how many blocks each turn of the scan holds; more compiles longer.
    rngs: parameter stream, `nnx.Rngs(seed)`.

  Raises:
    ValueError: an unknown variant, pool or position; a missing field; sizes that do not divide.
  """

  def __init__(self, variant: str | None = None, *, image_size: int | tuple = 224, channels: int = 3,
               num_classes: int | None = 1000, width: int | None = None, depth: int | None = None,
               heads: int | None = None, mlp_dim: int | None = None, patch_size: int | tuple | None = None,
               pool: str = 'token', position: str = 'learned', representation_size: int | None = None,
               head_bias: float = 0.0, dropout: float = 0.0, attention_dropout: float = 0.0,
               dtype: str = 'float32', unroll: int = 1, rngs: nnx.Rngs):
    given = dict(width=width, depth=depth, heads=heads, mlp_dim=mlp_dim, patch_size=patch_size)
    shape = variant_fields(variant) if variant else {}
    shape.update((name, value) for name, value in given.items() if value is not None)
    self.grid = _check_shape(pair(image_size), shape, given)
    choose(POOLS, pool, 'pool')
    width, patch = shape['width'], pair(shape['patch_size'])
    dtype = jnp.dtype(dtype)

    self.image_size, self.channels, self.num_classes = pair(image_size), channels, num_classes
    self.pool, self.dropout = pool, dropout
    self.embed = nnx.Conv(channels, width, patch, strides=patch, padding='VALID', dtype=dtype, rngs=rngs)
    self.token = nnx.Param(jnp.zeros((width,), jnp.float32)) if pool == 'token' else None
    make_position = choose(positions.POSITIONS, position, 'position')
    self.position = make_position(self.grid, width, class_token=pool == 'token', rngs=rngs)
    self.encoder = Encoder(shape['depth'], width, heads=shape['heads'], mlp_dim=shape['mlp_dim'], dropout=dropout,
                           attention_dropout=attention_dropout, unroll=unroll, dtype=dtype, rngs=rngs)
    self.pre_logits = nnx.Linear(width, representation_size, dtype=dtype, rngs=rngs) if representation_size else None
    self.head = None if num_classes is None else nnx.Linear(
        representation_size or width, num_classes, dtype=dtype, rngs=rngs,
        kernel_init=nnx.initializers.zeros, bias_init=nnx.initializers.constant(head_bias))

  def __call__(self, images, rngs=None):
    """Classifies images.

    Args:
      images: (B, rows, columns, channels) floats, already normalised.
      rngs: (B,) typed PRNG keys, one for each example, in training; None in evaluation.

    Returns:
      (B, num_classes) float32 logits, or (B, features) without a head.
    """
    if images.shape[1:] != (*self.image_size, self.channels):
      raise ValueError(f'expected images of shape (B, {self.image_size[0]}, {self.image_size[1]}, {self.channels}), '
                       f'got {images.shape}')
    embed_rngs, encoder_rngs = layers.split(rngs, 2)
    tokens = layers.dropout(self.embed_tokens(images), self.dropout, embed_rngs)
    x = POOLS[self.pool](self.encoder(tokens, encoder_rngs))
    if self.pre_logits is not None:
      x = jnp.tanh(self.pre_logits(x))
    if self.head is not None:
      x = self.head(x)
    return x.astype(jnp.float32)

  def embed_tokens(self, images):
    """Patches, class token and positions: (B, rows, columns, channels) → (B, N, width)."""
    x = self.embed(images)
    grid, token = self.position()
    x = (x + grid.astype(x.dtype)).reshape(x.shape[0], -1, x.shape[-1])
    if self.token is None:
      return x
    token = (self.token[...] + token).astype(x.dtype)
    return jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, x.shape[-1])), x], axis=1)


def _check_shape(image_size, shape, fields):
  """Raises what is missing or does not divide; returns the grid of patches (rows, columns)."""
  missing = sorted(set(fields) - set(shape))
  if missing:
    raise ValueError(f"the model needs {missing}: name a variant such as 'B/16' (sizes {sorted(VARIANTS)}) or give them")
  if shape['width'] % shape['heads']:
    raise ValueError(f"width {shape['width']} is not divisible by {shape['heads']} heads")
  patch = pair(shape['patch_size'])
  if any(n % p or n < p for n, p in zip(image_size, patch)):
    raise ValueError(f'image size {image_size} is not divisible by the patch size {patch}')
  return tuple(n // p for n, p in zip(image_size, patch))


# How the tokens (B, N, width) become one vector (B, width).
POOLS = {
    'token': lambda tokens: tokens[:, 0],
    'gap': lambda tokens: tokens.mean(axis=1),
}

# Paper, table 1 (B, L, H); "How to train your ViT?" (arXiv 2106.10270), table 1 (Ti, S).
VARIANTS = {
    'Ti': dict(width=192, depth=12, mlp_dim=768, heads=3),
    'S': dict(width=384, depth=12, mlp_dim=1536, heads=6),
    'B': dict(width=768, depth=12, mlp_dim=3072, heads=12),
    'L': dict(width=1024, depth=24, mlp_dim=4096, heads=16),
    'H': dict(width=1280, depth=32, mlp_dim=5120, heads=16),
}
