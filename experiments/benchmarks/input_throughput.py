"""Images per second of the input pipeline, by stage, source, threads and workers; and of tf.data, if it is installed.

    python -m experiments.benchmarks.input_throughput --data=PHOTOS --rounds=5          # a table
    python -m experiments.benchmarks.input_throughput --data=PHOTOS --json              # one JSON object per line

PHOTOS is any folder that holds JPEGs, in class folders or not. Every contender runs in its own process, on the same
images, and all take turns in each round, so that other load on the machine affects them equally. Images per CPU second
count the CPU time of worker processes too; wall-clock rates are meaningful on an otherwise idle machine only.
`benchmarks/input.md` has the measured tables.
"""
import argparse
from collections.abc import Callable, Iterator, Sequence
import contextlib
import io
import json
import pathlib
import statistics
import sys
import tempfile
from typing import Any

import numpy as np

from experiments.benchmarks import tensorflow_input
from experiments.benchmarks.tensorflow_input import SIZE
from experiments.benchmarks.turns import Build, Server
from vit_jax.base.errors import UserError
from vit_jax.base.files import PathLike, local
from vit_jax.data.images import decode
from vit_jax.data.loading import loader
from vit_jax.data.sources import registry as sources
from vit_jax.data.sources.base import Source
from vit_jax.data.transforms.spec import parse

TRANSFORM = 'inception_crop|flip'
TF = 'tf.data'

Key = tuple[str, str]  # (stage, contender)


class Files:
  """Records that are read from files when accessed, all of one class."""

  def __init__(self, paths: Sequence[str]):
    self._paths = paths

  def __len__(self) -> int:
    return len(self._paths)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return {'image': pathlib.Path(self._paths[index]).read_bytes(), 'label': 0}


def measure(folder: PathLike, *, rounds: int = 5, images: int = 1024, batch: int = 96, threads: Sequence[int] = (1, 2),
            workers: Sequence[int] = (2,), log: Callable[[str], None] = print) -> list[dict[str, Any]]:
  """Measure every contender.

  Args:
    folder: holds JPEGs, at any depth.
    rounds: turns of each contender; one more warms up.
    images: that a contender makes per turn, after half as many that are not counted: those are at least all that are
      made ahead between turns, at no cost.
    batch: images per batch, a multiple of 3.
    threads, workers: numbers of them to try.
    log: called with lines of progress.

  Returns:
    A list of dicts: stage, contender, cpu (images per CPU second, median), cpu_low, cpu_high, wall, wall_low,
    wall_high, and of_tf, of_tf_low, of_tf_high, the ratio of cpu to TensorFlow's in the same round, if measured.

  Raises:
    UserError: no JPEGs there, or too few images.
  """
  least = _least_images(batch, (*threads, *workers))
  if images < least:
    raise UserError(f'--images: must be at least {least}, twice what is made ahead in batches of {batch}; got {images}')
  paths = sorted(str(path) for path in local(folder).rglob('*')
                 if path.suffix.lower() in ('.jpg', '.jpeg') and path.is_file())
  if not paths:
    raise UserError(f'--data: no files .jpg or .jpeg in {folder}')
  with tempfile.TemporaryDirectory() as scratch:
    copy_to_array_record(paths, scratch)
    settings = dict(paths=paths, scratch=scratch, batch=batch)
    contenders = _contenders(threads, workers)
    servers = {key: Server(build, {**settings, **options}) for key, (build, options) in contenders.items()}
    try:
      turns = {key: [] for key in servers}
      for turn in range(rounds + 1):
        log(f'round {turn} of {rounds}' + (', warming up' if not turn else ''))
        for key, server in servers.items():
          turns[key].append(server(images))
    finally:
      for server in servers.values():
        server.close()
  return [_row(key, turns[key][1:], turns.get((key[0], TF), ())[1:]) for key in turns]


def _least_images(batch: int, sizes: Sequence[int]) -> int:
  """Return twice what any contender makes ahead: pools of these sizes, or TensorFlow's two batches and one begun."""
  return 2 * batch * max([3, *(loader.batches_ahead(size, batch) for size in sizes)])


def copy_to_array_record(paths: Sequence[str], folder: str) -> None:
  """Write a TFDS dataset `photos` in ArrayRecord format, which holds the files as they are."""
  import tensorflow_datasets as tfds

  class Photos(tfds.core.GeneratorBasedBuilder):
    """The files, all of one class."""
    VERSION, code_path = tfds.core.Version('1.0.0'), None

    def _info(self) -> Any:
      features = {'image': tfds.features.Image(), 'label': tfds.features.ClassLabel(names=['any'])}
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
      return {'train': self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
      for index, path in enumerate(paths):
        yield index, {'image': io.BytesIO(pathlib.Path(path).read_bytes()), 'label': 0}

  with contextlib.redirect_stdout(sys.stderr):
    Photos(data_dir=folder, file_format='array_record').download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False))


