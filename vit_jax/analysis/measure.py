"""One pass over images: what every layer and head of a model does, summed up batch by batch.

Layer 0 is what enters the first block, layer k what leaves the k-th; the stages of a ResNet count like blocks.
"""
from collections.abc import Callable, Collection
import dataclasses
import functools
from typing import Any

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from vit_jax.base.errors import UserError
from vit_jax.base.preprocessing import Normalization
from vit_jax.statistics import attention, cka, tokens

# What can be measured.
QUANTITIES = ('attention', 'norms', 'grams', 'pooled')
# Of the norms of an image's patches.
NORMS = ('low', 'median', 'high', 'largest', 'outlier_share')
_QUANTILES = (0.05, 0.5, 0.95)


@dataclasses.dataclass
class Observed:
  """What a batch of B images gave; None for what was not asked for or does not apply.

  Attributes:
    distance: mean attention distance in pixels, (depth, B, heads); see `statistics.attention`.
    entropy: of the attention weights in nats, (depth, B, heads).
    norms: NORMS of the patches of each image, (layers, B, 5): the 5 %, 50 % and 95 % quantiles, the largest, and the
      share of outliers.
    grams: products of all pairs of images, of all tokens without their mean over the batch, (layers, B, B).
    pooled: mean over the patches, (B, features) for each layer.
    class_tokens: likewise the class token; empty for a model without.
  """
  distance: np.ndarray | None
  entropy: np.ndarray | None
  norms: np.ndarray | None
  grams: np.ndarray | None
  pooled: list[np.ndarray]
  class_tokens: list[np.ndarray]


def why_no_attention(model: Any) -> str | None:
  """Return why a model has no attention weights from all tokens to all, or None if it has."""
  images = jax.ShapeDtypeStruct((1, *model.image_size, model.channels), jnp.float32)
  try:
    jax.eval_shape(lambda images: model.attention_weights(images, jnp.mean), images)
  except UserError as error:
    return str(error).removeprefix('attention_weights: ')
  return None


class Observer:
  """Measures batches with one compiled program.

  Args:
    model: loaded.
    batch_size: most images of a batch.
    quantities: some of QUANTITIES; 'attention' is left out for models without.
  """

  def __init__(self, model: Any, batch_size: int, quantities: Collection[str]):
    wanted = set(quantities)
    if 'attention' in wanted and why_no_attention(model):
      wanted.remove('attention')
    graphdef, self._params = nnx.split(model)
    normalize = Normalization(model.preprocessing.mean, model.preprocessing.std)
    self._run = jax.jit(lambda params, images: observe(nnx.merge(graphdef, params), normalize(images), wanted))
    self._size = batch_size

  def __call__(self, images: np.ndarray) -> Observed:
    """Measure (B, rows, columns, channels) uint8 images, B <= batch_size."""
    count = len(images)
    padded = np.concatenate([images, np.repeat(images[-1:], self._size - count, axis=0)])
    layers, heads = jax.device_get(self._run(self._params, padded))
    stacked = lambda name: np.stack([layer[name][:count] for layer in layers]) if name in layers[0] else None
    apart = lambda name: [layer[name][:count] for layer in layers] if name in layers[0] else []
    grams = stacked('gram')
    of_heads = lambda name: None if heads is None else heads[name][:, :count]
    return Observed(of_heads('distance'), of_heads('entropy'), stacked('norms'),
                    None if grams is None else grams[:, :, :count], apart('pooled'), apart('class_token'))


def observe(model: Any, images: Array, wanted: Collection[str]) -> tuple[list[dict[str, Array]], Any]:
  """Return what is wanted of each layer, and of the heads of all blocks; for compilation.

  Args:
    model: any model.
    images: floats, already normalized.
    wanted: some of QUANTITIES.
  """
  config = model.config
  read = functools.partial(_read_layer, prefix=getattr(config, 'num_prefix_tokens', 0),
                           class_token=getattr(config, 'class_token', False), wanted=wanted)
  if not hasattr(model, 'encoder'):
    return [read(model.features(images, layer)) for layer in range(model.num_layers + 1)], None
  shared = model.encoder.shared()

  def read_block(block: Any, x: Array) -> tuple[dict[str, Array], Any]:
    weights = block.attention_weights(x, **shared) if 'attention' in wanted else None
    return read(x), None if weights is None else _read_heads(weights, config)

  last, (layers, heads) = model.encoder.collect(model.tokens(images), read_block)
  before = [{name: values[number] for name, values in layers.items()} for number in range(model.num_layers)]
  return [*before, read(last)], heads


