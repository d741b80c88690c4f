"""The ArrayRecord files of a TFDS data set: whether they are whole, and which record of them is which."""

import bisect
import itertools
import os
from typing import Sequence

from array_record.python import array_record_module
from etils import epath
import tensorflow_datasets as tfds

from vit_jax.data.sources.base import fingerprint


def check(name: str, builder: tfds.core.DatasetBuilder, split: str, command: str) -> None:
  """Checks that the files of a split are there, whole, and hold as many records as they should.

  On gs:// they are only looked for: opening a thousand files there takes minutes.

  Args:
    name: the data set, as asked for.
    builder: of it.
    split: the split, or parts of some.
    command: that makes the data set.

  Raises:
    ValueError: they are not.
  """
  folder = epath.Path(builder.data_path)
  there = {path.name for path in folder.iterdir()}
  for file in builder.info.splits[split].file_instructions:
    problem = _problem(file, there)
    if problem:
      shards = sorted(one for one in there if 'array_record' in one)
      raise ValueError(
          f'Data set {name!r}, split {split!r}: {file.filename} {problem}. In {folder} there are '
          f'{len(shards)} ArrayRecord files: {", ".join(shards[:4]) or "none"}{", …" * (len(shards) > 4)}. Copy the '
          f'file again from where the data set was made, or make the data set again:\n'
          f'  rm -r {folder} && {command}')


class Names(Sequence):
  """Names of a split's records: `train/123` is the record of that number in the stored split, whatever the slice."""

  def __init__(self, builder: tfds.core.DatasetBuilder, split: str):
    first = {}  # Of every file: the split it belongs to, and the number of its first record there.
    for name, info in builder.info.splits.items():
      lengths = itertools.accumulate(info.shard_lengths, initial=0)
      first.update({os.fspath(path): (name, start) for path, start in zip(info.filepaths, lengths)})
    files = builder.info.splits[split].file_instructions
    self._firsts = [(first[os.fspath(file.filename)][0], first[os.fspath(file.filename)][1] + file.skip)
                    for file in files]
    self._starts = list(itertools.accumulate((file.take for file in files), initial=0))

  def __len__(self):
    return self._starts[-1]

  def __getitem__(self, index):
    if not 0 <= index < len(self):
      raise IndexError(index)
    file = bisect.bisect_right(self._starts, index) - 1
    split, start = self._firsts[file]
    return f'{split}/{start + index - self._starts[file]}'

  def splits(self) -> list[str]:
    """The stored splits that records come from."""
    return sorted({split for split, _ in self._firsts})


def fingerprints(builder: tfds.core.DatasetBuilder, splits: Sequence[str]) -> dict[str, str]:
  """{split: digits} of stored splits: the same for every copy of a version, in however many files."""
  infos = {split: builder.info.splits[split] for split in splits}
  return {split: fingerprint([builder.info.full_name, split, info.num_examples, info.num_bytes])
          for split, info in infos.items()}


def _problem(file, there):
  """What is wrong with a file, or None."""
  path = epath.Path(file.filename)
  if path.name not in there:
    return 'is missing'
  if '://' in os.fspath(path):
    return None
  if path.is_dir():
    return 'is a folder, not a file'
  try:
    reader = array_record_module.ArrayRecordReader(os.fspath(path))
    count = reader.num_records()
    reader.close()
  # What the C++ reader raises is no closer type than these.
  except (RuntimeError, ValueError, OSError) as error:
    return f'cannot be read ({path.stat().length} bytes; {" ".join(str(error).split())[:150]})'
  return None if count == file.examples_in_shard else f'holds {count} records instead of {file.examples_in_shard}'
