"""The data of a run: one named dataset, its training batches and its evaluation passes."""
from collections.abc import Sequence
import copy
import functools

from vit_jax.base.errors import UserError
from vit_jax.base.text import count
from vit_jax.data.loading import corrupt, loader
from vit_jax.data.loading.config import DataConfig
from vit_jax.data.loading.loader import Loader
from vit_jax.data.sources import exclude, registry
from vit_jax.data.sources.base import Source
from vit_jax.data.sources.info import DatasetInfo


class Dataset:
  """The splits of a run's dataset, as batches.

  Args:
    config: section `data`.
    seed: 0..2**32 - 1; determines order and augmentation.
    process_index: 0..process_count - 1.
    process_count: processes that split each global batch.

  Attributes:
    config: the section.
    source: the training split, without the records that the config leaves out.
    image_size: (rows, columns) of the images in batches.

  Raises:
    UserError: the dataset or split does not exist or is not prepared, or nothing of it is left to train on.
  """

  def __init__(self, config: DataConfig, seed: int, process_index: int = 0, process_count: int = 1):
    self.config, self.image_size = config, config.image_size
    self._seed, self._process_index, self._process_count = seed, process_index, process_count
    # Evaluators may share a split, and a search for corrupt images is slow.
    self._open = functools.cache(self._open_split)
    self.source = self._open(config.train_split, config.exclude)
    self._train_loader: Loader | None = None

  def _open_split(self, split: str, exclusion_list: str | None) -> Source:
    """Open a split; the exclusion list comes first, as it usually names what is corrupt."""
    source = registry.open_source(self.config.name, split, self.config.data_dir)
    if exclusion_list is not None:
      source = exclude.without_excluded(source, exclusion_list)
    if self.config.channels is not None:
      source = source.decoded_to(self.config.channels)
    return corrupt.without_corrupt(source, self.config.threads) if self.config.corrupt == 'skip' else source

  @property
  def examples_per_epoch(self) -> int:
    """Examples per epoch, counting repeats."""
    return len(self.source) * self.config.repeats

  def train_batches(self) -> Loader:
    """Return the endless stream of training batches, always the same loader; see `loader.train_batches`."""
    if self._train_loader is None:
      config = self.config
      self._train_loader = loader.train_batches(
          self.source, batch_size=config.batch_size, image_size=self.image_size, transform=config.train_transform,
          seed=self._seed, cache=config.cache, repeats=config.repeats, threads=config.threads, workers=config.workers,
          process_index=self._process_index, process_count=self._process_count)
    return self._train_loader

  def eval_batches(self, split: str, batch_size: int) -> Loader:
    """Return one pass over a split; see `loader.eval_batches`.

    Args:
      split: split string, such as 'test'.
      batch_size: examples per global batch, over all processes.

    Raises:
      UserError: the split has other channels, or another number or kind of labels, than the training split.
    """
    return self.batches_of(self.eval_source(split), batch_size)

  def eval_source(self, split: str) -> Source:
    """Return a split as `eval_batches` reads it, with all its records; errors as there."""
    source = self._open(split, None)
    expected, got = _model_needs(self.source.info), _model_needs(source.info)
    if got != expected:
      raise UserError(f'evaluators: split {split} of {source.name} does not fit the model: expected {expected}, as in '
                      f'{self.source.split}, which the model is built for; got {got}. --config.data.channels=1 or 3 '
                      'decodes all splits alike; classes are as the dataset stores them')
    return source

  def eval_train_split(self, batch_size: int) -> Loader:
    """Return one pass over the training split, without what training leaves out, with the evaluation transform."""
    return self.batches_of(self.source, batch_size)

  def batches_of(self, source: Source, batch_size: int) -> Loader:
    """Return one pass over a source, such as a changed `eval_source`, with the evaluation transform."""
    config = self.config
    return loader.eval_batches(
        source, batch_size=batch_size, image_size=self.image_size, transform=config.eval_transform, cache=config.cache,
        threads=config.threads, workers=config.workers, process_index=self._process_index,
        process_count=self._process_count)

  def restricted_to(self, indices: Sequence[int]) -> 'Dataset':
    """Return the dataset with only these examples of the training split, in this order; ids count from 0 again."""
    restricted = copy.copy(self)
    restricted.source, restricted._train_loader = self.source.keep(indices), None
    return restricted

  def of(self, config: DataConfig) -> 'Dataset':
    """Return the dataset of another section `data`, for the same process and seed; errors as of the class."""
    return Dataset(config, self._seed, self._process_index, self._process_count)

  def describe_loading(self) -> str:
    """Return how many threads or workers make batches, how many batches ahead, and the memory these take."""
    batches, workers, threads = self.train_batches(), self.config.workers, self.config.threads
    makers = count(workers, 'worker process', 'worker processes') if workers else count(threads, 'thread')
    return f'{makers}, {batches.batches_ahead} batches ahead ({batches.bytes_ahead / 2 ** 20:,.1f} MiB)'


def _model_needs(info: DatasetInfo) -> str:
  """Return what an evaluation split must have in common with the training split, in words."""
  kind = 'any number of classes per image' if info.multi_label else 'one class per image'
  return f'channels={info.channels} and {info.num_classes} classes, {kind}'
