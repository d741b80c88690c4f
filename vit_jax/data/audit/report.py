"""The report of an audit: its findings as plain values for JSON, and as text."""
import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.base.text import count, listing, more, printable_name
from vit_jax.data.audit.duplicates import Duplicates
from vit_jax.data.audit.scan import Scan

Splits = Mapping[str, dict[str, Any]]

_MAX_LINES = 5  # Records or pairs that a list names.
_MAX_CLASSES = 12  # Classes in the table; if there are more, the largest and the smallest.


def summarize(scan: Scan, found: Duplicates, excluded: Mapping[int, str]) -> dict[str, Any]:
  """Return the findings as plain values.

  Args:
    scan: the dataset.
    found: its duplicates.
    excluded: see `duplicates.choose_excluded`.

  Returns:
    A dict for JSON: data_set, splits {name: {records, classes {name: count}, …}}, empty_classes, corrupt, duplicates,
    conflicts, excluded. Lists are complete; only the text shortens them.
  """
  splits = {source.split: _summarize_split(scan, index) for index, source in enumerate(scan.sources)}
  record = lambda index: {'name': scan.name(index), 'class': scan.class_names(index)}
  conflicting = [group for group in found.groups if len(set(scan.records['label'][group].tolist())) > 1]
  reasons = collections.Counter(reason.partition(':')[0] for reason in excluded.values())
  return {
      'data_set': scan.sources[0].name,
      'splits': splits,
      'empty_classes': {name: [cls for cls, size in split['classes'].items() if not size]
                        for name, split in splits.items()},
      'corrupt': [{'name': scan.name(index), 'error': error} for index, error in sorted(scan.errors.items())],
      'duplicates': {
          'groups': len(found.groups), 'groups_with_same_pixels': found.exact,
          'groups_with_same_bytes': found.same_file, 'near_pairs': len(found.near),
          'groups_across_splits': sum(len({scan.split(index) for index in group}) > 1 for group in found.groups),
          'records': [[record(index) for index in group] for group in found.groups],
          'near': [{'pair': [record(a), record(b)], 'similarity': round(value, 4)} for a, b, value in found.near]},
      'conflicts': [[record(index) for index in group] for group in conflicting],
      'excluded': dict(reasons),
  }


def to_text(summary: Mapping[str, Any]) -> str:
  """Return a summary, from `summarize`, as short tables."""
  lines = [f'{summary["data_set"]}', '', *_split_table(summary['splits']), '', *_class_table(summary['splits'])]
  repeated = summary['duplicates']
  lines += ['', f'corrupt      {len(summary["corrupt"])}', *_first(
      f'{one["name"]}: {" ".join(one["error"].split())[:150]}' for one in summary['corrupt'])]
  empty = [f'{split}: {", ".join(names)[:150]}' for split, names in summary['empty_classes'].items() if names]
  lines += ['', f'empty classes  {sum(map(len, summary["empty_classes"].values()))}', *_first(empty)]
  groups = lambda number: count(number, 'group')
  lines += ['', f'duplicates   {groups(repeated["groups"])} of {count(sum(map(len, repeated["records"])), "record")}, '
            f'{repeated["groups_across_splits"]} across splits',
            f'  same bytes {groups(repeated["groups_with_same_bytes"])}, same pixels '
            f'{groups(repeated["groups_with_same_pixels"])}, nearly the same {count(repeated["near_pairs"], "pair")}',
            *_first(map(_names, sorted(repeated['records'], key=lambda group: -len(group))))]
  if repeated['near']:
    lines += ['  nearly the same, least similar first:',
              *_first(f'{one["similarity"]:.3f}  {_names(one["pair"])}' for one in repeated['near'])]
  lines += ['', f'conflicting labels  {groups(len(summary["conflicts"]))}', *_first(map(_names, summary['conflicts']))]
  reasons = ', '.join(f'{number} {reason}' for reason, number in sorted(summary['excluded'].items())) or 'nothing'
  excluded = count(sum(summary['excluded'].values()), 'record')
  return '\n'.join([*lines, '', f'training should leave out  {excluded}: {reasons}'])


def _summarize_split(scan: Scan, split: int) -> dict[str, Any]:
  source = scan.sources[split]
  records = scan.records[scan.starts[split]:scan.starts[split + 1]]
  sound = records[~records['corrupt']]
  occurring = collections.Counter()
  for label, number in zip(*np.unique(records['label'], return_counts=True), strict=True):
    for one in scan.labels[label]:
      occurring[one] += int(number)
  classes = {name: occurring.pop(label, 0) for label, name in enumerate(source.class_names)}
  kinds = zip(*np.unique(sound['kind'], return_counts=True), strict=True)
  return {'records': len(records), 'classes': classes,
          'labels_without_class': {str(label): number for label, number in occurring.items()},
          'rows': _min_median_max(sound['rows']), 'columns': _min_median_max(sound['columns']),
          'formats': {scan.kinds[kind]: int(number) for kind, number in kinds}}


def _min_median_max(values: np.ndarray) -> list[int]:
  return [int(value) for value in np.quantile(values, [0, 0.5, 1])] if len(values) else []


def _split_table(splits: Splits) -> list[str]:
  rows = [('split', 'records', 'classes', 'rows min/med/max', 'columns', 'largest:smallest class', 'formats')]
  for name, split in splits.items():
    counts = list(filter(None, split['classes'].values()))
    formats = ', '.join(f'{number} {kind}' for kind, number in sorted(split['formats'].items(), key=lambda kv: -kv[1]))
    ratio = f'{max(counts) / min(counts):.2f}' if counts else '-'
    rows.append((name, f'{split["records"]:,}', str(len(counts)), '/'.join(map(str, split['rows'])),
                 '/'.join(map(str, split['columns'])), ratio, formats))
  return _align(rows)


def _class_table(splits: Splits) -> list[str]:
  totals = collections.Counter()
  for split in splits.values():
    totals.update(split['classes'])
  order = sorted(totals, key=lambda name: (-totals[name], name))
  cut = len(order) > _MAX_CLASSES
  shown = order[:_MAX_CLASSES // 2] + order[-_MAX_CLASSES // 2:] if cut else order
  rows = [('class', *splits)] + [(name, *(f'{split["classes"].get(name, 0):,}' for split in splits.values()))
                                 for name in shown]
  lines = _align(rows)
  lines[1 + _MAX_CLASSES // 2:1 + _MAX_CLASSES // 2] = [f'… {len(order) - _MAX_CLASSES} more classes'] if cut else []
  unknown = [f'{name}: labels without a class: {split["labels_without_class"]}'
             for name, split in splits.items() if split['labels_without_class']]
  return lines + unknown


def _align(rows: Sequence[tuple[str, ...]]) -> list[str]:
  rows = [tuple(map(printable_name, row)) for row in rows]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return ['  '.join(f'{cell:<{width}}' for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _names(group: Sequence[Mapping[str, str]]) -> str:
  return listing((f'{one["name"]} ({one["class"]})' for one in group), limit=4, separator=' = ')


def _first(lines: Iterable[str]) -> list[str]:
  lines = list(lines)
  rest = more(lines, _MAX_LINES)
  return [f'  {line}' for line in lines[:_MAX_LINES]] + ([f' {rest}'] if rest else [])
