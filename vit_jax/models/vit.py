"""The Vision Transformer ("An Image is Worth 16x16 Words", arXiv 2010.11929, section 3.1)."""
from typing import Any

from flax import nnx
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float, Int

from vit_jax.base.choices import choose
from vit_jax.base.errors import UserError
from vit_jax.models import attention, attention_kinds, layers
from vit_jax.models.base import ImageModel, Images, Patches, Read, Reduce, Rngs, Tokens, as_they_are
from vit_jax.models.bit.resnet import ResNet
from vit_jax.models.config import ViTConfig
from vit_jax.models.encoder import Encoder
from vit_jax.models.pooling import POOLS
from vit_jax.models.positions import embeddings, relative
from vit_jax.models.vit_tree import ViTTree


class VisionTransformer(nnx.Module, ImageModel, ViTTree):
  """A Vision Transformer: `model(images)` gives logits.

  Args:
    config: shape and options; see `ViTConfig`.
    rngs: parameter stream, `nnx.Rngs(seed)`.

  Raises:
    UserError: an unknown pool, position or other choice; sizes that do not divide.
  """

  Config = ViTConfig

  def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
    self.config = config
    attention_kinds.check(config)
    relative.check(config.relative_position, config.attention)
    attention.check(config.attention, config.dtype, config.attention_dropout)
    width, dtype = config.width, jnp.dtype(config.dtype)
    common: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
    shape = config.resnet_shape
    self.resnet = None if shape is None else ResNet(shape, dtype=dtype, remat=config.remat, rngs=rngs)
    self.patch_embed = nnx.Conv(
        config.channels if shape is None else shape.width, width, config.patch_size, strides=config.patch_size,
        padding='VALID', use_bias=config.patch_bias, **common)
    self.token = nnx.Param(jnp.zeros((width,), jnp.float32)) if config.class_token else None
    self.distillation_token = nnx.Param(jnp.zeros((width,), jnp.float32)) if config.distillation_token else None
    self.mask_token = nnx.Param(jnp.zeros((width,), jnp.float32)) if config.mask_token else None
    self.registers = _rows(config.registers, width, rngs)
    self.position = embeddings.make(config, 'stem', rngs)
    self.prefix_position = _rows(config.num_prefix_positions, width, rngs)
    norm = lambda: nnx.LayerNorm(width, epsilon=config.norm_epsilon, **common)
    self.pre_norm = norm() if config.pre_norm else None
    self.encoder = Encoder(config, position=embeddings.make(config, 'shared', rngs),
                           relative=relative.make(config, True, rngs), rngs=rngs)
    self.norm = norm()
    self.pool = choose(POOLS, config.pool, 'model.pool')(config, rngs=rngs)
    self.pre_logits = None if config.representation_size is None else nnx.Linear(
        config.pooled_size, config.representation_size, **common)
    self.projection = None if config.projection_size is None else nnx.Linear(
        config.pooled_size, config.projection_size, use_bias=False, **common)
    features = config.representation_size or config.projection_size or config.pooled_size
    head = lambda: layers.make_head(features, config.num_classes, config.head_bias, rngs)
    self.head = head()
    self.head_distilled = head() if config.pool == 'distilled' else None

  def __call__(self, images: Images, rngs: Rngs = None) -> Float[Array, 'batch outputs']:
    """Classify images.

    Args:
      images: floats, already normalized.
      rngs: typed PRNG keys, one per example, in training; None in evaluation.

    Returns:
      float32 logits, or the representation without a head.
    """
    if self.head is None:
      return _embedding(self._represent(images, rngs))
    # Two heads as in DeiT's evaluation; without a teacher to learn from, their mean is what training needs too.
    return self.logits_by_head(images, rngs).mean(axis=1)

  def logits_by_head(self, images: Images, rngs: Rngs = None) -> Float[Array, 'batch heads classes']:
    """Return the logits of every head: that of the class token, and of the distillation token if there is one.

    Args:
      images: floats, already normalized.
      rngs: typed PRNG keys, one per example, in training; None in evaluation.

    Returns:
      float32, one or two heads.

    Raises:
      UserError: the model has no head.
    """
    if self.head is None:
      raise UserError('model.num_classes: the model has no head, so it gives no logits')
    x = self._represent(images, rngs)
    if self.head_distilled is None:
      return self.head(x).astype(jnp.float32)[:, None]
    return jnp.stack([self.head(x[:, 0]), self.head_distilled(x[:, 1])], axis=1).astype(jnp.float32)

  def embed(self, images: Images) -> Float[Array, 'batch features']:
    """Return the representation that the head reads: pooled tokens, after the hidden layer or projection if any.

    With two heads, for class and distillation token, it is the mean of what they read.

    Args:
      images: floats, already normalized.

    Returns:
      float32, representation_size, projection_size or `config.pooled_size` features.
    """
    return _embedding(self._represent(images, None))

  def features(self, images: Images, layer: int | None = None) -> Tokens:
    """Return the tokens after some of the blocks: class and distillation token, registers, patches row by row.

    Args:
      images: floats, already normalized.
      layer: number of blocks, 0..depth; None: all of them, and the last LayerNorm unless it comes after the
        pooling.

    Raises:
      UserError: another layer.
    """
    depth = self.config.depth
    if layer is not None and not 0 <= layer <= depth:
      raise UserError(f'layer: expected 0..{depth}, got {layer}')
    x = self.encoder(self.tokens(images), num_layers=layer)
    return x if layer is not None else self._last_norm(x)

  def encode(self, patches: Patches, keep: Int[Array, 'batch kept'] | None = None, rngs: Rngs = None) -> Tokens:
    """Return the last tokens of images whose patches are embedded already; see `base.PatchModel.encode`.

    Args:
      patches: from `patch_tokens`, or changed since.
      keep: indices of the patches to encode; None: all.
      rngs: typed PRNG keys, one per example, in training; None in evaluation.

    Raises:
      UserError: see `check_keep`.
    """
    if keep is not None:
      self.check_keep()
    embed_rngs, encoder_rngs = layers.split(rngs, 2)
    tokens = layers.dropout(self._with_prefix(patches, keep), self.config.dropout, embed_rngs)
    return self._last_norm(self.encoder(tokens, encoder_rngs, keep=self._kept_tokens(keep)))

  def check_keep(self) -> None:
    """Raise UserError if `encode` can not leave out patches: some attentions need the whole grid."""
    config, needs = self.config, 'this objective encodes some of the patches, which'
    if config.attention_kind != 'full':
      raise UserError(f"model.attention_kind: {needs} needs 'full', got {config.attention_kind!r}")
    for name in ('rotary', 'relative_position'):
      if getattr(config, name) is not None:
        raise UserError(f'model.{name}: {needs} needs positions that are added to the tokens (model.position), got '
                        f"{getattr(config, name)!r}; set model.{name}='none'")

  def attention_weights(self, images: Images, reduce: Reduce = as_they_are) -> Any:
    """Return the attention weights of every block and head, (depth, batch, heads, tokens, tokens) float32.

    Args:
      images: floats, already normalized.
      reduce: applied to the weights of each block, whose rows sum to 1; what it returns is stacked instead.

    Raises:
      UserError: axial attention, which has no weights from all tokens to all.
    """
    return self.encoder.attention_weights(self.tokens(images), reduce)

  def collect(self, images: Images, read: Read) -> tuple[Tokens, Any]:
    """Return the tokens after the last block, and what is read at every block; see `encoder.BlockModel`."""
    shared = self.encoder.shared()
    return self.encoder.collect(self.tokens(images), lambda block, x: read(block, x, **shared))

  def tokens(self, images: Images) -> Tokens:
    """Return what the encoder takes: class and distillation token, registers and patches, with positions of the stem.

    Args:
      images: floats, already normalized.

    Raises:
      UserError: images of another size or number of channels.
    """
    return self._with_prefix(self.patch_tokens(images))

  def patch_tokens(self, images: Images) -> Patches:
    """Return the embedded patches of images, row by row, without positions; see `base.PatchModel.patch_tokens`.

    Args:
      images: floats, already normalized.

    Raises:
      UserError: images of another size or number of channels.
    """
    expected = (*self.config.image_size, self.config.channels)
    if images.shape[1:] != expected:
      raise UserError(f'images: expected shape (B, {", ".join(map(str, expected))}), got {images.shape}; another size '
                      'is given when the model is built or loaded, with image_size=(rows, columns)')
    return layers.embed_patches(self.patch_embed, images if self.resnet is None else self.resnet(images))

  def _with_prefix(self, x: Patches, keep: Int[Array, 'batch kept'] | None = None) -> Tokens:
    """Return what the encoder takes, given the embedded patches: all, or those whose indices are kept."""
    grid, token_position = self.position()
    x += jnp.broadcast_to(grid, (*self.config.grid, x.shape[-1])).reshape(x.shape[1:]).astype(x.dtype)
    x = x if keep is None else jnp.take_along_axis(x, keep[..., None], axis=1)
    prefix = [] if self.token is None else [(self.token[...] + token_position)[None]]
    prefix += self._other_tokens()
    x = jnp.concatenate([*(_repeat(p, x) for p in prefix), x], axis=1)
    return x if self.pre_norm is None else layers.layer_norm(self.pre_norm, x)

  def _kept_tokens(self, keep: Int[Array, 'batch kept'] | None) -> Int[Array, 'batch tokens'] | None:
    """Return the indices of the tokens that stay if only some patches are kept; None for all."""
    if keep is None:
      return None
    prefix = self.config.num_prefix_tokens
    return jnp.concatenate([jnp.broadcast_to(jnp.arange(prefix), (len(keep), prefix)), keep + prefix], axis=1)

  def _last_norm(self, x: Tokens) -> Tokens:
    """Return the encoder's tokens normalized, unless that comes after the pooling."""
    return x if self.config.norm_after_pool else layers.layer_norm(self.norm, x)

  def _other_tokens(self) -> list[Float[Array, 'tokens width']]:
    """Return the tokens between class token and patches, with positions added."""
    found = [] if self.distillation_token is None else [self.distillation_token[...][None]]
    found += [] if self.registers is None else [self.registers[...]]
    if self.prefix_position is None:
      return found
    tokens, positions = jnp.concatenate(found), self.prefix_position[...]
    return [tokens + jnp.pad(positions, ((0, len(tokens) - len(positions)), (0, 0)))]

  def _represent(self, images: Images, rngs: Rngs) -> Float[Array, 'batch *heads features']:
    """Return what the head reads, or each of the two heads, in the model's dtype."""
    embed_rngs, encoder_rngs = layers.split(rngs, 2)
    tokens = layers.dropout(self.tokens(images), self.config.dropout, embed_rngs)
    tokens = self.encoder(tokens, encoder_rngs, first_only=self.pool.first_only)
    prefix = self.config.num_prefix_tokens
    if self.config.norm_after_pool:
      x = layers.layer_norm(self.norm, self.pool(tokens, prefix))
    else:
      x = self.pool(layers.layer_norm(self.norm, tokens), prefix)
    if self.projection is not None:
      return self.projection(x)
    return x if self.pre_logits is None else jnp.tanh(self.pre_logits(x))


def _rows(count: int, width: int, rngs: nnx.Rngs) -> nnx.Param | None:
  """Return learned rows, standard deviation 0.02; None for no row."""
  return nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (count, width), jnp.float32)) if count else None


def _embedding(x: Float[Array, 'batch *heads features']) -> Float[Array, 'batch features']:
  """Return a representation as float32, the mean of what two heads read."""
  return (x if x.ndim == 2 else x.mean(axis=1)).astype(jnp.float32)


def _repeat(tokens: Float[Array, 'tokens width'], like: Float[Array, 'batch _ width']) -> Tokens:
  """Return the tokens once per example of `like`."""
  return jnp.broadcast_to(tokens.astype(like.dtype), (like.shape[0], *tokens.shape))
