"""Mixup and CutMix: pairs of images and their labels, mixed on the device.

An example's partner is its neighbor, 2i and 2i + 1 of the global batch. The stream is shuffled globally, so the partner
is a random one, and it is on the same device: nothing is communicated, and the pairs do not depend on the number of
devices.
"""
from collections.abc import Callable, Mapping
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np
from scipy import special

from vit_jax.base.errors import UserError
from vit_jax.base.sections import off
from vit_jax.objectives import losses

ArrayLike = jax.Array | np.ndarray
Mixing = Callable[[Mapping[str, Any], jax.Array], dict[str, Any]]

# Not among the numbers, from 0 on, by which a model's layers derive their keys from the examples'.
_STREAM = 0x6D6978


@dataclasses.dataclass(frozen=True)
class MixConfig:
  """Section `mix` of a recipe. With both kinds, each pair takes either with probability 0.5.

  Attributes:
    mixup: α of mixup (arXiv 1710.09412): an image is λ of itself and 1 - λ of its partner, λ ~ Beta(α, α), the larger
      of λ and 1 - λ (as big_vision; each image stays the larger part of its own mixture). None or 0 is off.
    cutmix: α of CutMix (arXiv 1905.04899): a rectangle of 1 - λ of the area around a uniform center, cut off at the
      edges, comes from the partner, λ ~ Beta(α, α). None or 0 is off.
  """
  mixup: float | None = off(0, 0.0)
  cutmix: float | None = off(0, 0.0)

  def __post_init__(self):
    for name in ('mixup', 'cutmix'):
      alpha = getattr(self, name)
      if alpha is not None and not 0.0 < alpha < math.inf:
        raise UserError(f'mix.{name}: expected a positive concentration, or 0 for off, got {alpha}')


def build(config: MixConfig, num_classes: int) -> Mixing | None:
  """Build the mixing of a training batch.

  Args:
    config: which kinds, and how strong.
    num_classes: width of the mixed labels.

  Returns:
    None if nothing is mixed, else mix(batch, keys) → batch: image (B, rows, columns, channels) float32, B even; label
    (B, num_classes) float32, each row the convex combination of its pair's labels by their shares of the image.
    keys are (B,), one per example; a pair's first decides.
  """
  if config.mixup is None and config.cutmix is None:
    return None

  def own_weights(key: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Return how much of each pixel stays an image's own, (rows, columns) or (1, 1)."""
    mixup_key, cutmix_key, choice_key = jax.random.split(key, 3)
    kinds = [] if config.mixup is None else [_mixup_weight(mixup_key, config.mixup)]
    kinds += [] if config.cutmix is None else [_cutmix_weights(cutmix_key, config.cutmix, size)]
    return kinds[0] if len(kinds) == 1 else jnp.where(jax.random.bernoulli(choice_key), *kinds)

  def mix(batch: Mapping[str, Any], keys: jax.Array) -> dict[str, Any]:
    _, rows, columns, _ = batch['image'].shape
    own = jax.vmap(lambda key: own_weights(jax.random.fold_in(key, _STREAM), (rows, columns)))(keys[::2])
    label_weight = own.mean(axis=(1, 2))  # of what was really pasted, not of what was drawn
    return dict(batch, image=_with_neighbor(batch['image'], own[..., None]),
                label=_with_neighbor(losses.to_soft_labels(batch['label'], num_classes), label_weight[:, None]))

  return mix


def check_pairs(batch_size: int, num_shards: int, num_micro_batches: int) -> None:
  """Raise UserError unless every micro-batch of every shard of a global batch holds an even number of images."""
  per_shard = batch_size // num_shards
  held = per_shard // num_micro_batches
  if held % 2 == 0:
    return
  fix = f'train.micro_batch={2 * held}' if per_shard % 2 == 0 else f'data.batch_size={batch_size + num_shards}'
  raise UserError(f'mix: pairs neighbors, so each of the {num_shards} shards of data.batch_size={batch_size} (one per '
                  'device or, on a mesh, per parallel.tensor devices) needs an even number of images per micro-batch; '
                  f'got {held} of {per_shard}. The nearest that fits: --config.{fix}')


def _beta(key: jax.Array, alpha: float) -> jax.Array:
  """Draw from Beta(α, α) by its quantiles, 4,096 of them exact and linear in between.

  `jax.random.beta` rejects in a loop until all examples are done: if jit spreads the batch, each turn waits for all
  devices.
  """
  quantiles = jnp.asarray(special.betaincinv(alpha, alpha, np.linspace(0, 1, 4097)), jnp.float32)
  place = 4096 * jax.random.uniform(key)
  left = place.astype(jnp.int32)  # 0..4095
  return quantiles[left] + (place - left) * (quantiles[left + 1] - quantiles[left])


def _mixup_weight(key: jax.Array, alpha: float) -> Float[Array, '1 1']:
  weight = _beta(key, alpha)
  return jnp.maximum(weight, 1.0 - weight).reshape(1, 1)


def _cutmix_weights(key: jax.Array, alpha: float, size: tuple[int, int]) -> Float[Array, 'rows columns']:
  """Return 1, and 0 in the rectangle."""
  weight_key, center_key = jax.random.split(key)
  half = jnp.sqrt(1.0 - _beta(weight_key, alpha)) / 2
  center = jax.random.uniform(center_key, (2,))
  inside = [jnp.abs((jnp.arange(n) + 0.5) / n - middle) < half for n, middle in zip(size, center, strict=True)]
  return 1.0 - (inside[0][:, None] & inside[1]).astype(jnp.float32)


def _with_neighbor(x: Float[ArrayLike, '...'], own: Float[Array, '...']) -> Float[Array, '...']:
  """Return own · x + (1 - own) · partner's x, for x (2P, …) and own (P, …) of each pair."""
  pairs = x.reshape(-1, 2, *x.shape[1:])
  return (own[:, None] * pairs + (1.0 - own[:, None]) * pairs[:, ::-1]).reshape(x.shape)
