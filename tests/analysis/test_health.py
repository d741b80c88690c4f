"""The picture of a run's health."""
import json

from PIL import Image
import pytest

from tests import tiny
from vit_jax.analysis import health
from vit_jax.base.errors import UserError
from vit_jax.rundir.layout import RunDir

LINES = [
    {'step': 10, 'train/loss': 2.0},
    {'step': 10, 'health/grad_norm/head': 1.0, 'health/grad_norm/all': 1.0, 'health/grad_norm/block_02': None,
     'health/grad_norm/block_01': 0.1, 'health/grad_norm/stem': 0.0, 'health/logits/rms': 1.0, 'health/new/all': 1.0},
    {'step': 20, 'health/grad_norm/block_02': 0.3, 'health/grad_norm/objective': 2.0, 'health/logits/rms': 2.0},
]


@pytest.fixture
def workdir(tmp_path):
  RunDir(tmp_path).write_config({})
  (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in LINES))
  return tmp_path


def test_panels_are_read_from_the_stem_to_the_head(workdir):
  panels = health.read(workdir)
  assert list(panels) == ['grad_norm', 'logits', 'new']
  assert list(panels['grad_norm']) == ['stem', 'block_01', 'block_02', 'head', 'objective', 'all']
  assert panels['grad_norm']['block_02'] == pytest.approx({10: float('nan'), 20: 0.3}, nan_ok=True)
  assert panels['logits'] == {'rms': {10: 1.0, 20: 2.0}}


def test_the_picture_shows_every_layer_and_step(workdir):
  axes = health.draw(health.read(workdir)).axes
  titled = {axis.get_title(): axis for axis in axes}
  image, = titled['gradient norm'].images
  assert image.get_array().tolist() == [[None, None], [0.1, None], [None, 0.3], [1.0, None], [None, 2.0]]  # bottom first
  assert [label.get_text() for label in titled['gradient norm'].get_xticklabels()] == ['10', '20']
  assert [label.get_text() for label in titled['gradient norm'].get_yticklabels()] == [
      'stem', 'block 01', 'block 02', 'head', 'objective']
  assert list(titled['logits'].lines[0].get_ydata()) == [1.0, 2.0]


def test_a_run_without_panels_is_an_error(tmp_path):
  with pytest.raises(UserError, match=f'{tmp_path}/none is not the directory of a run'):
    health.read(tmp_path / 'none')
  RunDir(tmp_path).write_config({})
  with pytest.raises(UserError, match='has no health panel in metrics.jsonl; train with --config.health.every=1'):
    health.read(tmp_path)


def test_command(workdir):
  process = tiny.command('show', f'--health={workdir}', f'--output={workdir / "health.png"}')
  output, error = process.communicate()
  assert process.returncode == 0 and f'Wrote {workdir / "health.png"}' in output, error
  with Image.open(workdir / 'health.png') as picture:
    assert picture.width > 1000
  process = tiny.command('show', f'--health={workdir}', '--config=digits')
  assert 'expected one of --config=RECIPE, --workdir=RUN, --health=RUN, --operations' in process.communicate()[1]
