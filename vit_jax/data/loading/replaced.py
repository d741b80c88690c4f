"""Images that were replaced under the same names between two starts of a run."""
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
import hashlib

from tqdm import tqdm

from vit_jax.data.sources.base import Source, make_fingerprint

# Choices of data.fingerprint: what a run remembers of its images beside their names.
KINDS = ('names', 'stat', 'content')

_CHUNK = 256  # records per task


def stamps(source: Source, kind: str, threads: int) -> dict[str, str]:
  """Return {'sizes', 'times' or 'content': digest} of the images, in order; {} of what is not known.

  Args:
    source: the split.
    kind: of KINDS: 'names' is nothing more; 'stat' is the size and the time of the last change of every record's file,
      of which records in files of many, in arrays and on gs:// have none; 'content' is the bytes of every record, and
      the sizes.
    threads: threads to read with, for 'content'.
  """
  if kind == 'names':
    return {}
  found = source.file_stamps()
  sizes = {'sizes': make_fingerprint([size for size, _ in found])} if found else {}
  if kind == 'content':
    return {**sizes, 'content': make_fingerprint(_hashes(source, threads))}
  return {**sizes, 'times': make_fingerprint([time for _, time in found])} if found else {}


def difference(before: Mapping[str, str], now: Mapping[str, str]) -> str | None:
  """Return in what images differ from those of the same names before: 'contents', 'sizes' or 'times'; None: in nothing.

  Times alone may differ because the files were copied. Only what both know is compared; contents that are equal settle
  the matter.
  """
  differ = {name: before[name] != now[name] for name in before.keys() & now.keys()}
  if 'content' in differ:
    return 'contents' if differ['content'] else None
  return next((name for name in ('sizes', 'times') if differ.get(name)), None)


def _hashes(source: Source, threads: int) -> Iterator[str]:
  """Yield the SHA-256 of every record's image, in order."""
  chunks = [range(len(source))[start:start + _CHUNK] for start in range(0, len(source), _CHUNK)]
  # disable=None: no progress bar if stderr is not a terminal.
  with futures.ThreadPoolExecutor(max(1, threads)) as pool, tqdm(
      total=len(source), desc=f'Hashing {source.name} {source.split}', unit='image', disable=None, leave=False) as bar:
    for hashes in pool.map(lambda chunk: _hash(source, chunk), chunks):
      yield from hashes
      bar.update(len(hashes))


def _hash(source: Source, indices: Sequence[int]) -> list[str]:
  return [hashlib.sha256(record['image']).hexdigest() for record in source.read(indices)]
