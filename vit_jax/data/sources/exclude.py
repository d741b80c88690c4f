"""Exclusion lists: the records that a training run leaves out.

  # Records that training leaves out; written by python -m vit_jax.audit folder:flowers --output=exclude.txt
  # data set folder:flowers
  # split train 0f3a…
  train/rose/7.jpg	duplicate: same pixels as train/rose/3.jpg (rose, rose)

There is one record per line: its name, see `Source.record_name`, a tab, and the reason. Lines may be removed by hand,
and line endings may be those of any system.
"""
from collections.abc import Mapping
import os
import re

from absl import logging

from vit_jax.base import files
from vit_jax.base.errors import FileError, MissingFileError, UserError
from vit_jax.base.text import count
from vit_jax.data.sources.base import Source


def write(path: str, reasons: Mapping[str, str], split_fingerprints: Mapping[str, str], name: str,
          command: str) -> None:
  """Write a list, whole or not at all.

  Args:
    path: local or gs://.
    reasons: {record name: why it is left out}.
    split_fingerprints: see `Source`, of the splits that the records are in.
    name: the dataset.
    command: the command that made the list.

  Raises:
    UserError: the name of a record has a line break.
    FileError: the path cannot be written.
  """
  if broken := [record for record in reasons if '\n' in record or '\r' in record]:
    raise UserError(f'{broken[0]!r}: a file name with a line break cannot be listed; rename the file')
  lines = [f'# Records that training leaves out; written by {command}', f'# data set {name}',
           *(f'# split {split} {digits}' for split, digits in sorted(split_fingerprints.items())),
           *(f'{record}\t{" ".join(reason.split())}' for record, reason in reasons.items())]
  files.write(files.expand(path), ('\n'.join(lines) + '\n').encode(errors='surrogateescape'), 'the exclusion list')


def without_excluded(source: Source, path: str) -> Source:
  """Return the source without the records that a list names, and log how many there were.

  Raises:
    FileError: the list cannot be read; MissingFileError if it does not exist.
    UserError: the list is of another dataset, or names records that the dataset does not have.
  """
  reasons, listed = _read(path)
  fix = f'Write the list again: python -m vit_jax.audit {source.name} --output={path}'
  for split, digits in source.split_fingerprints.items():
    if split in listed and listed[split] != digits:
      raise UserError(f'exclusion list {path}: written for another dataset, or for {source.name} before it changed: '
                      f'split {split} has the fingerprint {digits}, the list has {listed[split]}. {fix}')
  if not listed.keys() & source.split_fingerprints.keys():
    raise UserError(f'exclusion list {path}: covers the splits {", ".join(listed) or "none"}; {source.name} '
                    f'{source.split} is part of {", ".join(source.split_fingerprints) or "none"}. {fix}')
  kept = [index for index in range(len(source)) if source.record_name(index) not in reasons]
  left_out = len(source) - len(kept)
  _check_known(source, path, set(reasons), left_out, fix)
  if not kept:
    raise UserError(f'exclusion list {path}: leaves nothing of {source.name} {source.split}. {fix}')
  logging.warning('%s %s: left out %d of %d records, listed in %s', source.name, source.split, left_out, len(source),
                  path)
  return source.keep(kept) if left_out else source


def _check_known(source: Source, path: str, listed: set[str], left_out: int, fix: str) -> None:
  """Raise UserError for listed names that no record has, if the source holds the whole of the splits they are in."""
  ours = {name for name in listed if any(name.startswith(f'{split}/') for split in source.split_fingerprints)}
  ours = listed if set(source.split_fingerprints) == {'all'} else ours
  if source.split in source.split_fingerprints and len(ours) != left_out:
    known = {source.record_name(index) for index in range(len(source))}
    unknown = sorted(ours - known)
    raise UserError(f'exclusion list {path}: names {count(len(unknown), "record")} that {source.name} {source.split} '
                    f'does not have, such as {unknown[0]}. {fix}')


def _read(path: str) -> tuple[dict[str, str], dict[str, str]]:
  """Return ({record: reason}, {split: fingerprint}) of a list."""
  file = files.expand(path)
  try:
    text = file.read_bytes().decode(errors='surrogateescape')
  except OSError as error:
    kind = MissingFileError if isinstance(error, FileNotFoundError) else FileError
    raise kind(
        f'exclusion list {path}: cannot be read: {error}. Relative paths start in {os.getcwd()}; {file.parent} '
        f'{"exists" if file.parent.is_dir() else "does not exist"}. python -m vit_jax.audit writes a list.') from error
  lines = [line for line in text.replace('\r\n', '\n').split('\n') if line]
  listed = {match[1]: match[2] for line in lines if (match := re.fullmatch(r'# split (.+) ([0-9a-f]{16})', line))}
  records = [line for line in lines if not line.startswith('# ')]
  if bad := [line for line in records if '\t' not in line]:
    raise UserError(f'exclusion list {path}: expected a record name, a tab and a reason on every line, got {bad[0]!r}')
  reasons = {}
  for line in records:
    record, reason = line.rsplit('\t', 1)
    reasons[record] = reason
  return reasons, listed
