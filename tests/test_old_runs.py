"""Run directories of version 0.1, and the first of format 2, load, evaluate and resume; see tests/golden/runs.md."""
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

import vit_jax
from vit_jax import train
from vit_jax.models.vit import VisionTransformer
from vit_jax.pretrained import load
from vit_jax.run import evaluation
from vit_jax.rundir.layout import RunDir

GOLDEN = pathlib.Path(__file__).parent / 'golden' / 'runs'
NAMES = ('plain', 'frozen', 'mask_none', 'format_2')
# The name of the patch embedding in version 0.1.
OLD_NAMES = {'embed': 'patch_embed'}
TIMES = ('train/images_per_second', 'train/input_wait')


@pytest.fixture
def old_run(request, tmp_path, data_dir, monkeypatch):
  """Return a copy of a golden run, with digits where TFDS looks for them."""
  monkeypatch.setenv('TFDS_DATA_DIR', data_dir)
  monkeypatch.setattr('tensorflow_datasets.core.constants.DATA_DIR', data_dir)
  shutil.copytree(GOLDEN / request.param, tmp_path / 'run')
  return tmp_path / 'run'


def golden_params(name, kind=''):
  """Return {path in today's names: array} of a run after its last step."""
  with np.load(GOLDEN / f'{name}_final{kind}.npz') as file:
    return {'/'.join(OLD_NAMES.get(part, part) for part in path.split('/')): file[path] for path in file}


def flat(tree):
  return {jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(leaf)
          for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize('old_run, name', list(zip(NAMES, NAMES, strict=True)), indirect=['old_run'])
def test_an_old_run_resumes_to_where_the_old_code_ended(old_run, name):
  metrics = train.run(RunDir(old_run).read_config(), old_run)
  for kind, params in (('', load.read(old_run).params), ('_ema', load.read(old_run, ema=True).params)):
    expected = golden_params(name, kind)
    found = flat(params)
    assert found.keys() == expected.keys()
    for path, leaf in found.items():
      np.testing.assert_allclose(leaf, expected[path], atol=2e-6, err_msg=path)
  lines = [json.loads(line) for line in (GOLDEN / f'{name}_final.jsonl').read_text().splitlines()]
  found = {(line['step'], key): value for _, line in RunDir(old_run).read_metrics() for key, value in line.items()}
  compared = 0
  for line in lines:
    for key, value in line.items():
      if key not in TIMES:
        assert found[line['step'], key] == pytest.approx(value, rel=1e-4, abs=1e-6), key
        compared += 1
  assert compared > 20 and metrics['test/loss'] == found[8, 'test/loss']


@pytest.mark.parametrize('old_run', ['plain', 'mask_none', 'format_2'], indirect=True)
def test_an_old_run_evaluates_to_what_it_recorded(old_run):
  step, values, recorded = evaluation.evaluate(old_run)
  assert step == 4
  known = {name: recorded[name] for name in values if name in recorded}  # newer metrics are not
  assert {'test/accuracy', 'test/loss'} <= known.keys()
  assert {name: values[name] for name in known} == pytest.approx(known, rel=1e-5)


@pytest.mark.parametrize('old_run', NAMES, indirect=True)
def test_an_old_run_loads_as_a_model(old_run):
  model = vit_jax.load(old_run)
  assert isinstance(model, VisionTransformer)
  assert model.class_names == tuple('0123456789')
  logits = model(np.zeros((1, 8, 8, 1), np.float32))
  assert logits.shape == (1, 10) and np.isfinite(logits).all()
