"""Probe a model on a dataset: features of both splits, all methods, a classifier to keep."""
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import sys
import time
from typing import Any

from flax import nnx
import jax
import numpy as np

from vit_jax.base import files, sections
from vit_jax.base.errors import UserError
from vit_jax.base.files import PathLike
from vit_jax.base.preprocessing import Normalization
from vit_jax.base.text import count, printable
from vit_jax.data.loading.config import DataConfig
from vit_jax.data.loading.dataset import Dataset
from vit_jax.data.loading.loader import Loader
from vit_jax.data.sources.base import Source
from vit_jax.distributed import strategy as strategy_lib
from vit_jax.distributed.strategy import ParallelConfig
from vit_jax.evaluators.frozen import cache as cache_lib
from vit_jax.evaluators.frozen.cache import FeatureCache
from vit_jax.evaluators.frozen.features import FeaturePass, Features
from vit_jax.pretrained import load
from vit_jax.pretrained.adapt import Adaptation, adapt
from vit_jax.pretrained.formats.weights import Weights, abstract_model, with_fields
from vit_jax.probing import data as data_lib
from vit_jax.probing import head as head_lib
from vit_jax.probing import methods as methods_lib
from vit_jax.probing.data import Splits
from vit_jax.probing.methods import Options, Results

_SECONDS_PER_LINE = 10.0


@dataclasses.dataclass(frozen=True)
class Settings:
  """How to probe.

  Attributes:
    methods: names of `methods.METHODS`.
    options: of the methods.
    test_split: split to be tested on; None: see `data.choose_splits`.
    batch_size: images that a device sees at once.
    dtype: of activations; None: that of the weights' config.
    cache_dir: folder of features; None: that of `FeatureCache.default`.
    output: directory to write the linear probe to; None writes none.
  """
  methods: Sequence[str] = tuple(methods_lib.METHODS)
  options: Options = Options()
  test_split: str | None = None
  batch_size: int = 32
  dtype: str | None = None
  cache_dir: PathLike | None = None
  output: PathLike | None = None

  def __post_init__(self):
    if self.batch_size < 1:
      raise UserError(f'--batch_size: must be at least 1, got {self.batch_size}')
    if unknown := [name for name in self.methods if name not in methods_lib.METHODS] or not self.methods:
      raise UserError(f'--methods: expected some of {",".join(methods_lib.METHODS)}, got {unknown or "none"}')
    if self.output is not None and 'linear_probe' not in self.methods:
      raise UserError(f'--output: what is written is the linear probe; add linear_probe to --methods, got '
                      f'{",".join(self.methods)}')


def probe(source: PathLike, data: Mapping[str, Any], settings: Settings, **options: Any) -> Results:
  """Measure what a model's frozen features are worth on a dataset; progress is printed to standard error.

  Images are prepared as the weights say, and read with as many channels as the model takes.

  Args:
    source: of the weights, see `load.read`.
    data: keys of section `data`, at least `name`.
    settings: how to probe.
    **options: ema, step, trained_at and class_names, see `load.read`.

  Raises:
    UserError: weights that cannot be read, no such dataset or split, images with any number of classes, or what a
      method or the output does not allow.
  """
  keys = data_lib.read_keys(data)
  splits = data_lib.choose_splits(keys, settings.test_split)
  weights = _read(source, keys, settings, options)
  dataset = _open(keys, splits, weights, settings)
  if settings.output is not None:
    head_lib.check_can_save(weights, dataset.source.class_names, _num_features(weights), settings.output)
  _say(*([splits.note] if splits.note else []), _describe(dataset, splits, weights))
  train, test = _features(weights, dataset, splits, settings)
  results = methods_lib.measure(settings.methods, train, test, settings.options)
  if settings.output is not None and results.probe is not None and jax.process_index() == 0:
    _say(*head_lib.save_probe(weights, results.probe.head, dataset.source.class_names, settings.output))
  return results


def _read(source: PathLike, keys: Mapping[str, Any], settings: Settings, options: Mapping[str, Any]) -> Weights:
  """Return the weights, adapted to the image size and channels that section `data` gives."""
  weights = load.read(source, image_size=keys.get('image_size'), **options)
  load.log_notes(weights, source)
  weights, lines = adapt(weights, Adaptation(keys.get('image_size'), channels=keys.get('channels')))
  _say(*lines)
  if settings.dtype is not None:
    weights = dataclasses.replace(weights, config=with_fields(weights.config, dict(dtype=settings.dtype)))
  if transform := keys.get('eval_transform'):
    preprocessing = dataclasses.replace(weights.preprocessing, transform=transform)
    weights = dataclasses.replace(weights, preprocessing=preprocessing)
  return weights


