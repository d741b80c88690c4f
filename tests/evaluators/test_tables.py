"""Files on what a classifier predicted."""
import csv

import numpy as np
from PIL import Image
import pytest

from vit_jax.base.errors import FileError, UserError
from vit_jax.evaluators import tables
from vit_jax.evaluators.tally import Tally

NAMES = ('ant', 'bee, "wild"', 'Käfer of $x^$', 'wasp')


def test_a_folder_with_other_files_is_refused(tmp_path):
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine' / 'photo.jpg').touch()
  with pytest.raises(UserError, match='--output: .*mine holds other files than those of an evaluation'):
    tables.make_directory(tmp_path / 'mine')
  (tmp_path / 'earlier').mkdir()
  (tmp_path / 'earlier' / tables.METRICS).touch()
  for name in ('earlier', 'new'):
    tables.make_directory(tmp_path / name)
    assert (tmp_path / name).is_dir()


def read(path):
  with path.open(newline='') as file:
    return list(csv.reader(file))


def tally(labels, best, num_classes, **options):
  labels, best = np.asarray(labels), np.asarray(best)
  found = Tally(num_classes, **options)
  found.add(dict(label=labels, best=best, accuracy=labels == best, confidence=np.full(len(best), 0.5)))
  return found


def test_tables_of_one_class_per_image(tmp_path):
  pytest.importorskip('matplotlib')
  found = tally([0, 0, 0, 1, 2, 2], [0, 0, 1, 0, 2, 2], 4, confusion=True)
  assert tables.write(found, NAMES, tmp_path / 'made' / 'test') == ['per_class.csv', 'confusion.csv', 'confusion.png']
  folder = tmp_path / 'made' / 'test'
  assert read(folder / 'confusion.csv') == [
      ['label \\ prediction', *NAMES], ['ant', '2', '1', '0', '0'], ['bee, "wild"', '1', '0', '0', '0'],
      ['Käfer of $x^$', '0', '0', '2', '0'], ['wasp', '0', '0', '0', '0']]
  header, *rows = read(folder / 'per_class.csv')
  assert header == ['class', 'images', 'predicted', 'correct', 'recall', 'precision', 'f1']
  assert [row[:4] for row in rows] == [
      ['ant', '3', '3', '2'], ['bee, "wild"', '1', '1', '0'], ['Käfer of $x^$', '2', '2', '2'], ['wasp', '0', '0', '0']]
  assert [float(row[4] or -1) for row in rows] == pytest.approx([2 / 3, 0, 1, -1])
  assert rows[3][4:] == ['', '', '']
  picture = np.asarray(Image.open(folder / 'confusion.png').convert('RGB')).reshape(-1, 3)
  colors = {tuple(color) for color in picture[(np.abs(np.diff(picture.astype(int), axis=0, append=0)).sum(axis=1) == 0)]}
  blue = lambda share: tuple(np.round(255 * np.asarray(matplotlib_blues(share)[:3])).astype(int))
  assert {blue(0.0), blue(1 / 3), blue(2 / 3), blue(1.0)} <= colors


def matplotlib_blues(share):
  import matplotlib
  return matplotlib.colormaps['Blues'](share)


@pytest.mark.parametrize('count, files', [(50, 3), (51, 2)])
def test_many_classes_are_not_drawn(tmp_path, count, files):
  pytest.importorskip('matplotlib')
  found = tally(range(count), range(count), count, confusion=True)
  assert len(tables.write(found, [f'class {i}' for i in range(count)], tmp_path)) == files


def test_without_a_confusion_matrix_there_is_the_table_of_classes(tmp_path):
  assert tables.write(tally([0, 1], [0, 0], 4), NAMES, tmp_path) == ['per_class.csv']


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(FileError, match='file/x: cannot make the directory'):
    tables.make_directory(tmp_path / 'file' / 'x')
