"""Mixup and CutMix: pairs of images and their labels, mixed on the device.

An example's partner is its neighbour, 2i and 2i + 1 of the global batch. The stream is shuffled globally, so that is a
random one, and it is on the same device: nothing is sent, and what is mixed with what depends on no number of devices.
"""
import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from vit_jax.objectives import losses

# Not among the numbers, from 0 on, by which a model's layers derive their keys from the examples'.
_STREAM = 0x6D6978


def build(num_classes, *, mixup: float = 0.0, cutmix: float = 0.0):
  """Builds the mixing of a training batch.

  Args:
    num_classes: width of the mixed labels.
    mixup: α of mixup (arXiv 1710.09412): an image is λ of itself and 1 - λ of its partner, λ ~ Beta(α, α), the larger
      of λ and 1 - λ (as big_vision; each image stays the larger part of its own mixture). 0 mixes no images so.
    cutmix: α of CutMix (arXiv 1905.04899): a rectangle of 1 - λ of the area around a uniform centre, cut off at the edges,
      comes from the partner, λ ~ Beta(α, α). 0 mixes no images so. With both, each pair takes either with probability 0.5.

  Returns:
    None where nothing is mixed, else mix(batch, keys) → batch: image (B, rows, columns, channels) float32, B even; label
    (B, num_classes) float32, each row the convex combination of its pair's labels by what part of the image is whose.
    keys are one for each example; a pair's first decides.
  """
  for name, alpha in dict(mixup=mixup, cutmix=cutmix).items():
    if not 0.0 <= alpha < float('inf'):
      raise ValueError(f'mix.{name} is a concentration, at least 0 (0 is off), got {alpha}')
  if not mixup and not cutmix:
    return None

  def own_part(key, size):
    """What part of each pixel stays an image's own, (rows, columns) or (1, 1)."""
    mixup_key, cutmix_key, choice_key = jax.random.split(key, 3)
    parts = [_mixup_part(mixup_key, mixup)] if mixup else []
    parts += [_cutmix_part(cutmix_key, cutmix, size)] if cutmix else []
    return parts[0] if len(parts) == 1 else jnp.where(jax.random.bernoulli(choice_key), *parts)

  def mix(batch, keys):
    size = batch['image'].shape[1:3]
    own = jax.vmap(lambda key: own_part(jax.random.fold_in(key, _STREAM), size))(keys[::2])
    share = own.mean(axis=(1, 2))  # of what was really pasted, not of what was drawn
    return dict(batch, image=_with_neighbour(batch['image'], own[..., None]),
                label=_with_neighbour(losses.hot(batch['label'], num_classes), share[:, None]))

  return mix


def check_pairs(batch_size, shares, accumulate):
  """Raises ValueError unless each of `accumulate` equal micro-batches of each of `shares` equal shares holds pairs only."""
  share = batch_size // shares
  held = share // accumulate
  if held % 2 == 0:
    return
  fix = (f'train.micro_batch={2 * held}' if share % 2 == 0 else f'data.batch_size={batch_size + shares}')
  raise ValueError(f'mix pairs neighbours, so each of the {shares} shares of data.batch_size={batch_size} (one for each device '
                   'or, on a mesh, for each parallel.tensor devices) needs an even number of images in a micro-batch; it has '
                   f'{held} of {share}. The nearest that fits: --config.{fix}')


def _beta(key, alpha):
  """A number of Beta(α, α), by its quantiles, 4,096 of them exact and linear in between.

  `jax.random.beta` rejects in a loop until all examples are done: where a batch is spread by jit, each turn waits for all
  devices.
  """
  quantiles = jnp.asarray(special.betaincinv(alpha, alpha, np.linspace(0, 1, 4097)), jnp.float32)
  place = 4096 * jax.random.uniform(key)
  left = place.astype(jnp.int32)  # 0..4095
  return quantiles[left] + (place - left) * (quantiles[left + 1] - quantiles[left])


def _mixup_part(key, alpha):
  """(1, 1)."""
  share = _beta(key, alpha)
  return jnp.maximum(share, 1.0 - share).reshape(1, 1)


def _cutmix_part(key, alpha, size):
  """(rows, columns) of 1, and 0 in the rectangle."""
  share_key, centre_key = jax.random.split(key)
  half = jnp.sqrt(1.0 - _beta(share_key, alpha)) / 2
  centre = jax.random.uniform(centre_key, (2,))
  inside = [jnp.abs((jnp.arange(n) + 0.5) / n - middle) < half for n, middle in zip(size, centre)]
  return 1.0 - (inside[0][:, None] & inside[1]).astype(jnp.float32)


def _with_neighbour(x, own):
  """own · x + (1 - own) · partner's x, for x (2P, …) and own (P, …) of each pair."""
  pairs = x.reshape(-1, 2, *x.shape[1:])
  return (own[:, None] * pairs + (1.0 - own[:, None]) * pairs[:, ::-1]).reshape(x.shape)
