"""The ledger of a soak: one line per fault and per finished run, written as they come, and a table of them."""
import collections
from collections.abc import Iterable
import json
import pathlib
import statistics
from typing import Any

from vit_jax.base import files

Entry = dict[str, Any]


class Ledger:
  """A file of JSON lines, continued if it is there already.

  Args:
    path: of the file.
  """

  def __init__(self, path: pathlib.Path):
    self._path = path
    self.entries: list[Entry] = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

  def add(self, **entry: Any) -> None:
    """Append an entry, on the disk at once."""
    self.entries.append(entry)
    self._path.parent.mkdir(parents=True, exist_ok=True)
    with self._path.open('a') as file:
      file.write(json.dumps(entry) + '\n')
    files.sync(self._path)

  def next_round(self) -> int:
    """Return the number of the next run: those of the ledger are not repeated."""
    return 1 + max((entry['round'] for entry in self.entries), default=0)


def failures(entries: Iterable[Entry]) -> list[Entry]:
  """Return what went wrong: runs that did not react to a fault as documented, or ended with other numbers."""
  return [entry for entry in entries if entry.get('failed') or entry.get('identical') is False]


def table(entries: Iterable[Entry]) -> str:
  """Return a Markdown table of the faults, and lines about the runs.

  A fault is survived if its run reached the end, bit for bit like the one without faults.
  """
  entries = list(entries)
  ended = {entry['round']: entry['identical'] for entry in entries if 'identical' in entry}
  injected, survived = collections.Counter(), collections.Counter()
  for entry in entries:
    if 'fault' in entry:
      injected[entry['fault']] += 1
      survived[entry['fault']] += ended.get(entry['round'], False)
  lines = ['| fault | injected | survived |', '|---|---|---|']
  lines += [f'| {fault} | {injected[fault]} | {survived[fault]} |' for fault in sorted(injected)]
  lines.append(f'| **all, {len(injected)} kinds** | {sum(injected.values())} | {sum(survived.values())} |')
  lines += ['', f'{len(ended)} runs, {sum(ended.values())} of them bit for bit like the one without faults.']
  seconds = [entry['seconds'] for entry in entries if entry.get('seconds') is not None]
  if seconds:
    lines.append(f'From a start to the first new checkpoint: median {statistics.median(seconds):.1f} s, longest '
                 f'{max(seconds):.1f} s, of {len(seconds)} starts.')
  return '\n'.join(lines) + '\n'
