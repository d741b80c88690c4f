"""Reads weights that are split into several files, with an index of which array is in which (Hugging Face)."""
from collections.abc import Callable, Iterator
import contextlib
import json
import pathlib

from vit_jax.base.errors import MissingFileError, UserError
from vit_jax.base.files import PathLike
from vit_jax.base.text import listing
from vit_jax.pretrained.files import tensors as tensors_lib

SUFFIX = '.index.json'
MAX_INDEX = 16 << 20
MAX_SHARDS = 1000
_Open = Callable[[PathLike], contextlib.AbstractContextManager[tensors_lib.Tensors]]


def shard_names(path: pathlib.Path) -> dict[str, str]:
  """Return {array: file beside the index} of an index.

  Raises:
    UserError: not an index, or it names files elsewhere.
  """
  if path.stat().st_size > MAX_INDEX:
    raise UserError(f'an index of {path.stat().st_size:,} bytes; at most {MAX_INDEX:,} are read')
  try:
    index = json.loads(path.read_text('utf-8'), object_pairs_hook=_without_duplicates)
  except (ValueError, RecursionError) as error:
    raise UserError(f'not an index: {error}') from error
  shards = index.get('weight_map') if isinstance(index, dict) else None
  if not isinstance(shards, dict) or not 0 < len(shards) <= tensors_lib.MAX_ENTRIES:
    raise UserError(f'expected an index with a weight_map of 1 to {tensors_lib.MAX_ENTRIES:,} arrays')
  for name, shard in shards.items():
    if not isinstance(shard, str) or not _is_file_name(shard):
      raise UserError(f'weight_map: expected the name of a file beside it for {name[:200]}, got {str(shard)[:80]!r}')
  if len(set(shards.values())) > MAX_SHARDS:
    raise UserError(f'weight_map: names {len(set(shards.values())):,} files; at most {MAX_SHARDS:,} are read')
  return shards


@contextlib.contextmanager
def open_tensors(path: pathlib.Path, open_file: _Open) -> Iterator[tensors_lib.Tensors]:
  """Open an index as `Tensors`: the headers of all shards are checked at once, arrays are read on demand.

  Args:
    path: of the index; the shards are beside it.
    open_file: opens one of them.
  """
  names = shard_names(path)
  files = sorted(set(names.values()))
  if absent := [file for file in files if not (path.parent / file).is_file()]:
    raise MissingFileError(f'{len(absent)} of its {len(files)} files missing: {listing(absent)}; put them beside it')
  with contextlib.ExitStack() as stack:
    shards = {file: stack.enter_context(open_file(path.parent / file)) for file in files}
    _check(names, shards)
    yield tensors_lib.Tensors(
        path, {name: shards[file].shapes[name] for name, file in names.items()},
        {name: shards[file].dtypes[name] for name, file in names.items()},
        lambda name: shards[names[name]].fetch(name))


def _check(names: dict[str, str], shards: dict[str, tensors_lib.Tensors]) -> None:
  """Refuse an index and shards that do not agree about what is where."""
  seen: dict[str, str] = {}
  for file, tensors in shards.items():
    for name in tensors.shapes:
      if name in seen:
        raise UserError(f'{name} is in two files: {seen[name]} and {file}')
      seen[name] = file
  wrong = sorted(name for name in names.keys() | seen.keys() if names.get(name) != seen.get(name))
  if wrong:
    name = wrong[0]
    raise UserError(f'{name} is in {seen.get(name, "no file")}, but in {names.get(name, "no file")} by the index '
                    f'({len(wrong)} such names)')


def _is_file_name(text: str) -> bool:
  """Return whether it can be the name of a shard: no path, and not an index, which could name itself."""
  return (0 < len(text) < 256 and text.isprintable() and not set('/\\:') & set(text) and text not in ('.', '..')
          and not text.endswith(SUFFIX))


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
  values = dict(pairs)
  if len(values) < len(pairs):
    raise UserError('it names an array twice')
  return values
