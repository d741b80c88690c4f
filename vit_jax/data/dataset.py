"""The data of a run: one named data set, its training stream and its evaluation passes."""
import functools

from vit_jax.data import corrupt as corrupt_lib
from vit_jax.data import exclude as exclude_lib
from vit_jax.data import pipeline
from vit_jax.data import sources
from vit_jax.data import spec


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
    channels: 1 (greyscale) or 3 (colour); None is what the data set stores, and 3 for a folder.
    corrupt: what an image that cannot be decoded does: 'error' stops the run at it, 'skip' decodes every split once
      before the run and leaves such images out, with a warning that names them.
    exclude: exclusion list of `python -m vit_jax.data.audit`: records that training leaves out. Evaluation passes, also
      over the training split, see all records: what they measure stays comparable.

  Raises:
    ValueError, FileNotFoundError: no such data set or split, not prepared, a bad transform.
  """

  def __init__(self, seed, process_index, process_count, *, name: str, batch_size: int, image_size: int | tuple,
               train_split: str = 'train', train_transform: str = 'inception_crop|flip',
               eval_transform: str = 'resize', data_dir: str | None = None, cache: bool = False, threads: int = 2,
               channels: int | None = None, corrupt: str = 'error', exclude: str | None = None):
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if threads < 0:
      raise ValueError(f'data.threads must be at least 0, got {threads}')
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
    self._common = dict(image_size=size, cache=cache, threads=threads, process_index=process_index,
                        process_count=process_count)
    self._train_transform, self._eval_transform = train_transform, eval_transform
    self._seed, self._batch_size = seed, batch_size
    self.image_size = size
    # First the list, then a look at what is left: what is corrupt is usually listed.
    self.source = open_split(train_split, exclude=exclude)

  def train_batches(self):
    """The endless training stream; see `pipeline.train_batches`."""
    return pipeline.train_batches(self.source, batch_size=self._batch_size, transform=self._train_transform,
                                  seed=self._seed, **self._common)

  def eval_batches(self, split, batch_size):
    """One pass over a split; see `pipeline.eval_batches`."""
    return pipeline.eval_batches(self._open(split), batch_size=batch_size, transform=self._eval_transform,
                                 **self._common)


def _require_choice(key, value, choices):
  if value not in choices:
    raise ValueError(f'unknown {key} {value!r}; choose from {list(choices)}')
