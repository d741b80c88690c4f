"""Reading back what was just saved: whether the files hold the arrays and the record that were given to them.

It happens in the background, before a step gets its name and older ones are deleted. What the kernel still holds of the
files in memory is dropped first, so that they come from the disk, where the file system does that.
"""
from collections.abc import Iterator, Mapping
import json
import os
import pathlib
import random
from typing import Any

from etils import epath
import jax
import numpy as np
import orbax.checkpoint as ocp

from vit_jax.rundir.checks import digests
from vit_jax.rundir.record import RunRecord

SAMPLE_BYTES = 1 << 30  # of a larger state, as many arrays as make up this; others at every step
_AT_ONCE = 1 << 28  # bytes of arrays that are in memory together


class ReadBackError(OSError):
  """What is on the disk is not what was saved."""


def check(folder: epath.Path, abstract: Any, record: RunRecord, step: int) -> None:
  """Read a step's arrays and record from its files and compare digests.

  Args:
    folder: of the step, local, complete; it need not have its name yet.
    abstract: the state that was saved, as a tree of jax.ShapeDtypeStruct.
    record: that was saved, with digests.
    step: which chooses the arrays of a state of more than `SAMPLE_BYTES`.

  Raises:
    ReadBackError: they differ, or cannot be read.
  """
  _drop_from_memory(folder)
  try:
    found = RunRecord.from_json(json.loads((folder / 'run' / 'metadata').read_text()))
    if found.digests != record.digests:
      raise ValueError('the run record was changed')
    sizes = {_path(path): leaf.size * leaf.dtype.itemsize
             for path, leaf in jax.tree_util.tree_leaves_with_path(abstract)}
    for paths in _groups(_sample(sizes, step), sizes):
      read, _ = digests.compute(_read(folder / 'state', abstract, paths))
      if changed := digests.changed(record.digests, read):
        raise ValueError(f'the disk gave back other numbers than were written: {changed}')
  except Exception as error:  # Orbax and TensorStore raise many kinds
    raise ReadBackError(f'reading it back failed: {error}') from error


def _sample(sizes: Mapping[str, int], step: int) -> list[str]:
  """Return the paths to read: all if they have at most `SAMPLE_BYTES`, else a random choice of about as many."""
  paths = list(sizes)
  if sum(sizes.values()) <= SAMPLE_BYTES:
    return paths
  random.Random(step).shuffle(paths)
  chosen, total = [], 0
  for path in paths:
    if total < SAMPLE_BYTES:
      chosen.append(path)
      total += sizes[path]
  return chosen


def _groups(paths: list[str], sizes: Mapping[str, int]) -> Iterator[set[str]]:
  """Yield the paths in groups of `_AT_ONCE` bytes at most, or of one array."""
  group, total = set(), 0
  for path in paths:
    if group and total + sizes[path] > _AT_ONCE:
      yield group
      group, total = set(), 0
    group.add(path)
    total += sizes[path]
  yield group


def _read(folder: epath.Path, abstract: Any, paths: set[str]) -> dict[str, np.ndarray]:
  """Return {path: array} of some of a state's arrays; the others are not read."""
  choose = lambda path, leaf: leaf if _path(path) in paths else ocp.PLACEHOLDER
  item = jax.tree_util.tree_map_with_path(choose, abstract)
  arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), abstract)
  tree = ocp.PyTreeCheckpointHandler().restore(folder, args=ocp.args.PyTreeRestore(item, restore_args=arguments))
  leaves = {_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
  return {path: leaves[path] for path in paths}


def _path(path: Any) -> str:
  return jax.tree_util.keystr(path, simple=True, separator='/')


def _drop_from_memory(folder: epath.Path) -> None:
  if not hasattr(os, 'posix_fadvise'):  # macOS
    return
  for path in pathlib.Path(folder).rglob('*'):
    if path.is_file():
      descriptor = os.open(path, os.O_RDONLY)
      try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
      finally:
        os.close(descriptor)
