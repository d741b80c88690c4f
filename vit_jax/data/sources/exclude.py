"""Exclusion lists: which records a training run leaves out.

  # Records that training leaves out; written by python -m vit_jax.audit folder:flowers --output=exclude.txt
  # data set folder:flowers
  # split train 0f3a…
  train/rose/7.jpg	duplicate: same pixels as train/rose/3.jpg (rose, rose)

One record a line: its name, see `Source.record_name`, a tab, the reason. Lines may be removed by hand, and line ends be
those of any system.
"""

import os
import re
from typing import Mapping

from absl import logging
from etils import epath

from vit_jax.data.sources.base import Source


def write(path: str, reasons: Mapping[str, str], fingerprints: Mapping[str, str], name: str, command: str) -> None:
  """Writes a list aside, then renames it.

  Args:
    path: local or gs://.
    reasons: {record name: why}.
    fingerprints: {split: see `Source`} of the splits that the records are in.
    name: of the data set.
    command: that made the list.

  Raises:
    ValueError: a record whose name holds a line break.
    OSError: the path cannot be written.
  """
  if broken := [record for record in reasons if '\n' in record or '\r' in record]:
    raise ValueError(f'Cannot list a file with a line break in its name: {broken[0]!r}. Rename it.')
  lines = [f'# Records that training leaves out; written by {command}', f'# data set {name}',
           *(f'# split {split} {digits}' for split, digits in sorted(fingerprints.items())),
           *(f'{record}\t{" ".join(reason.split())}' for record, reason in reasons.items())]
  aside = epath.Path(f'{path}.tmp')
  try:
    aside.write_bytes(('\n'.join(lines) + '\n').encode(errors='surrogateescape'))
    aside.replace(path)
  except OSError as error:
    raise OSError(f'Cannot write the exclusion list {path}: {error}. Choose another --output.') from error


def without_excluded(source: Source, path: str) -> Source:
  """Leaves out of a split the records that a list names, and logs how many.

  Raises:
    FileNotFoundError: no such list.
    ValueError: it is of another data set, or names records that the data set does not hold.
  """
  reasons, listed = _read(path)
  again = f'Write it again: python -m vit_jax.audit {source.name} --output={path}'
  for split, digits in source.fingerprints.items():
    if split in listed and listed[split] != digits:
      raise ValueError(f'The exclusion list {path} is of another data set, or of another state of this one: it knows '
                       f'split {split} by the fingerprint {listed[split]}, that of {source.name} is {digits}. {again}')
  if not listed.keys() & source.fingerprints.keys():
    raise ValueError(f'The exclusion list {path} knows the splits {", ".join(listed) or "none"}, and {source.name} '
                     f'{source.split} is of {", ".join(source.fingerprints) or "none"}. {again}')
  kept = [index for index in range(len(source)) if source.record_name(index) not in reasons]
  left_out = len(source) - len(kept)
  _check_known(source, path, set(reasons), left_out, again)
  if not kept:
    raise ValueError(f'The exclusion list {path} leaves nothing of {source.name} {source.split}. {again}')
  logging.warning('%s %s: left out %d of %d records, as %s says', source.name, source.split, left_out, len(source), path)
  return source.keep(kept) if left_out else source


def _check_known(source, path, named, left_out, again):
  """Raises for names that no record has, where the whole of the splits they are in is at hand."""
  mine = {name for name in named if any(name.startswith(f'{split}/') for split in source.fingerprints)}
  mine = named if set(source.fingerprints) == {'all'} else mine
  if source.split in source.fingerprints and len(mine) != left_out:
    known = {source.record_name(index) for index in range(len(source))}
    unknown = sorted(mine - known)
    raise ValueError(f'The exclusion list {path} names {len(unknown)} records that {source.name} {source.split} does '
                     f'not hold, such as {unknown[0]}. {again}')


def _read(path):
  """({record: reason}, {split: fingerprint}) of a list."""
  try:
    text = epath.Path(path).expanduser().read_bytes().decode(errors='surrogateescape')
  except OSError as error:
    folder = epath.Path(path).expanduser().absolute().parent
    raise FileNotFoundError(
        f'Cannot read the exclusion list {path}: {error}. Relative paths start in {os.getcwd()}; {folder} '
        f'{"is there" if folder.is_dir() else "does not exist"}. python -m vit_jax.audit writes one.') from error
  lines = [line for line in text.replace('\r\n', '\n').split('\n') if line]
  listed = dict(match.groups() for line in lines if (match := re.fullmatch(r'# split (.+) ([0-9a-f]{16})', line)))
  records = [line for line in lines if not line.startswith('# ')]
  if bad := [line for line in records if '\t' not in line]:
    raise ValueError(f'Expected a record name, a tab and a reason on every line of {path}, got {bad[0]!r}.')
  return dict(line.rsplit('\t', 1) for line in records), listed
