"""The audit of a dataset: a scan of all splits, their duplicates, and the records that training should leave out."""
import dataclasses

import numpy as np

from vit_jax.base import pictures
from vit_jax.base.errors import UserError
from vit_jax.data.audit import duplicates
from vit_jax.data.audit.scan import Scan, scan
from vit_jax.data.images.pillow import from_pillow, to_pillow
from vit_jax.data.sources import exclude, registry

# Of 698 photographs (hymenoptera, and 300 of ImageNet) it finds all that were saved again as JPEG of quality 30, all
# but 3 in a thousand at half the size, 80 % of those made 1.3 times as bright, 86 % with a caption, and 1 % of those
# cropped by 1 %; 0.9 finds 98 % of these, and neither mistakes one of the 243,253 pairs of different photographs. So
# 0.9 is the better choice for photographs. Small images of one kind are similar: of the 2.4e9 pairs of Fashion-MNIST,
# 0.98 takes 100 for duplicates, some of them other shades of one article, some plain trousers.
SIMILARITY = 0.98

_MAX_PAIRS = 40  # On a contact sheet.
_PAIRS_PER_ROW = 3
_SHOWN = 160  # Pixels of the longer side.


@dataclasses.dataclass(frozen=True)
class Audit:
  """The findings of an audit.

  Attributes:
    scan: every record of every split.
    duplicates: the records that show the same image.
    excluded: {record: why training should leave it out}.
    train: name of the split that is trained on.
  """
  scan: Scan
  duplicates: duplicates.Duplicates
  excluded: dict[int, str]
  train: str


def audit(name: str, data_dir: str | None = None, train: str | None = None, similarity: float = SIMILARITY) -> Audit:
  """Read a whole dataset and compare its images.

  Args:
    name, data_dir: see `sources.registry.open_source`.
    train: the split that is trained on; None is `train`, or the only one there is.
    similarity: thumbnails at least this similar are near duplicates, 0.5..1.

  Raises:
    UserError: no such dataset or split, or `similarity` is out of range.
  """
  if not 0.5 <= similarity <= 1:
    raise UserError(f'--similarity: expected 0.5..1, got {similarity}')
  names = registry.split_names(name, data_dir)
  train = train or (names[0] if len(names) == 1 else 'train')
  if train not in names:
    raise UserError(f'--train: expected a split of {name}, one of {names}, got {train!r}')
  scanned = scan([registry.open_source(name, split, data_dir) for split in names])
  found = duplicates.find(scanned, similarity)
  return Audit(scanned, found, duplicates.choose_excluded(scanned, found.groups, {names.index(train)}), train)


def write_list(found: Audit, path: str, command: str) -> None:
  """Write the exclusion list of an audit that `command` made; see `exclude.write`."""
  source = next(source for source in found.scan.sources if source.split == found.train)
  reasons = {found.scan.name(record): reason for record, reason in sorted(found.excluded.items())}
  exclude.write(path, reasons, source.split_fingerprints, source.name, command)


def write_sheet(found: Audit, path: str) -> int:
  """Draw near duplicates, the least similar first, then exact ones, to a file; return the number of pairs."""
  scanned = found.scan
  exact = [(group[0], group[1], 1.0) for group in found.duplicates.groups
           if duplicates.same_pixels(scanned, group[0], group[1])]
  pairs = [*found.duplicates.near, *exact][:_MAX_PAIRS]
  if pairs:
    cells = [cell for pair in pairs for cell in _cells(scanned, *pair)]
    rows = [cells[start:start + 2 * _PAIRS_PER_ROW] for start in range(0, len(cells), 2 * _PAIRS_PER_ROW)]
    pictures.save(pictures.draw(rows), path)
  return len(pairs)


def _cells(scanned: Scan, a: int, b: int, similarity: float) -> list[pictures.Cell]:
  relation = 'same pixels' if duplicates.same_pixels(scanned, a, b) else f'similarity {similarity:.3f}'
  return [(_shrink(scanned.image(record)), f'{scanned.name(record)}\n{scanned.class_names(record)}\n{text}')
          for record, text in ((a, relation), (b, ''))]


def _shrink(image: np.ndarray) -> np.ndarray:
  small = to_pillow(image)
  small.thumbnail((_SHOWN, _SHOWN))
  return from_pillow(small)
