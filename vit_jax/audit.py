"""Check a dataset before it is trained on: `python -m vit_jax.audit folder:flowers --output=exclude.txt`.

Reports counts per split and class, image sizes, corrupt files, exact and near duplicates within and across splits, and
duplicates whose labels conflict. --output writes an exclusion list of what training should leave out, which
`--config.data.exclude=exclude.txt` applies. Records of other splits are never left out, so that results stay
comparable.

A near duplicate is an image that was compressed, scaled or brightened again, not one that was mirrored, rotated or
cropped.
"""
from collections.abc import Sequence
import json
import sys

from absl import app, flags

from vit_jax.base.text import printable
from vit_jax.data.audit import report
from vit_jax.data.audit.audit import SIMILARITY, Audit, audit, write_list, write_sheet
from vit_jax.run import cli


def run(name: str, *, data_dir: str | None = None, train: str | None = None, similarity: float = SIMILARITY,
        output: str | None = None, sheet: str | None = None, as_json: bool = False, command: str = '') -> Audit:
  """Audit a dataset, write the requested files, and print the report to standard output.

  Args:
    name, data_dir, train, similarity: see `data.audit.audit.audit`.
    output: path of the exclusion list; None writes none.
    sheet: path of the contact sheet of duplicates; None draws none.
    as_json: print one JSON object instead of tables.
    command: the command that makes the list, for its first line.
  """
  found = audit(name, data_dir, train, similarity)
  summary = report.summarize(found.scan, found.duplicates, found.excluded)
  print(printable(json.dumps(summary, ensure_ascii=False) if as_json else report.to_text(summary)))
  if output:
    write_list(found, output, command)
    print(f'Wrote {output}: {len(found.excluded)} records; train with --config.data.exclude={output}', file=sys.stderr)
  if sheet:
    pairs = write_sheet(found, sheet)
    print(f'Wrote {sheet}: {pairs} pairs' if pairs else f'No duplicates: {sheet} was not written', file=sys.stderr)
  return found


def define_flags() -> None:
  """Define the flags of this command."""
  flags.DEFINE_string('data_dir', None, 'Folder of datasets; a relative folder:PATH starts here.')
  flags.DEFINE_string('train', None, "The split that is trained on; 'train', or the only one, by default.")
  flags.DEFINE_float('similarity', SIMILARITY, 'Thumbnails at least this similar are near duplicates, 0.5..1.')
  flags.DEFINE_string('output', None, 'Write an exclusion list here.')
  flags.DEFINE_string('sheet', None, 'Draw pairs of duplicates here, such as duplicates.png.')
  flags.DEFINE_bool('json', False, 'Print one JSON object instead of tables.')


def main(argv: Sequence[str]) -> None:
  """Audit one dataset."""
  if len(argv) != 2:
    raise app.UsageError(f'expected DATASET, such as digits, folder:PATH or fashion_mnist, got {argv[1:]}')
  values = flags.FLAGS
  given = [f'--{key}={values[key].value}' for key in ('data_dir', 'train', 'similarity') if values[key].present]
  cli.call(lambda: run(
      argv[1], data_dir=values.data_dir, train=values.train, similarity=values.similarity, output=values.output,
      sheet=values.sheet, as_json=values.json, command=' '.join(['python -m vit_jax.audit', argv[1], *given])))


if __name__ == '__main__':
  define_flags()
  cli.start(main)