def _read_heads(weights: Array, config: Any) -> dict[str, Array]:
  """Return statistics of the weights of a block, (B, heads)."""
  return dict(distance=attention.mean_distance(weights, config.grid, config.patch_pixels, config.num_prefix_tokens),
              entropy=attention.entropy(weights))


def _read_layer(x: Array, prefix: int, class_token: bool, wanted: Collection[str]) -> dict[str, Array]:
  """Return statistics of the tokens of a layer (B, tokens, width), an axis of images first."""
  x = x.astype(jnp.float32)
  patches, found = x[:, prefix:], {}
  if 'norms' in wanted:
    norms = tokens.norms(patches)
    low, median, high = jnp.quantile(norms, jnp.asarray(_QUANTILES), axis=-1)
    found['norms'] = jnp.stack([low, median, high, norms.max(axis=-1), tokens.outlier_share(norms)], axis=-1)
  if 'grams' in wanted:
    flat = x.reshape(len(x), -1)
    flat -= flat.mean(axis=0)
    found['gram'] = jnp.matmul(flat, flat.T, precision=jax.lax.Precision.HIGHEST)
  if 'pooled' in wanted:
    found['pooled'] = patches.mean(axis=1)
    if class_token:
      found['class_token'] = x[:, 0]
  return found


@dataclasses.dataclass
class Measurements:
  """What all images gave; None or empty for what was not asked for or does not apply.

  Attributes:
    distance: (depth, heads), the mean over the images; likewise entropy.
    norms: (layers, 5), the mean over the images of NORMS.
    pooled, class_tokens: (images, features) for each layer.
  """
  distance: np.ndarray | None
  entropy: np.ndarray | None
  norms: np.ndarray | None
  pooled: list[np.ndarray]
  class_tokens: list[np.ndarray]


class Collector:
  """Sums up batches; only features for the linear probe grow with the number of images."""

  def __init__(self):
    self._sums: dict[str, np.ndarray] = {}
    self._features: dict[str, list[list[np.ndarray]]] = {'pooled': [], 'class_tokens': []}
    self._images = 0

  def add(self, observed: Observed, count: int) -> None:
    """Add a batch of `count` images."""
    self._images += count
    for name in ('distance', 'entropy', 'norms'):
      values = getattr(observed, name)
      if values is not None:
        self._sums[name] = self._sums.get(name, 0) + values.sum(axis=1, dtype=np.float64)
    for name, batches in self._features.items():
      batches.append(getattr(observed, name))

  def result(self) -> Measurements:
    """Return the means over all images, and the features of all."""
    mean = lambda name: self._sums[name] / self._images if name in self._sums else None
    joined = lambda name: [np.concatenate(layer) for layer in zip(*self._features[name], strict=True)]
    return Measurements(mean('distance'), mean('entropy'), mean('norms'), joined('pooled'), joined('class_tokens'))


def measure(models: list[Any], batches: Any, batch_size: int, quantities: Collection[str],
            progress: Callable[[int], Any] = lambda images: None) -> tuple[
                list[Measurements], list[np.ndarray], list[str]]:
  """Measure models on the same images.

  Args:
    models: one, or two that are also compared.
    batches: `inputs.Batch`es.
    batch_size: most images of a batch.
    quantities: some of QUANTITIES.
    progress: called with the number of images after each batch.

  Returns:
    Of each model; CKA between the layers of each model and, if there are two, from the first to the second, (layers,
    layers) each, none of them if no batch had 4 images; the paths of the images.
  """
  observers = [Observer(model, batch_size, quantities) for model in models]
  collectors = [Collector() for _ in models]
  similar, paths = [cka.Minibatch() for _ in range(3 if len(models) == 2 else 1)], []
  for batch in batches:
    observed = [observer(pixels) for observer, pixels in zip(observers, batch.pixels, strict=True)]
    for collector, found in zip(collectors, observed, strict=True):
      collector.add(found, len(batch.paths))
    grams = [found.grams for found in observed if found.grams is not None]
    if grams and len(batch.paths) >= cka.FEWEST:
      for sums, pair in zip(similar, [(grams[0],), (grams[-1],), (grams[0], grams[-1])], strict=False):
        sums.add(*pair)
    paths += batch.paths
    progress(len(batch.paths))
  return [collector.result() for collector in collectors], [sums.result() for sums in similar if sums.batches], paths
