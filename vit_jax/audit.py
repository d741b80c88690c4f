"""Looks through a data set before it is trained on: `python -m vit_jax.audit folder:flowers --output=exclude.txt`.

Counts per split and class, sizes, corrupt files, exact and near duplicates within and across splits, and duplicates
whose classes disagree. --output writes an exclusion list, which `--config.data.exclude=exclude.txt` honours: what
training should leave out. Records of other splits are never left out: what they measure stays comparable.

A near duplicate is an image compressed, scaled or brightened again, not one mirrored, turned or cropped; see `SIMILARITY`.
"""
import json
import sys
from typing import Any, NamedTuple, Sequence

from absl import app
from absl import flags

from vit_jax.run import cli as commands
from vit_jax.base import pictures as contact_sheet
from vit_jax.data.audit import report as audit_report
from vit_jax.data.audit import duplicates
from vit_jax.data.sources import exclude
from vit_jax.data.sources import registry as sources
from vit_jax.data.images.pillow import from_pillow, to_pillow
from vit_jax.data.audit.scan import Scan, scan

_PAIRS = 40  # The most pairs on a sheet.
_PAIRS_ACROSS = 3
_SHOWN = 160  # Pixels of the longer side.


class Audit(NamedTuple):
  """What an audit found.

  Attributes:
    scan: every record of every split.
    duplicates: what is alike.
    dropped: {record: why training should leave it out}.
    train: names of the splits that are trained on.
  """
  scan: Scan
  duplicates: duplicates.Duplicates
  dropped: dict[int, str]
  train: list[str]


def audit(name: str, data_dir: str | None = None, train: str | None = None, similarity: float | None = None) -> Audit:
  """Reads all of a data set and compares its images.

  Args:
    name, data_dir: see `sources.open_source`.
    train: the split that is trained on; None is `train`, or the only one there is.
    similarity: of thumbnails, from which on two images are near duplicates; None is SIMILARITY.

  Raises:
    ValueError, OSError: no such data set, no such split, or a similarity that is not in 0.5..1.
  """
  similarity = SIMILARITY if similarity is None else similarity
  if not 0.5 <= similarity <= 1:
    raise ValueError(f'expected --similarity to be in 0.5..1, got {similarity}')
  names = sources.split_names(name, data_dir)
  train = train or (names[0] if len(names) == 1 else 'train')
  if train not in names:
    raise ValueError(f'expected --train to be a split of {name}, one of {names}, got {train!r}')
  scanned = scan([sources.open_source(name, split, data_dir) for split in names])
  found = duplicates.find(scanned, similarity)
  dropped = duplicates.dropped(scanned, found.groups, {names.index(train)})
  return Audit(scanned, found, dropped, [train])


def write_list(found: Audit, path: str, command: str) -> None:
  """Writes the exclusion list of an audit; see `exclude.write`."""
  trained = [source for source in found.scan.sources if source.split in found.train]
  exclude.write(path, {found.scan.name(record): reason for record, reason in sorted(found.dropped.items())},
                {split: digits for source in trained for split, digits in source.fingerprints.items()},
                trained[0].name, command)


def write_sheet(found: Audit, path: str) -> int:
  """Draws near duplicates, the least alike first, then exact ones, to a file; returns how many pairs."""
  scanned = found.scan
  exact = [(group[0], group[1], 1.0) for group in found.duplicates.groups
           if duplicates.same_pixels(scanned, group[0], group[1])]
  pairs = [*found.duplicates.near, *exact][:_PAIRS]
  if pairs:
    cells = [cell for pair in pairs for cell in _cells(scanned, *pair)]
    rows = [cells[start:start + 2 * _PAIRS_ACROSS] for start in range(0, len(cells), 2 * _PAIRS_ACROSS)]
    contact_sheet.save(contact_sheet.draw(rows), path)
  return len(pairs)


def _cells(scanned, a, b, value):
  same = 'same pixels' if duplicates.same_pixels(scanned, a, b) else f'similarity {value:.3f}'
  return [(_shown(scanned.image(record)), f'{scanned.name(record)}\n{scanned.class_names(record)}\n{text}')
          for record, text in ((a, same), (b, ''))]


def _shown(image):
  small = to_pillow(image)
  small.thumbnail((_SHOWN, _SHOWN))
  return from_pillow(small)


def run(name: str, *, data_dir: str | None = None, train: str | None = None, similarity: float | None = None,
        output: str | None = None, sheet: str | None = None, as_json: bool = False, command: str = '') -> Any:
  """Audits, writes what is asked for, and prints the report to standard output; returns the audit."""
  found = audit(name, data_dir, train, similarity)
  facts = audit_report.facts(found.scan, found.duplicates, found.dropped)
  print(json.dumps(facts, ensure_ascii=False) if as_json else audit_report.text(facts))
  if output:
    write_list(found, output, command)
    print(f'Wrote {output}: {len(found.dropped)} records; train with --config.data.exclude={output}', file=sys.stderr)
  if sheet:
    count = write_sheet(found, sheet)
    print(f'Wrote {sheet}: {count} pairs' if count else f'No duplicates: {sheet} is not written', file=sys.stderr)
  return found


def main(argv: Sequence[str]) -> None:
  """Audits one data set."""
  if len(argv) != 2:
    raise app.UsageError(f'expected DATASET, such as digits, folder:PATH or fashion_mnist, got {argv[1:]}')
  values = flags.FLAGS
  given = [f'--{key}={values[key].value}' for key in ('data_dir', 'train', 'similarity') if values[key].present]
  commands.call(lambda: run(
      argv[1], data_dir=values.data_dir, train=values.train, similarity=values.similarity, output=values.output,
      sheet=values.sheet, as_json=values.json, command=' '.join(['python -m vit_jax.audit', argv[1], *given])))


# Of 698 photographs (hymenoptera, and 300 of ImageNet) it finds all that were saved again as JPEG of quality 30, all
# but 3 in a thousand at half the size, 80 % of those made 1.3 times as bright, 86 % with a caption, and 1 % of those
# cropped by 1 %; 0.9 finds 98 % of these, and neither mistakes one of the 243,253 pairs of different photographs.
# 0.9 is the better choice for photographs. Small images of one kind are alike: of the 2.4e9 pairs of Fashion-MNIST,
# 0.98 takes 100 for duplicates, in part other shades of one article, in part plain trousers.
SIMILARITY = 0.98


if __name__ == '__main__':  # flags are the process's: not on import, as from a test or notebook
  flags.DEFINE_string('data_dir', None, 'Where the data sets are; a relative folder:PATH starts here.')
  flags.DEFINE_string('train', None, "The split that is trained on; 'train', or the only one, by default.")
  flags.DEFINE_float('similarity', None, f'How alike near duplicates are, 0.5..1; {SIMILARITY} by default.')
  flags.DEFINE_string('output', None, 'Write an exclusion list there.')
  flags.DEFINE_string('sheet', None, 'Draw pairs of duplicates there, such as duplicates.png.')
  flags.DEFINE_bool('json', False, 'Print one JSON object instead of tables.')
  app.run(main)
