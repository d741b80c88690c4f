"""The data of a run: one named data set, its training stream and its evaluation passes."""
import functools

from vit_jax.data.loading import corrupt as corrupt_lib
from vit_jax.data.sources import exclude as exclude_lib
from vit_jax.data.loading import pipeline
from vit_jax.data.sources import registry as sources
from vit_jax.data.transforms import spec


class Dataset:
  """Opens a data set's splits and makes batches of them.

  Args:
    seed: of order and augmentation.
    process_index: which host this is.
    process_count: how many hosts share each batch.
    name: 'digits', 'folder:PATH' for your own images, 'npz:PATH' for arrays, or the name of a TFDS data set.
    batch_size: global batch, over all hosts and devices.
    image_size: rows and columns of the images the model sees, in pixels.
    train_split: split string to train on, such as 'train[:90%]'.
    train_transform: see `spec.parse`.
    eval_transform: likewise, for evaluation.
    data_dir: TFDS data directory, local or gs://; None is TFDS's own default. A relative PATH of name starts here.
    cache: whether to keep the decoded splits in memory.
    threads: threads that decode and augment.
    workers: processes that do it instead; 0 leaves it to the threads. Threads take turns for Python's own 40 microseconds
      of each image, so beyond some 20 cores a host needs workers; below, threads are a little faster. A worker is
      resident with 65 MiB over files, 85 MiB over a TFDS data set (measured on Linux, x86-64), and takes the pixels of 16
      examples and the source's list of files; the batches made ahead come on top, once (see `describe_feeding`). Arrays
      of npz:PATH lie in this process and are left to the threads.
    repeats: how often each example drawn is in its batch, each time augmented anew; divides batch_size.
    channels: 1 (greyscale) or 3 (colour); None is what the data set stores, and 3 for a folder.
    corrupt: what an image that cannot be decoded does: 'error' stops the run at it, 'skip' decodes every split once
      before the run and leaves such images out, with a warning that names them.
    exclude: exclusion list of `python -m vit_jax.audit`: records that training leaves out. Evaluation passes, also
      over the training split, see all records: what they measure stays comparable.

  Raises:
    ValueError, FileNotFoundError: no such data set or split, not prepared, a bad transform.
  """

  def __init__(self, seed, process_index, process_count, *, name: str, batch_size: int, image_size: int | tuple,
               train_split: str = 'train', train_transform: str = 'inception_crop|flip',
               eval_transform: str = 'resize', data_dir: str | None = None, cache: bool = False, threads: int = 2,
               channels: int | None = None, corrupt: str = 'error', workers: int = 0, repeats: int = 1,
               exclude: str | None = None):
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    _require_at_least('data.threads', threads, 0)
    _require_at_least('data.workers', workers, 0)
    _require_at_least('data.repeats', repeats, 1)
    if batch_size % repeats:
      raise ValueError(f'data.batch_size must be a multiple of data.repeats, {repeats}; got {batch_size}')
    if cache and workers:
      raise ValueError('data.cache keeps decoded images in this process, where workers cannot see them: set '
                       'data.workers=0, and data.threads makes the batches')
    if workers and name.startswith('npz:'):
      raise ValueError('npz: arrays are in the memory of this process, and every worker would get a copy of all: set '
                       'data.workers=0, and data.threads makes the batches')
    for transform in (train_transform, eval_transform):
      spec.parse(transform, size)  # a bad one is an error here, not at the first batch
    _require_choice('data.corrupt', corrupt, ('error', 'skip'))
    _require_choice('data.channels', channels, (None, 1, 3))

    @functools.cache  # several evaluators may ask for one split, and looking for corrupt images takes a pass
    def open_split(split, exclude):
      source = sources.open_source(name, split, data_dir)
      source = source if exclude is None else exclude_lib.without_excluded(source, exclude)
      source = source if channels is None else source.decoded_to(channels)
      return corrupt_lib.without_corrupt(source, threads) if corrupt == 'skip' else source

    self._open = functools.partial(open_split, exclude=None)
    self._common = dict(image_size=size, cache=cache, threads=threads, workers=workers,
                        process_index=process_index, process_count=process_count)
    self._train_transform, self._eval_transform = train_transform, eval_transform
    self._seed, self._batch_size, self._repeats = seed, batch_size, repeats
    self.image_size = size
    # First the list, then a look at what is left: what is corrupt is usually listed.
    self.source = open_split(train_split, exclude=exclude)

  @property
  def examples_per_epoch(self):
    """Examples in the batches of an epoch, in which each of the split is drawn once: its copies count."""
    return len(self.source) * self._repeats

  @functools.cached_property
  def _train_batches(self):
    return pipeline.train_batches(self.source, batch_size=self._batch_size, transform=self._train_transform,
                                  seed=self._seed, repeats=self._repeats, **self._common)

  def train_batches(self):
    """The endless training stream; see `pipeline.train_batches`."""
    return self._train_batches

  def describe_feeding(self):
    """Says who makes batches, how many ahead, and the memory that takes in this process."""
    batches, kind = self._train_batches, 'worker process' if self._common['workers'] else 'thread'
    count = self._common['workers'] or self._common['threads']
    plural = '' if count == 1 else 'es' if kind.endswith('s') else 's'
    return f'{count} {kind}{plural}, {batches.ahead} batches ahead ({batches.bytes_ahead / 2 ** 20:,.1f} MiB)'

  def eval_batches(self, split, batch_size):
    """One pass over a split; see `pipeline.eval_batches`.

    Raises:
      ValueError: also where the split has other channels, or another number or kind of labels, than the one trained on.
    """
    source = self._open(split)
    expected, got = _fits_model(self.source.facts), _fits_model(source.facts)
    if got != expected:
      raise ValueError(f'the split to evaluate, {split} of {source.name}, must fit the model, which is built for '
                       f'{self.source.split} with {expected}; got {got}. --config.data.channels=1 or 3 decodes all '
                       'splits alike; classes are as the data set stores them')
    return pipeline.eval_batches(source, batch_size=batch_size, transform=self._eval_transform, **self._common)


def _fits_model(facts):
  """What an evaluation split has to share with the training split, in words."""
  kind = 'any number of classes an image' if facts.many_labels else 'one class an image'
  return f'channels={facts.channels} and {facts.num_classes} classes, {kind}'


def _require_at_least(key, value, least):
  if value < least:
    raise ValueError(f'{key} must be at least {least}, got {value}')


def _require_choice(key, value, choices):
  if value not in choices:
    raise ValueError(f'unknown {key} {value!r}; choose from {list(choices)}')
