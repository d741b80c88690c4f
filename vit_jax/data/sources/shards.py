"""The files of a TFDS dataset: checks that they are complete and harmless, and names for their records."""
import bisect
from collections.abc import Sequence, Set
import copy
import itertools
import os
import re
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader  # type: ignore[attr-defined]
from etils import epath
import tensorflow_datasets as tfds

from vit_jax.base import files, text
from vit_jax.base.errors import FileError, UserError
from vit_jax.base.machine import retry
from vit_jax.data.sources.base import make_fingerprint


def check_descriptions(folder: epath.Path) -> None:
  """Check the files by which a dataset describes itself, before TFDS reads them: it imports what modules they name.

  Args:
    folder: of the dataset, with folders of versions, or of configurations with versions; may be missing.

  Raises:
    UserError: a file is damaged, or asks for code or memory beyond what a dataset needs.
  """
  for file in [*folder.glob('*/features.json'), *folder.glob('*/*/features.json')]:
    try:
      _check_feature(files.read_json(file))
    except (ValueError, TypeError, RecursionError) as error:
      raise UserError(f'{file}: not the features of a dataset: {str(error)[:300]}') from error


def check(name: str, builder: tfds.core.DatasetBuilder, split: str, command: str) -> None:
  """Check that the files of a split exist, are complete, and hold as many records as they should.

  On gs:// only their existence is checked: opening a thousand files there takes minutes.

  Args:
    name: the dataset, as the user named it.
    builder: its builder.
    split: the split, or parts of several.
    command: the command that prepares the dataset.

  Raises:
    UserError: a file is missing or damaged.
  """
  folder = epath.Path(builder.data_path)
  present = {path.name for path in folder.iterdir()}
  for file in builder.info.splits[split].file_instructions:
    problem = _problem(file, present)
    if problem:
      shards = sorted(one for one in present if 'array_record' in one)
      raise UserError(
          f'dataset {name!r}, split {split!r}: {file.filename} {problem}. {folder} has '
          f'{text.count(len(shards), "ArrayRecord file")}: {text.listing(shards, limit=4) or "none"}. Copy the file '
          f'again from where the dataset was prepared, or prepare the dataset again:\n  rm -r {folder} && {command}')


class Names:
  """Names of a split's records: `train/123` is record 123 of the stored split, whatever the slice."""

  def __init__(self, builder: tfds.core.DatasetBuilder, split: str):
    first = {}  # File: (split it belongs to, index of its first record there).
    for name, info in builder.info.splits.items():
      starts = itertools.accumulate(info.shard_lengths[:-1], initial=0)
      first.update({os.fspath(path): (name, start) for path, start in zip(info.filepaths, starts, strict=True)})
    parts = builder.info.splits[split].file_instructions
    self._firsts = []
    for part in parts:
      name, start = first[os.fspath(part.filename)]
      self._firsts.append((name, start + part.skip))
    self._starts = list(itertools.accumulate((part.take for part in parts), initial=0))

  def __len__(self) -> int:
    return self._starts[-1]

  def __getitem__(self, index: int) -> str:
    if not 0 <= index < len(self):
      raise IndexError(index)
    file = bisect.bisect_right(self._starts, index) - 1
    split, start = self._firsts[file]
    return f'{split}/{start + index - self._starts[file]}'

  def splits(self) -> list[str]:
    """Return the stored splits that records come from."""
    return sorted({split for split, _ in self._firsts})


class ArrayRecords:
  """The records of a split, with errors that name the file. It can be pickled.

  Args:
    records: as TFDS reads them.
    builder: of the dataset.
    split: the split, or parts of several.
  """

  def __init__(self, records: Any, builder: tfds.core.DatasetBuilder, split: str):
    self._records = records
    parts = builder.info.splits[split].file_instructions
    self._files = [(os.fspath(part.filename), part.skip) for part in parts]
    self._starts = list(itertools.accumulate((part.take for part in parts), initial=0))

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> Any:
    try:
      return self._records[index]
    except MemoryError:
      raise
    except Exception as error:  # the C++ reader and the parsers above it raise many kinds
      self._reopen()
      number = bisect.bisect_right(self._starts, index) - 1
      file, skipped = self._files[number]
      raise FileError(f'{file}: cannot read record {skipped + index - self._starts[number]} of this file: '
                      f'{retry.explain(error)}. Copy the file again from where the dataset was prepared, then start '
                      'the same command again') from error

  def __getitems__(self, indices: Sequence[int]) -> Any:
    """Return many records in one read."""
    return self._records.__getitems__(indices)

  def _reopen(self) -> None:
    """Forget the open files: the handle of a file that was replaced on a server stays stale."""
    fresh = copy.copy(self._records)
    fresh.data_source = copy.copy(fresh.data_source)  # its copy has no open files
    self._records = fresh


def split_fingerprints(builder: tfds.core.DatasetBuilder, splits: Sequence[str]) -> dict[str, str]:
  """Return {split: fingerprint} of stored splits: the same for every copy of a version, in however many files."""
  infos = {split: builder.info.splits[split] for split in splits}
  return {split: make_fingerprint([builder.info.full_name, split, info.num_examples, info.num_bytes])
          for split, info in infos.items()}


def _check_feature(value: Any) -> None:
  """Raise ValueError or TypeError for what TFDS must not see in features.json, at any depth."""
  for child in value if isinstance(value, list) else ():
    _check_feature(child)
  if not isinstance(value, dict):
    return
  for key, child in value.items():
    if key in _CLASS_KEYS or (key == 'type' and 'content' in value):
      if not re.fullmatch(r'tensorflow_datasets\.core\.features(\.\w+)+', child):
        raise UserError(f'it names the code {child!r}, which TFDS would import; only its own features are read')
    elif key in _COUNT_KEYS and int(child) > _MAX_CLASSES:
      raise UserError(f'it claims {int(child):,} classes; at most {_MAX_CLASSES:,} are read')
    _check_feature(child)


# TFDS reads both spellings.
_CLASS_KEYS, _COUNT_KEYS = ('pythonClassName', 'python_class_name'), ('numClasses', 'num_classes')
_MAX_CLASSES = 1_000_000


def _problem(file: Any, present: Set[str]) -> str | None:
  """Return what is wrong with a file (a TFDS FileInstruction), or None."""
  path = epath.Path(file.filename)
  if path.name not in present:
    return 'is missing'
  if files.is_remote(path):
    return None
  if path.is_dir():
    return 'is a folder, not a file'
  try:
    reader = ArrayRecordReader(os.fspath(path))
    count = reader.num_records()
    reader.close()
  # The C++ reader raises nothing more specific.
  except (RuntimeError, ValueError, OSError) as error:
    return f'cannot be read ({path.stat().length} bytes; {" ".join(str(error).split())[:150]})'
  return None if count == file.examples_in_shard else f'has {count} records instead of {file.examples_in_shard}'