def _contenders(threads: Sequence[int], workers: Sequence[int]) -> dict[Key, tuple[Build, dict[str, Any]]]:
  """Return {(stage, contender): (builder, options)}."""
  found: dict[Key, tuple[Build, dict[str, Any]]] = {
      ('decode', 'whole image'): (decode_whole, {}), ('crop', 'decode, crop, resize'): (decode_crops, {}),
      ('augment', 'crop, resize, flip of decoded images'): (augment_only, {})}
  pools = [(f'{n} thread' + 's' * (n != 1), dict(threads=n)) for n in threads]
  pools += [(f'{n} worker' + 's' * (n != 1), dict(workers=n)) for n in workers]
  for kind in ('files', 'array_record', 'cached'):
    for name, options in pools:
      if kind != 'cached' or 'threads' in options:
        found['pipeline', f'{kind}, {name}'] = full_pipeline, dict(kind=kind, **options)
  found['three copies', f'files, {pools[0][0]}'] = full_pipeline, dict(kind='files', repeats=3, **pools[0][1])
  if tensorflow_input.is_installed():
    peers = dict(decode=tensorflow_input.decode_whole, crop=tensorflow_input.decode_crops,
                 pipeline=tensorflow_input.full_pipeline)
    found |= {(stage, TF): (build, {}) for stage, build in peers.items()}
  return found


# Each builder returns an endless iterator whose items are numbers of images made.


def decode_whole(paths: Sequence[str], **_: Any) -> Iterator[int]:
  """Decode every pixel."""
  encoded = [pathlib.Path(path).read_bytes() for path in paths]
  while True:
    for data in encoded:
      decode.decode(data, 3)
      yield 1


def decode_crops(paths: Sequence[str], **_: Any) -> Iterator[int]:
  """Decode the rows that a crop needs, then resize; the same crops every time."""
  encoded, crop = [pathlib.Path(path).read_bytes() for path in paths], parse('inception_crop', SIZE)
  while True:
    for index, data in enumerate(encoded):
      crop(decode.open_image(data, 3), np.random.Generator(np.random.Philox(key=index)))
      yield 1


def augment_only(paths: Sequence[str], **_: Any) -> Iterator[int]:
  """Crop, resize and flip decoded images."""
  pixels = [decode.decode(pathlib.Path(path).read_bytes(), 3) for path in paths[:256]]
  transform = parse(TRANSFORM, SIZE)
  rng = np.random.default_rng(0)
  while True:
    for image in pixels:
      transform(image, rng)
      yield 1


def full_pipeline(paths: Sequence[str], scratch: str, batch: int, kind: str, threads: int = 2, workers: int = 0,
                  repeats: int = 1) -> Iterator[int]:
  """Read, shuffle, decode, crop, flip, batch."""
  if kind == 'array_record':
    source = sources.open_source('photos', 'train', scratch)
  else:
    source = Source(Files(paths), name='photos', split='train', class_names=('any',), channels=3)
  for made in loader.train_batches(source, batch_size=batch, image_size=SIZE, transform=TRANSFORM,
                                   cache=kind == 'cached', threads=threads, workers=workers, repeats=repeats):
    yield len(made['image'])


def _row(key: Key, turns: Sequence[tuple[float, float]], tf_turns: Sequence[tuple[float, float]]) -> dict[str, Any]:
  cpu, wall = zip(*turns, strict=True)
  row: dict[str, Any] = dict(stage=key[0], contender=key[1], **_spread('cpu', cpu), **_spread('wall', wall))
  if tf_turns:
    row |= _spread('of_tf', [rate / of_tf for rate, (of_tf, _) in zip(cpu, tf_turns, strict=True)])
    row |= _spread('wall_of_tf', [rate / of_tf for rate, (_, of_tf) in zip(wall, tf_turns, strict=True)])
  return row


def _spread(name: str, values: Sequence[float]) -> dict[str, float]:
  return {name: statistics.median(values), f'{name}_low': min(values), f'{name}_high': max(values)}


def table(rows: Sequence[dict[str, Any]]) -> str:
  """Return the rows as Markdown."""
  lines = ['| stage | contender | images per CPU second | of tf.data | images/s (wall) | of tf.data |',
           '|---|---|---|---|---|---|']
  number = lambda row, name, digits: '' if name not in row else (
      f'{row[name]:.{digits}f} ({row[f"{name}_low"]:.{digits}f}–{row[f"{name}_high"]:.{digits}f})')
  for row in rows:
    lines.append(f'| {row["stage"]} | {row["contender"]} | {number(row, "cpu", 0)} | {number(row, "of_tf", 2)} | '
                 f'{number(row, "wall", 0)} | {number(row, "wall_of_tf", 2)} |')
  return '\n'.join(lines)


if __name__ == '__main__':
  from experiments.benchmarks import input_throughput  # not __main__, whose classes other processes would not find

  parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
  numbers = lambda text: tuple(int(number) for number in text.split(',') if number)
  parser.add_argument('--data', required=True, help='folder of JPEGs')
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--images', type=int, default=1024, help='made by each contender in a round')
  parser.add_argument('--batch', type=int, default=96, help='a multiple of 3')
  parser.add_argument('--threads', type=numbers, default=(1, 2), help='such as 1,2')
  parser.add_argument('--workers', type=numbers, default=(2,), help='such as 2,4')
  parser.add_argument('--json', action='store_true')
  arguments = vars(parser.parse_args())
  folder, as_json = arguments.pop('data'), arguments.pop('json')
  try:
    results = input_throughput.measure(folder, **arguments, log=lambda text: print(text, file=sys.stderr))
  except (UserError, OSError) as error:
    sys.exit(f'error: {error}')
  print('\n'.join(map(json.dumps, results)) if as_json else table(results))
