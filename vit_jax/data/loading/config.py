"""Section `data` of a recipe."""
import dataclasses
import os

from vit_jax.base.choices import choose
from vit_jax.base.errors import UserError
from vit_jax.base.files import expand, is_remote
from vit_jax.base.sections import off
from vit_jax.data.loading import replaced
from vit_jax.data.sources import registry
from vit_jax.data.transforms import spec

_MOST_MAKERS = 1_024  # threads or workers: more than any host has cores


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """The data of a run.

  Attributes:
    name: 'digits', 'folder:PATH' for your own images, 'npz:PATH' for arrays, 'objectnet:PATH', or the name of a TFDS
      dataset.
    batch_size: global batch, over all processes and devices.
    image_size: (rows, columns) of the images the model sees, in pixels.
    train_split: split string to train on, such as 'train[:90%]'.
    train_transform: see `data.transforms.spec.parse`.
    eval_transform: the same for evaluation.
    data_dir: TFDS data directory, local or gs://; None is TFDS's own default. A relative PATH in `name` starts here.
    cache: whether to keep the decoded splits in memory.
    threads: threads that decode and augment.
    channels: 1 (grayscale) or 3 (color); None is what the dataset stores, and 3 for a folder.
    corrupt: what to do about an image that cannot be decoded: 'error' stops the run at it; 'skip' decodes every split
      once before the run and leaves such images out, with a warning that names them.
    workers: processes that decode and augment instead of threads; 0 uses threads. Threads share Python's lock for about
      40 microseconds per image, so a host with more than about 20 cores needs workers; with fewer, threads are a little
      faster. A worker takes 65 MiB of memory over files, 85 MiB over a TFDS dataset (measured on Linux, x86-64), plus
      the pixels of 16 examples and the source's list of files. Arrays of npz:PATH stay in this process and need
      threads.
    repeats: how often each example is in its batch, augmented differently each time; divides batch_size.
    exclude: exclusion list written by `python -m vit_jax.audit`: records that training leaves out. Evaluation, also on
      the training split, sees all records, so that its metrics stay comparable.
    fingerprint: what a run remembers of its training images, so that it does not resume on others of the same names:
      'stat' is the size of each file, and its time of the last change, which alone is only worth a warning; 'content'
      a hash of each image, for which every start reads all of them; 'names' nothing more, which accepts any.
  """
  name: str
  batch_size: int
  image_size: tuple[int, int]
  train_split: str = 'train'
  train_transform: str = 'inception_crop|flip'
  eval_transform: str = 'resize'
  data_dir: str | None = None
  cache: bool = False
  threads: int = 2
  channels: int | None = None
  corrupt: str = 'error'
  workers: int = 0
  repeats: int = 1
  exclude: str | None = off('')
  fingerprint: str = 'stat'

  def __post_init__(self):
    for name, least in dict(batch_size=1, threads=0, workers=0, repeats=1).items():
      if getattr(self, name) < least:
        raise UserError(f'data.{name}: must be at least {least}, got {getattr(self, name)}')
    for name in ('threads', 'workers'):
      if getattr(self, name) > _MOST_MAKERS:
        raise UserError(f'data.{name}: must be at most {_MOST_MAKERS:,}, got {getattr(self, name):,}')
    if self.batch_size % self.repeats:
      raise UserError(f'data.batch_size: must be a multiple of data.repeats={self.repeats}, got {self.batch_size}')
    for reason, holds in {
        'data.cache keeps decoded images in this process, which workers cannot read': self.cache,
        'npz: arrays are in the memory of this process, and every worker would get a copy of them':
            self.name.startswith('npz:')}.items():
      if self.workers and holds:
        raise UserError(f'data.workers: {reason}; set data.workers=0 and let data.threads make the batches')
    choose({'error': True, 'skip': True}, self.corrupt, 'data.corrupt')
    choose(dict.fromkeys(replaced.KINDS), self.fingerprint, 'data.fingerprint')
    if self.channels not in (None, 1, 3):
      raise UserError(f'data.channels: unknown {self.channels!r}; choose from [None, 1, 3]')
    for transform in (self.train_transform, self.eval_transform):
      spec.parse(transform, self.image_size)  # a bad one is an error here, not at the first batch

  def anchored(self) -> 'DataConfig':
    """Return the config with relative paths made absolute, so that it can be read from another directory."""
    exclude = self.exclude if self.exclude is None or is_remote(self.exclude) else os.fspath(expand(self.exclude))
    return dataclasses.replace(self, data_dir=registry.data_dir_of(self.name, self.data_dir), exclude=exclude)