def _open(keys: Mapping[str, Any], splits: Splits, weights: Weights, settings: Settings) -> Dataset:
  """Open the data, checked; its training split is what is learned from."""
  model, preprocessing = weights.config, weights.preprocessing
  config = sections.read(DataConfig, {
      **keys, 'image_size': model.image_size, 'channels': model.channels, 'eval_transform': preprocessing.transform,
      'train_split': splits.train, 'batch_size': settings.batch_size * jax.device_count()}, 'data').anchored()
  Normalization(preprocessing.mean, preprocessing.std).check_channels(model.channels)
  dataset = Dataset(config, 0, jax.process_index(), jax.process_count())
  if dataset.source.multi_label:
    raise UserError(f'data.name: {config.name} has any number of classes per image; a probe needs exactly one')
  dataset.eval_source(splits.test)
  return dataset


def _features(weights: Weights, dataset: Dataset, splits: Splits, settings: Settings) -> tuple[Features, Features]:
  """Return the features of both splits, from the cache or computed."""
  cache = FeatureCache.default() if settings.cache_dir is None else FeatureCache(files.local(settings.cache_dir))
  strategy = strategy_lib.build(ParallelConfig())
  normalize = Normalization(weights.preprocessing.mean, weights.preprocessing.std)
  feature_pass = FeaturePass(_merge(weights), normalize, strategy)
  place = functools.cache(lambda: strategy.place(weights.params))  # only if there is something to compute

  def of(source: Source, batches: Loader) -> Features:
    compute = lambda: feature_pass(place(), batches, source.num_classes, _Progress(source))
    digits = cache_lib.fingerprint(weights.config, weights.params, weights.preprocessing, source,
                                   dataset.config.data_dir)
    features, cached = cache.get(digits, source, compute)
    if cached:
      _say(f'features of {source.split}: {len(source):,} images, read from {cache.folder}')
    return features

  batch_size = dataset.config.batch_size
  return (of(dataset.source, dataset.eval_train_split(batch_size)),
          of(dataset.eval_source(splits.test), dataset.eval_batches(splits.test, batch_size)))


def _merge(weights: Weights) -> Callable[[Any], Any]:
  """Return params → model."""
  graphdef, _ = nnx.split(abstract_model(weights.config), nnx.Param)
  return lambda params: nnx.merge(graphdef, params)


def _num_features(weights: Weights) -> int:
  """Return the length of the embedding."""
  images = jax.ShapeDtypeStruct((1, *weights.config.image_size, weights.config.channels), np.float32)
  embed = lambda params, images: _merge(weights)(params).embed(images)
  return jax.eval_shape(embed, weights.params, images).shape[-1]


class _Progress:
  """Prints how far a pass over a split is, every few seconds and at its end."""

  def __init__(self, source: Source):
    self._split, self._count = source.split, len(source)
    self._start = self._last = time.monotonic()

  def __call__(self, done: int) -> None:
    """Take note of the number of images done so far."""
    now = time.monotonic()
    if done == self._count or now - self._last >= _SECONDS_PER_LINE:
      self._last = now
      rate = done / max(now - self._start, 1e-9)
      _say(f'features of {self._split}: {done:,} of {self._count:,} images, {rate:,.0f} per second')


def _describe(dataset: Dataset, splits: Splits, weights: Weights) -> str:
  rows, columns = weights.config.image_size
  source, test = dataset.source, dataset.eval_source(splits.test)
  return (f'{source.name}: {count(source.num_classes, "class", "classes")}, {len(source):,} images of {source.split} '
          f'to learn from, {len(test):,} of {test.split} to test; {rows} × {columns} pixels, '
          f'in {"gray" if source.channels == 1 else "color"}, prepared by '
          f'{weights.preprocessing.transform!r}')


def _say(*lines: str) -> None:
  """Print lines to standard error, once however many processes probe."""
  if lines and jax.process_index() == 0:
    print(printable('\n'.join(lines)), file=sys.stderr, flush=True)
