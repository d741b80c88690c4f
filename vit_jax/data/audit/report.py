"""What an audit tells: plain values for JSON, and text of the same."""

import collections

import numpy as np

_NAMED = 5  # Records or pairs that a list names.
_CLASSES = 12  # Classes that the table names: of more, the largest and the smallest.


def facts(scan, found, dropped):
  """The findings as plain values.

  Args:
    scan, found, dropped: a `scan.Scan`, its `duplicates.Duplicates`, and `duplicates.dropped` of them.

  Returns:
    A dict for JSON: data_set, splits {name: {records, classes {name: count}, …}}, empty_classes, corrupt, duplicates,
    conflicts, excluded. Pairs and lists are whole: it is the text that names a few only.
  """
  splits = {source.split: _split(scan, number) for number, source in enumerate(scan.sources)}
  record = lambda index: {'name': scan.name(index), 'class': scan.class_names(index)}
  conflicting = [group for group in found.groups if len(set(scan.records['label'][group].tolist())) > 1]
  reasons = collections.Counter(reason.partition(':')[0] for reason in dropped.values())
  return {
      'data_set': scan.sources[0].name,
      'splits': splits,
      'empty_classes': {name: [cls for cls, count in split['classes'].items() if not count]
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


def text(found):
  """The findings, a dict from `facts`, as short tables."""
  lines = [f'{found["data_set"]}', '', *_split_table(found['splits']), '', *_class_table(found['splits'])]
  alike = found['duplicates']
  lines += ['', f'corrupt      {len(found["corrupt"])}', *_some(
      f'{one["name"]}: {" ".join(one["error"].split())[:150]}' for one in found['corrupt'])]
  empty = [f'{split}: {", ".join(names)[:150]}' for split, names in found['empty_classes'].items() if names]
  lines += ['', f'empty classes  {sum(map(len, found["empty_classes"].values()))}', *_some(empty)]
  lines += ['', f'duplicates   {alike["groups"]} groups of {sum(map(len, alike["records"]))} records, '
            f'{alike["groups_across_splits"]} across splits',
            f'  same bytes {alike["groups_with_same_bytes"]} groups, same pixels {alike["groups_with_same_pixels"]} '
            f'groups, nearly the same {alike["near_pairs"]} pairs',
            *_some((_names(group) for group in _worst(alike['records'])))]
  if alike['near']:
    lines += ['  nearly the same, the least alike first:',
              *_some(f'{one["similarity"]:.3f}  {_names(one["pair"])}' for one in alike['near'])]
  lines += ['', f'conflicting labels  {len(found["conflicts"])} groups', *_some(map(_names, found['conflicts']))]
  reasons = ', '.join(f'{count} {reason}' for reason, count in sorted(found['excluded'].items())) or 'nothing'
  return '\n'.join([*lines, '', f'training should leave out  {sum(found["excluded"].values())} records: {reasons}'])


def _split(scan, number):
  source = scan.sources[number]
  records = scan.records[scan.starts[number]:scan.starts[number + 1]]
  sound = records[~records['corrupt']]
  occurring = collections.Counter()
  for label, count in zip(*np.unique(records['label'], return_counts=True)):
    for one in scan.labels[label]:
      occurring[one] += int(count)
  classes = {name: occurring.pop(label, 0) for label, name in enumerate(source.class_names)}
  counts = np.unique(sound['kind'], return_counts=True)
  return {'records': len(records), 'classes': classes,
          'labels_without_class': {str(label): count for label, count in occurring.items()},
          'rows': _three(sound['rows']), 'columns': _three(sound['columns']),
          'formats': {scan.kinds[kind]: int(count) for kind, count in zip(*counts)}}


def _three(values):
  """Smallest, median, largest."""
  return [int(value) for value in np.quantile(values, [0, 0.5, 1])] if len(values) else []


def _split_table(splits):
  rows = [('split', 'records', 'classes', 'rows min/med/max', 'columns', 'largest:smallest class', 'formats')]
  for name, split in splits.items():
    counts = [count for count in split['classes'].values() if count]
    formats = ', '.join(f'{count} {kind}' for kind, count in sorted(split['formats'].items(), key=lambda kv: -kv[1]))
    ratio = f'{max(counts) / min(counts):.2f}' if counts else '-'
    rows.append((name, f'{split["records"]:,}', str(len(counts)), '/'.join(map(str, split['rows'])),
                 '/'.join(map(str, split['columns'])), ratio, formats))
  return _aligned(rows)


def _class_table(splits):
  totals = collections.Counter()
  for split in splits.values():
    totals.update(split['classes'])
  order = sorted(totals, key=lambda name: (-totals[name], name))
  cut = len(order) > _CLASSES
  shown = order[:_CLASSES // 2] + order[-_CLASSES // 2:] if cut else order
  rows = [('class', *splits)] + [(name, *(f'{split["classes"].get(name, 0):,}' for split in splits.values()))
                                 for name in shown]
  lines = _aligned(rows)
  lines[1 + _CLASSES // 2:1 + _CLASSES // 2] = [f'… {len(order) - _CLASSES} more classes'] if cut else []
  strange = [f'{name}: labels without a class: {split["labels_without_class"]}'
             for name, split in splits.items() if split['labels_without_class']]
  return lines + strange


def _aligned(rows):
  widths = [max(map(len, column)) for column in zip(*rows)]
  return ['  '.join(f'{cell:<{width}}' for cell, width in zip(row, widths)).rstrip() for row in rows]


def _worst(groups):
  """The groups with the most records first."""
  return sorted(groups, key=lambda group: -len(group))


def _names(group):
  more = f' and {len(group) - 4} more' if len(group) > 4 else ''
  return ' = '.join(f'{one["name"]} ({one["class"]})' for one in group[:4]) + more


def _some(lines):
  lines = list(lines)
  more = [f'  and {len(lines) - _NAMED} more'] if len(lines) > _NAMED else []
  return [f'  {line}' for line in lines[:_NAMED]] + more
