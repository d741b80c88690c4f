"""The data of a run: one named dataset, its training stream and its evaluation passes."""
import functools

from vit_jax.base.errors import UserError
from vit_jax.base.text import count
from vit_jax.data.loading import corrupt
from vit_jax.data.loading import pipeline
from vit_jax.data.loading.config import DataConfig
from vit_jax.data.sources import exclude
from vit_jax.data.sources import registry
from vit_jax.data.sources.base import Source
from vit_jax.data.sources.info import Facts


class Dataset:
  """The splits of a run's dataset, as batches.

  Args:
    config: section `data`.
    seed: 0..2**32 - 1; decides order and augmentation.
    process_index: index of this process.
    process_count: processes that split each global batch.

  Attributes:
    source: the training split, without what the config leaves out.
    image_size: (rows, columns) of the images in batches.

  Raises:
    UserError: the dataset or split does not exist, is not prepared, or has nothing left to train on.
  """

  def __init__(self, config: DataConfig, seed: int, process_index: int = 0, process_count: int = 1):
    self._config, self._seed = config, seed
    self._common = dict(image_size=config.image_size, cache=config.cache, threads=config.threads, workers=config.workers,
                        process_index=process_index, process_count=process_count)
    self._open = functools.cache(self._open_split)  # evaluators may share a split, and a search for corrupt images is slow
    self.image_size = config.image_size
    self.source = self._open(config.train_split, config.exclude)

  def _open_split(self, split: str, exclusion_list: str | None) -> Source:
    """Open a split; the exclusion list comes first, as it usually names what is corrupt."""
    source = registry.open_source(self._config.name, split, self._config.data_dir)
    if exclusion_list is not None:
      source = exclude.without_excluded(source, exclusion_list)
    if self._config.channels is not None:
      source = source.decoded_to(self._config.channels)
    return corrupt.without_corrupt(source, self._config.threads) if self._config.corrupt == 'skip' else source

  @property
  def examples_per_epoch(self) -> int:
    """Examples per epoch, counting repeats."""
    return len(self.source) * self._config.repeats

  @functools.cached_property
  def _train_batches(self) -> pipeline.Batches:
    return pipeline.train_batches(self.source, batch_size=self._config.batch_size, transform=self._config.train_transform,
                                  seed=self._seed, repeats=self._config.repeats, **self._common)

  def train_batches(self) -> pipeline.Batches:
    """Return the endless stream of training batches; see `pipeline.train_batches`."""
    return self._train_batches

  def describe_loading(self) -> str:
    """Return how many threads or workers make batches, how many batches ahead, and the memory these take."""
    batches, workers = self._train_batches, self._config.workers
    makers = count(workers, 'worker process', 'worker processes') if workers else count(self._config.threads, 'thread')
    return f'{makers}, {batches.ahead} batches ahead ({batches.bytes_ahead / 2 ** 20:,.1f} MiB)'

  def eval_batches(self, split: str, batch_size: int) -> pipeline.Batches:
    """Return one pass over a split; see `pipeline.eval_batches`.

    Raises:
      UserError: the split has other channels, or another number or kind of labels, than the training split.
    """
    source = self._open(split, None)
    expected, got = _fits_model(self.source.facts), _fits_model(source.facts)
    if got != expected:
      raise UserError(f'the split to evaluate, {split} of {source.name}, must fit the model, which is built for '
                      f'{self.source.split} with {expected}; got {got}. --config.data.channels=1 or 3 decodes all '
                      'splits alike; classes are as the data set stores them')
    return pipeline.eval_batches(source, batch_size=batch_size, transform=self._config.eval_transform, **self._common)


def _fits_model(facts: Facts) -> str:
  """Return what an evaluation split must have in common with the training split, in words."""
  kind = 'any number of classes an image' if facts.many_labels else 'one class an image'
  return f'channels={facts.channels} and {facts.num_classes} classes, {kind}'
