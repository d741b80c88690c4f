"""Sources of weights: places and sub-trees."""
import numpy as np
import pytest

from tests import golden_files
from tests.golden_files import MODELS
from vit_jax.base.errors import UserError
from vit_jax.pretrained import load, source


@pytest.mark.parametrize('text, place, subtree', [
    ('a.npz', 'a.npz', None),
    ('a.npz:img', 'a.npz', 'img'),
    ('dir/a.pth:model_ema.module', 'dir/a.pth', 'model_ema.module'),
    ('a.npz:params/img', 'a.npz', 'params/img'),
    ('gs://bucket/a.npz', 'gs://bucket/a.npz', None),
    ('gs://bucket/a.npz:img', 'gs://bucket/a.npz', 'img'),
    ('https://host:8080/a.npz', 'https://host:8080/a.npz', None),
    ('hf:org/name', 'hf:org/name', None),
    ('hf:org/name@refs/pr/2', 'hf:org/name@refs/pr/2', None),
    ('hf:org/name@refs/pr/2:backbone', 'hf:org/name@refs/pr/2', 'backbone'),
    ('timm:vit.tag', 'timm:vit.tag', None),
    ('google/ViT-B_16:img', 'google/ViT-B_16', 'img'),
    ('a:b:c', 'a:b:c', None),
    (':img', ':img', None),
    ('a.npz:../img', 'a.npz:../img', None),
    ('', '', None),
])
def test_parse(text, place, subtree):
  assert source.parse(text) == source.Source(text, place, subtree)


def test_a_path_with_a_colon_that_exists(tmp_path):
  path = tmp_path / 'a:img'
  path.touch()
  assert source.parse(path).subtree is None


@pytest.mark.parametrize('root', ['', 'params/', 'opt/target/'])
def test_a_subtree_is_read(root, tmp_path):
  """Two towers in one file: each is read like a separate file."""
  towers = {f'{root}{tower}/{name.removeprefix("params/")}': array
            for tower, model in (('img', 'bv_gap_rep_sincos2d'), ('other', 'bv_map'))
            for name, array in golden_files.arrays_of(MODELS[model]).items()}
  np.savez(tmp_path / 'a.npz', **towers)
  weights = load.read(f'{tmp_path}/a.npz:other')
  golden_files.assert_same_params(weights.params, golden_files.read('bv_map').params)
  with pytest.raises(UserError, match="a.npz: no arrays under 'txt'; it holds (img, other|opt)"):
    load.read(f'{tmp_path}/a.npz:txt')
  if root:
    weights = load.read(f'{tmp_path}/a.npz:img', image_size=16)
    golden_files.assert_same_params(weights.params, golden_files.read('bv_gap_rep_sincos2d').params)


def test_a_run_directory_has_no_subtrees():
  with pytest.raises(UserError, match='plain:img: a run directory has no sub-trees'):
    load.read(f'{golden_files.GOLDEN}/runs/plain:img')
